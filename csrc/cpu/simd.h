// Sixteen numbers at a time, with the vector types of GCC and Clang: the compiler makes of them whatever the machine
// has, which it does not do reliably with plain loops.
#pragma once

#include "common/types.h"

// A function marked GID_CLONES is compiled for several instruction sets, and the loader picks what the machine at hand
// can run. Everything that such a function calls must be inlined into it (GID_INLINE).
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && (!defined(__clang__) || __clang_major__ >= 16)
#define GID_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define GID_CLONES
#endif
#define GID_INLINE inline __attribute__((always_inline))

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // on how such vectors are passed: none is, all is inlined
#endif

namespace gid {

constexpr int kLanes = 16;
using Floats = float __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Shorts = uint16_t __attribute__((vector_size(32)));

GID_INLINE Floats all(float value) { return value - Floats{}; }

GID_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }  // b where either is NaN

GID_INLINE Floats load(const float* from) {
  Floats values;
  memcpy(&values, from, sizeof values);
  return values;
}

GID_INLINE Words load_words(const void* from) {
  Shorts values;
  memcpy(&values, from, sizeof values);
  return __builtin_convertvector(values, Words);
}

GID_INLINE Floats load(const BFloat16* from) { return (Floats)(load_words(from) << 16); }

GID_INLINE Floats load(const Half* from) {  // as to_float(Half) does it
  const Words bits = load_words(from);
  const Floats scaled = (Floats)((bits & 0x7fff) << 13) * 0x1p112f;
  const Words special = (Words)((bits & 0x7c00) == 0x7c00) & 0x7f800000;
  return (Floats)((Words)scaled | special | (bits & 0x8000) << 16);
}

// The largest lane, none of them NaN.
GID_INLINE float largest(Floats lanes) {
  float values[kLanes];
  memcpy(values, &lanes, sizeof values);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) {
      values[lane] = values[lane + width] > values[lane] ? values[lane + width] : values[lane];
    }
  }
  return values[0];
}

GID_INLINE float sum(Floats lanes) {
  float values[kLanes];
  memcpy(values, &lanes, sizeof values);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) values[lane] += values[lane + width];
  }
  return values[0];
}

}  // namespace gid
