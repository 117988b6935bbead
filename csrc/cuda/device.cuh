// What the kernels share: the CUDA language itself (or the emulator's, where a host compiler reads this), 16-byte
// accesses, and sums over a warp or a block.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define GID_SHARED(Type, name) __shared__ Type name
#else
#include "simt.h"  // tests/simt
#define GID_SHARED(Type, name) SIMT_SHARED(Type, name)
#endif

#include <stdexcept>

#include "common/types.h"

namespace gid {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarpSize = 32;
constexpr int64_t kMaxGridY = 65535;

// Host side: so many blocks along x.
inline dim3 grid_of(int64_t blocks) {
  if (blocks > 0x7fffffff) throw std::length_error("the arguments need more than 2^31 - 1 blocks of threads");
  return dim3(unsigned(blocks));
}

template <typename Integer>
GID_HD Integer ceil_div(Integer a, Integer b) {
  return (a + b - 1) / b;
}

// As many elements as 16 bytes hold: one memory transaction of a thread.
template <typename T>
struct Pack {
  static constexpr int kSize = 16 / int(sizeof(T));
  T value[kSize];
};

// The address must be a multiple of 16. Through uint4, because only then the compiler is sure to make it one load.
template <typename T>
__device__ __forceinline__ Pack<T> load_pack(const T* address) {
  const uint4 bits = *reinterpret_cast<const uint4*>(address);
  Pack<T> pack;
  memcpy(&pack, &bits, sizeof bits);
  return pack;
}

// A pack that its elements have not been taken out of: as long as it is held as this, no instruction waits for its load.
template <typename T>
__device__ __forceinline__ uint4 bits_of(const Pack<T>& pack) {
  uint4 bits;
  memcpy(&bits, &pack, sizeof bits);
  return bits;
}

template <typename T>
__device__ __forceinline__ Pack<T> pack_of(const uint4& bits) {
  Pack<T> pack;
  memcpy(&pack, &bits, sizeof bits);
  return pack;
}

template <typename T>
__device__ __forceinline__ void unpack(const Pack<T>& pack, float* values) {
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) values[i] = to_float(pack.value[i]);
}

// Two at a time, an instruction each: they are the upper halves of floats.
template <>
__device__ __forceinline__ void unpack(const Pack<BFloat16>& pack, float* values) {
  uint32_t pairs[4];
  memcpy(pairs, &pack, sizeof pairs);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = bits_to_float(pairs[i] << 16);
    values[2 * i + 1] = bits_to_float(pairs[i] & 0xffff0000u);
  }
}

template <typename T>
__device__ __forceinline__ void store_pack(T* address, const Pack<T>& pack) {
  uint4 bits;
  memcpy(&bits, &pack, sizeof bits);
  *reinterpret_cast<uint4*>(address) = bits;
}

// Row `row` of a tensor (..., 4) that lies on a 16-byte boundary, by one load.
__device__ __forceinline__ void load_four(const AnyFloats& tensor, int64_t row, float* four) {
  if (tensor.type == FloatType::kFloat) {
    const Pack<float> pack = load_pack(static_cast<const float*>(tensor.data) + row * 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = pack.value[i];
    return;
  }
  const uint64_t bits = static_cast<const uint64_t*>(tensor.data)[row];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint16_t element = uint16_t(bits >> (16 * i));
    four[i] = tensor.type == FloatType::kHalf ? to_float(Half{element}) : to_float(BFloat16{element});
  }
}

template <typename T>
__device__ __forceinline__ void store_four(T* tensor, int64_t row, const float* four) {
  if constexpr (sizeof(T) == 4) {
    store_pack(tensor + row * 4, Pack<T>{{four[0], four[1], four[2], four[3]}});
  } else {
    uint64_t bits = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) bits |= uint64_t(from_float<T>(four[i]).bits) << (16 * i);
    reinterpret_cast<uint64_t*>(tensor)[row] = bits;
  }
}

// e^-x for x >= -20, within a few float32 steps while x is small; 0 where x is large.
__device__ __forceinline__ float exp_of_minus(float x) {
  const float exponent = x * -1.44269504f;
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(exponent));
  return result;
#else
  return exp2f(exponent);
#endif
}

// Host side: may whole packs be read from here?
template <typename T>
bool is_aligned(const T* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

// Every lane of the warp gets the sum. All 32 must call.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int bit = kWarpSize / 2; bit > 0; bit /= 2) value += __shfl_xor_sync(kAllLanes, value, bit);
  return value;
}

// Every thread of the block gets the sum, always added up in the same order. All must call; warp_sums (one for each
// warp, shared) must be free, and is again after the block's next barrier.
__device__ __forceinline__ float block_sum(float value, float* warp_sums) {
  value = warp_sum(value);
  if (threadIdx.x % kWarpSize == 0) warp_sums[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  float sum = 0.0f;
  for (unsigned warp = 0; warp < blockDim.x / kWarpSize; ++warp) sum += warp_sums[warp];
  return sum;
}

// The sum over the lanes before this one. All 32 must call.
__device__ __forceinline__ int warp_exclusive_sum(int value) {
  const int lane = threadIdx.x % kWarpSize;
  int sum = value;
#pragma unroll
  for (int delta = 1; delta < kWarpSize; delta *= 2) {
    const int below = __shfl_up_sync(kAllLanes, sum, delta);
    if (lane >= delta) sum += below;
  }
  return sum - value;
}

// The sum over the threads before this one. All threads of the block must call; warp_sums (one for each warp, shared)
// must be free, and is again after the block's next barrier.
__device__ __forceinline__ int block_exclusive_sum(int value, int* warp_sums) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, warps = blockDim.x / kWarpSize;
  const int before = warp_exclusive_sum(value);
  if (lane == kWarpSize - 1) warp_sums[warp] = before + value;
  __syncthreads();
  const int warps_before = warp_exclusive_sum(lane < warps ? warp_sums[lane] : 0);
  return before + __shfl_sync(kAllLanes, warps_before, warp);
}

}  // namespace gid
