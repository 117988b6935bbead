// Compiles the file GID_VECTOR_CODE, after cpu/simd.h, once for each instruction set, each time in a namespace of its
// own: lanes_4 on any machine, lanes_8 with AVX2, lanes_16 with AVX-512. Templates would not do: intrinsics can be
// inlined only into functions compiled for their instructions, which no template parameter can say. For the same reason
// what the compiler makes by itself, such as the constructor of a class with defaults, cannot call these functions. And
// nothing of the standard library is used there: one of its templates, once compiled for AVX-512, might be the copy
// that code for all machines is linked with.
#pragma once

#include "common/types.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define GID_X86 1
#endif

// Functions are inlined whatever they cost: how vectors are passed depends on the instruction set.
#define GID_INLINE inline __attribute__((always_inline))

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // by the intrinsics themselves, in GCC 12
#endif

#define GID_LANES 4
#define GID_SET lanes_4
#include "cpu/simd.h"
#include GID_VECTOR_CODE
#undef GID_LANES
#undef GID_SET

#ifdef GID_X86

#define GID_LANES 8
#define GID_SET lanes_8
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#include "cpu/simd.h"
#include GID_VECTOR_CODE
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef GID_LANES
#undef GID_SET

#define GID_LANES 16
#define GID_SET lanes_16
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq")
#endif
#include "cpu/simd.h"
#include GID_VECTOR_CODE
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef GID_LANES
#undef GID_SET

#endif  // GID_X86

namespace gid {

// The floats that a vector of this machine holds.
inline int lanes() {
#ifdef GID_X86
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) return 16;  // with avx512f
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
  return 4;
}

}  // namespace gid

// What is named so in the namespace of the widest instruction set that this machine has.
#ifdef GID_X86
#define GID_WIDEST(name) (lanes() == 16 ? lanes_16::name : lanes() == 8 ? lanes_8::name : lanes_4::name)
#else
#define GID_WIDEST(name) (lanes_4::name)
#endif
