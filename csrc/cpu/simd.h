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
#define GID_VECTORS(N, ...)                                                         \
  template <>                                                                       \
  struct Vectors<N> {                                                               \
    typedef float Floats __attribute__((vector_size(N * 4)));                       \
    typedef uint32_t Words __attribute__((vector_size(N * 4)));                     \
    typedef uint16_t Shorts __attribute__((vector_size(N * 2)));                    \
    static GID_INLINE Words widen(const Shorts& from) {                             \
      return __builtin_convertvector(from, Words);                                  \
    }                                                                               \
    static GID_INLINE Words lane_numbers() { return Words{__VA_ARGS__}; }           \
    static GID_INLINE Shorts narrow(const Words& from) {                            \
      return __builtin_convertvector(from, Shorts);                                 \
    }                                                                               \
  };
GID_VECTORS(4, 0, 1, 2, 3)
GID_VECTORS(8, 0, 1, 2, 3, 4, 5, 6, 7)
GID_VECTORS(16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#undef GID_VECTORS

template <int N>
struct Simd {
  using Floats = typename Vectors<N>::Floats;
  using Words = typename Vectors<N>::Words;

  static GID_INLINE Floats all(float value) { return value - Floats{}; }

  static GID_INLINE Floats larger(const Floats& a, const Floats& b) { return a > b ? a : b; }  // b where one is NaN

  static GID_INLINE Floats smaller(const Floats& a, const Floats& b) { return a < b ? a : b; }  // likewise

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

  static GID_INLINE void store(float* to, const Floats& values) { memcpy(to, &values, sizeof values); }

  static GID_INLINE void store(BFloat16* to, const Floats& values) {  // as from_float<BFloat16> does it
    const Words bits = (Words)values;
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Words kept = values == values ? rounded : Words{} + 0x7fc0;
    const typename Vectors<N>::Shorts shorts = Vectors<N>::narrow(kept);
    memcpy(to, &shorts, sizeof shorts);
  }

  static GID_INLINE void store(Half* to, const Floats& values) {
    float lanes[N];
    memcpy(lanes, &values, sizeof lanes);
    for (int lane = 0; lane < N; ++lane) to[lane] = from_float<Half>(lanes[lane]);
  }

  static GID_INLINE Floats absolute(const Floats& x) { return (Floats)((Words)x & 0x7fffffff); }

  // e^x for x in [-43, 43], within 2e-7 of it for small x and 2e-6 for large. NaN stays NaN, for which 2^n has to be a
  // factor: added to the exponent's bits it would be the NaN's own low bits, which may be set.
  static GID_INLINE Floats exp(const Floats& x) {
    const Floats y = x * 1.44269504f;              // e^x = 2^y
    const Floats shifted = y + 12582912.0f;        // 1.5 * 2^23: the sum's lowest bits are y rounded
    const Floats f = y - (shifted - 12582912.0f);  // -0.5 to 0.5
    Floats power = f * 1.32647e-3f + 9.67151e-3f;  // 2^f by the polynomial of least relative error, 1.3e-7
    power = power * f + 5.550734e-2f;
    power = power * f + 2.4022242e-1f;
    power = power * f + 6.9314698e-1f;
    power = power * f + 1.0f;
    return power * (Floats)(((Words)shifted << 23) + 0x3f800000);
  }

  // Lane i of the result is lane i ^ bit.
  static GID_INLINE Floats swapped(const Floats& lanes, int bit) {
#ifdef __clang__
    Floats result;
    for (int lane = 0; lane < N; ++lane) result[lane] = lanes[lane ^ bit];
    return result;
#else
    return __builtin_shuffle(lanes, Vectors<N>::lane_numbers() ^ bit);
#endif
  }

  // The largest lane, none of them NaN.
  static GID_INLINE float largest(const Floats& lanes) {
    Floats top = lanes;
    for (int bit = N / 2; bit > 0; bit /= 2) top = larger(swapped(top, bit), top);
    return top[0];
  }

  static GID_INLINE float sum(const Floats& lanes) {
    Floats total = lanes;
    for (int bit = N / 2; bit > 0; bit /= 2) total += swapped(total, bit);
    return total[0];
  }
};

}  // namespace gid
