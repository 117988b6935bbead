// CUDA's words for a host compiler: with this header in place of cuda_runtime.h, csrc/cuda/*.cuh compile with g++ or
// clang++ and run one thread at a time, watched. What is watched, and what is not, stands in README.md.
//
// Threads are fibers. They take turns where they wait for each other (barriers, shuffles, votes) and, now and then,
// where they touch shared or global memory; who goes on is drawn from a seed. Compile kernels with -fsanitize=thread,
// which calls a function at every memory access, and link simt.cpp (compiled without it), which has these functions.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

#define SIMT_EXPORT __attribute__((visibility("default")))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace simt {

constexpr unsigned kWarp = 32;
constexpr size_t kSharedBytes = 48 * 1024;  // what any block may use without asking for more

dim3 thread_index();
dim3 block_index();
dim3 block_size();
dim3 grid_size();

// Memory that the kernels may touch, told before they run. Whatever lies elsewhere is out of bounds.
void add_buffer(const void* data, size_t bytes);
void clear_buffers();

// Calls run(body) once for every thread of every block, one block after another in random order. Throws
// std::runtime_error with one sentence for what a GPU would not forgive.
void launch(dim3 grid, dim3 block, uint64_t seed, void (*run)(const void* body), const void* body);

// The block's own copy of one shared variable. `site` tells the variables of a kernel apart.
void* shared_variable(const void* site, size_t bytes, size_t alignment);

void block_barrier(const char* file, int line);

// One warp operation: every lane of the mask brings a value and gets one back.
enum class WarpOp { kSync, kShuffle, kBallot };
uint64_t warp_operation(WarpOp op, unsigned mask, uint64_t value, unsigned source, const char* file, int line);
unsigned lane_index();

template <typename T>
T shuffle(unsigned mask, T value, unsigned source, const char* file, int line) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = warp_operation(WarpOp::kShuffle, mask, bits, source, file, line);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// How csrc/cuda's launch functions start a kernel here.
struct Launch {
  uint64_t seed;

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) const {
    const auto body = [&] { kernel(arguments...); };
    launch(grid, block, seed, [](const void* call) { (*static_cast<decltype(&body)>(call))(); }, &body);
  }
};

}  // namespace simt

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_size())
#define gridDim (::simt::grid_size())

#define SIMT_SHARED(Type, name)                    \
  static const char name##_site = 0;               \
  Type& name = *static_cast<Type*>(::simt::shared_variable(&name##_site, sizeof(Type), alignof(Type)))

#define __syncthreads() ::simt::block_barrier(__FILE__, __LINE__)

// Default arguments, so that a message names the caller's line.
#define SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_HERE) {
  ::simt::warp_operation(::simt::WarpOp::kSync, mask, 0, 0, file, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_HERE) {
  return unsigned(::simt::warp_operation(::simt::WarpOp::kBallot, mask, predicate != 0, 0, file, line));
}

inline int __any_sync(unsigned mask, int predicate, SIMT_HERE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}

inline int __all_sync(unsigned mask, int predicate, SIMT_HERE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, SIMT_HERE) {
  return ::simt::shuffle(mask, value, unsigned(source) % ::simt::kWarp, file, line);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, SIMT_HERE) {
  return ::simt::shuffle(mask, value, ::simt::lane_index() ^ unsigned(bits), file, line);
}

// A lane whose source would lie outside the warp keeps its own value, as on the GPU.
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, SIMT_HERE) {
  const unsigned lane = ::simt::lane_index();
  return ::simt::shuffle(mask, value, lane >= delta ? lane - delta : lane, file, line);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, SIMT_HERE) {
  const unsigned lane = ::simt::lane_index();
  return ::simt::shuffle(mask, value, lane + delta < ::simt::kWarp ? lane + delta : lane, file, line);
}

// Atomics return the old value. Those that kernels use; another one is a line here and a line in simt.cpp.
int atomicAdd(int* address, int value);
unsigned atomicAdd(unsigned* address, unsigned value);
float atomicAdd(float* address, float value);
unsigned atomicMax(unsigned* address, unsigned value);

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(int(bits)); }
inline int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }
