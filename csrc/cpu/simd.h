// GID_LANES floats at a time: what the compiler makes of plain loops depends on too much. Written with the vector types
// of GCC and Clang, and with intrinsics where those take more instructions. No #pragma once: cpu/instruction_sets.h
// reads it once for each instruction set.
namespace gid {
namespace {
namespace GID_SET {

constexpr int N = GID_LANES;
typedef float Floats __attribute__((vector_size(N * 4)));
typedef uint32_t Words __attribute__((vector_size(N * 4)));
typedef uint16_t Shorts __attribute__((vector_size(N * 2)));

// Asks for what will be read soon: 2 KB on, far enough for memory to answer, near enough to be there still. Left to
// itself the processor begins anew in every page of 4 KB.
GID_INLINE void fetch_ahead(const void* now) { __builtin_prefetch((const char*)now + 2048); }

GID_INLINE Floats all(float value) { return value - Floats{}; }

GID_INLINE Floats absolute(const Floats& x) { return (Floats)((Words)x & 0x7fffffff); }

GID_INLINE Floats load(const float* from) {
  Floats values;
  memcpy(&values, from, sizeof values);
  return values;
}

#if GID_LANES == 16

GID_INLINE Floats load(const BFloat16* from) {  // one shuffle: widening and shifting cost several times that
  const __m512i twice = _mm512_set_epi32(
      0xf000f, 0xe000e, 0xd000d, 0xc000c, 0xb000b, 0xa000a, 0x90009, 0x80008, 0x70007, 0x60006, 0x50005, 0x40004,
      0x30003, 0x20002, 0x10001, 0);
  const __m512i values = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)from));
  return (Floats)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, twice, values);
}

GID_INLINE Floats load(const Half* from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)); }

GID_INLINE void store(Half* to, const Floats& values) {
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
}

#else

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

GID_INLINE void store(Half* to, const Floats& values) {
  float lanes[N];
  memcpy(lanes, &values, sizeof lanes);
  for (int lane = 0; lane < N; ++lane) to[lane] = from_float<Half>(lanes[lane]);
}

#endif

GID_INLINE void store(float* to, const Floats& values) { memcpy(to, &values, sizeof values); }

GID_INLINE void store(BFloat16* to, const Floats& values) {  // as from_float<BFloat16> does it
  const Words bits = (Words)values;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words kept = values == values ? rounded : Words{} + 0x7fc0;
  const Shorts shorts = __builtin_convertvector(kept, Shorts);
  memcpy(to, &shorts, sizeof shorts);
}

// larger and smaller give b where one is NaN. multiply_add(a, b, c) is a * b + c, rounded once where that is faster.
#if GID_LANES == 16

GID_INLINE Floats larger(const Floats& a, const Floats& b) { return _mm512_max_ps(a, b); }
GID_INLINE Floats smaller(const Floats& a, const Floats& b) { return _mm512_min_ps(a, b); }
GID_INLINE Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) { return _mm512_fmadd_ps(a, b, c); }

struct Nans {  // whether any of the numbers seen was NaN
  __mmask16 lanes = 0;
  GID_INLINE void see(const Floats& a, const Floats& b) { lanes |= _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
  GID_INLINE bool any() const { return lanes; }
};

#else

#if GID_LANES == 8
GID_INLINE Floats larger(const Floats& a, const Floats& b) { return _mm256_max_ps(a, b); }
GID_INLINE Floats smaller(const Floats& a, const Floats& b) { return _mm256_min_ps(a, b); }
GID_INLINE Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) { return _mm256_fmadd_ps(a, b, c); }
#else
GID_INLINE Floats larger(const Floats& a, const Floats& b) { return a > b ? a : b; }
GID_INLINE Floats smaller(const Floats& a, const Floats& b) { return a < b ? a : b; }
GID_INLINE Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) { return a * b + c; }
#endif

struct Nans {
  Words lanes{};
  GID_INLINE void see(const Floats& a, const Floats& b) { lanes |= (Words)(a != a) | (Words)(b != b); }
  GID_INLINE bool any() const {
    uint64_t pairs[N / 2], found = 0;
    memcpy(pairs, &lanes, sizeof pairs);
    for (const uint64_t pair : pairs) found |= pair;
    return found;
  }
};

#endif

// x within [-limit, limit]. NaN stays NaN.
GID_INLINE Floats within(const Floats& x, float limit) { return smaller(all(limit), larger(all(-limit), x)); }

// 2^y for y in [-62, 62], within 2e-7 of it. NaN stays NaN.
GID_INLINE Floats exp2(const Floats& y) {
#if GID_LANES == 16
  const Floats whole = _mm512_roundscale_ps(y, 0), f = y - whole;  // f: -0.5 to 0.5
#else
  const Floats shifted = y + 12582912.0f;  // 1.5 * 2^23: the sum's lowest bits are y rounded
  const Floats f = y - (shifted - 12582912.0f);
#endif
  // 2^f by the polynomial of least relative error, 1.3e-7.
  Floats power = multiply_add(f, all(1.32647e-3f), all(9.67151e-3f));
  power = multiply_add(power, f, all(5.550734e-2f));
  power = multiply_add(power, f, all(2.4022242e-1f));
  power = multiply_add(power, f, all(6.9314698e-1f));
  power = multiply_add(power, f, all(1.0f));
#if GID_LANES == 16
  return _mm512_scalef_ps(power, whole);
#else
  // A factor, not added to the exponent's bits: for NaN those would be the NaN's own low bits, which may be set.
  return power * (Floats)(((Words)shifted << 23) + 0x3f800000);
#endif
}

// NaN is not below.
GID_INLINE bool all_below(const Floats& x, float limit) {
#if GID_LANES == 16
  return _mm512_cmp_ps_mask(x, all(limit), _CMP_LT_OQ) == 0xffff;
#else
  bool below = true;
  for (int lane = 0; lane < N; ++lane) below &= x[lane] < limit;
  return below;
#endif
}

constexpr float kLog2E = 1.44269504f;

// e^x for x in [-43, 43], within 2e-7 of it for small x and 2e-6 for large.
GID_INLINE Floats exp(const Floats& x) { return exp2(x * kLog2E); }

// largest(lanes): none of them may be NaN.
#if GID_LANES == 16

GID_INLINE float largest(const Floats& lanes) { return _mm512_reduce_max_ps(lanes); }
GID_INLINE float sum(const Floats& lanes) { return _mm512_reduce_add_ps(lanes); }

// Of the lanes whose number has the bit, y's; of the others, x's. Larger is each of the pairs.
GID_INLINE Floats larger_halves(const Floats& x, const Floats& y, int bit) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i bits = _mm512_set1_epi32(bit), other = _mm512_xor_si512(lane, bits);
  const __mmask16 of_y = _mm512_test_epi32_mask(lane, bits);
  const __m512i from = _mm512_mask_add_epi32(other, of_y, other, _mm512_set1_epi32(16));
  return larger(_mm512_permutex2var_ps(x, from, y), _mm512_mask_blend_ps(of_y, x, y));
}

// Lane i is largest(rows[i]), or NaN where all of rows[i] is. Overwrites the rows.
GID_INLINE Floats largest_of_each(Floats* rows) {
#pragma GCC unroll 4
  for (int bit = N / 2; bit > 0; bit /= 2) {
#pragma GCC unroll 8
    for (int row = 0; row < bit; ++row) rows[row] = larger_halves(rows[row], rows[row + bit], bit);
  }
  return rows[0];
}

#else

// Lane i of the result is lane i ^ bit.
GID_INLINE Floats swapped(const Floats& lanes, int bit) {
#ifdef __clang__
  Floats result;
  for (int lane = 0; lane < N; ++lane) result[lane] = lanes[lane ^ bit];
  return result;
#elif GID_LANES == 8
  return __builtin_shuffle(lanes, Words{0, 1, 2, 3, 4, 5, 6, 7} ^ bit);
#else
  return __builtin_shuffle(lanes, Words{0, 1, 2, 3} ^ bit);
#endif
}

GID_INLINE float largest(const Floats& lanes) {
  Floats top = lanes;
  for (int bit = N / 2; bit > 0; bit /= 2) top = larger(swapped(top, bit), top);
  return top[0];
}

GID_INLINE Floats largest_of_each(Floats* rows) {
  Floats tops;
  for (int row = 0; row < N; ++row) tops[row] = largest(rows[row]);
  return tops;
}

GID_INLINE float sum(const Floats& lanes) {
  Floats total = lanes;
  for (int bit = N / 2; bit > 0; bit /= 2) total += swapped(total, bit);
  return total[0];
}

#endif

}  // namespace GID_SET
}  // namespace
}  // namespace gid
