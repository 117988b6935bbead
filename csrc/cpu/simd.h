// N numbers at a time, with the vector types of GCC and Clang: what the compiler makes of plain loops depends on too much.
#pragma once

#include "common/types.h"

// A function for one instruction set is marked GID_TARGET("avx2"), say; what it calls must be inlined into it.
#define GID_INLINE inline __attribute__((always_inline))
#if defined(__x86_64__)
#define GID_X86 1
#define GID_TARGET(set) __attribute__((target(set)))
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // on how such vectors are passed: none is, all is inlined
#endif

namespace gid {

// The types, written out for each N: GCC 12 does not take vectors whose size depends on a template's parameter.
template <int N>
struct Vectors;
#define GID_VECTORS(N)                                                              \
  template <>                                                                       \
  struct Vectors<N> {                                                               \
    typedef float Floats __attribute__((vector_size(N * 4)));                       \
    typedef uint32_t Words __attribute__((vector_size(N * 4)));                     \
    typedef uint16_t Shorts __attribute__((vector_size(N * 2)));                    \
    static GID_INLINE Words widen(const Shorts& from) {                             \
      return __builtin_convertvector(from, Words);                                  \
    }                                                                               \
  };
GID_VECTORS(4)
GID_VECTORS(8)
GID_VECTORS(16)
#undef GID_VECTORS

template <int N>
struct Simd {
  using Floats = typename Vectors<N>::Floats;
  using Words = typename Vectors<N>::Words;

  static GID_INLINE Floats all(float value) { return value - Floats{}; }

  static GID_INLINE Floats larger(const Floats& a, const Floats& b) { return a > b ? a : b; }  // b where one is NaN

  static GID_INLINE Floats load(const float* from) {
    Floats values;
    memcpy(&values, from, sizeof values);
    return values;
  }

  static GID_INLINE Words load_words(const void* from) {
    typename Vectors<N>::Shorts values;
    memcpy(&values, from, sizeof values);
    return Vectors<N>::widen(values);
  }

  static GID_INLINE Floats load(const BFloat16* from) { return (Floats)(load_words(from) << 16); }

  static GID_INLINE Floats load(const Half* from) {  // as to_float(Half) does it
    const Words bits = load_words(from);
    const Floats scaled = (Floats)((bits & 0x7fff) << 13) * 0x1p112f;
    const Words special = (Words)((bits & 0x7c00) == 0x7c00) & 0x7f800000;
    return (Floats)((Words)scaled | special | (bits & 0x8000) << 16);
  }

  // The largest lane, none of them NaN.
  static GID_INLINE float largest(const Floats& lanes) {
    float values[N];
    memcpy(values, &lanes, sizeof values);
    for (int width = N / 2; width > 0; width /= 2) {
      for (int lane = 0; lane < width; ++lane) {
        values[lane] = values[lane + width] > values[lane] ? values[lane + width] : values[lane];
      }
    }
    return values[0];
  }

  static GID_INLINE float sum(const Floats& lanes) {
    float values[N];
    memcpy(values, &lanes, sizeof values);
    for (int width = N / 2; width > 0; width /= 2) {
      for (int lane = 0; lane < width; ++lane) values[lane] += values[lane + width];
    }
    return values[0];
  }
};

}  // namespace gid
