// What CPU and CUDA kernels share first: how to mark a function for both, and the two 16-bit floats.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define GID_HD __host__ __device__ __forceinline__
#else
#define GID_HD inline __attribute__((always_inline))  // also into functions for other instruction sets than the file's
#endif

namespace gid {

// 16-bit floats as they lie in memory. Own types, because torch's and CUDA's are not both at hand everywhere that these
// headers are read: kernels include no torch, and the emulator of tests/simt has no CUDA.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

GID_HD float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

GID_HD uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

GID_HD float to_float(float value) { return value; }

GID_HD float to_float(BFloat16 value) { return bits_to_float(uint32_t(value.bits) << 16); }

GID_HD float to_float(Half value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t magnitude = uint32_t(value.bits & 0x7fff) << 13;
  // Shifted into place the exponent is 112 too small; multiplying by 2^112 mends normal and subnormal numbers alike.
  const float scaled = bits_to_float(magnitude) * 0x1p112f;
  const uint32_t special = (value.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;  // infinity and NaN
  return bits_to_float(float_to_bits(scaled) | special | uint32_t(value.bits & 0x8000) << 16);
#endif
}

template <typename T>
GID_HD T from_float(float value);

template <>
GID_HD float from_float<float>(float value) {
  return value;
}

// Rounds to nearest, ties to even, as torch does.
template <>
GID_HD BFloat16 from_float<BFloat16>(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};  // one instruction
#else
  if (value != value) return {0x7fc0};
  const uint32_t bits = float_to_bits(value);
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
#endif
}

template <>
GID_HD Half from_float<Half>(float value) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(value))};
#else
  const uint32_t bits = float_to_bits(value);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 and above round to infinity
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 lets the adder round at the last bit that a half keeps
    return {uint16_t(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000))};
  }
  return {uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13))};
#endif
}

// An array of any of the three types, told at run time: for what is read a few numbers a row, where a kernel for each
// combination of types would not pay.
enum class FloatType { kFloat, kHalf, kBFloat16 };

struct AnyFloats {
  const void* data;
  FloatType type;

  GID_HD float operator[](int64_t index) const {
    switch (type) {
      case FloatType::kHalf: return to_float(static_cast<const Half*>(data)[index]);
      case FloatType::kBFloat16: return to_float(static_cast<const BFloat16*>(data)[index]);
      default: return static_cast<const float*>(data)[index];
    }
  }
};

GID_HD bool is_finite(float value) { return fabsf(value) <= 3.402823466e+38f; }  // false for NaN

// Arithmetic that is never contracted to a fused multiply-add, so that CPU and CUDA round alike. On the CPU the build
// passes -ffp-contract=off instead.
GID_HD float mul(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

GID_HD float add(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

GID_HD float sub(float a, float b) { return add(a, -b); }

GID_HD float div(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

// For losses, where speed counts and the last bit does not. F is float, on the CPU also a vector of floats, which
// functions do not return, because how depends on flags that these headers do not set.
template <typename F>
GID_HD void invert(F& x) {
#ifdef __CUDA_ARCH__
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
#else
  x = 1.0f / x;
#endif
}

// sum = sum * x + c
template <typename F>
GID_HD void horner(F& sum, const F& x, float c) {
#ifdef __CUDA_ARCH__
  sum = fmaf(sum, x, c);
#else
  sum = sum * x + c;
#endif
}

}  // namespace gid
