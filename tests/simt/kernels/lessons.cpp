// Small kernels, right and wrong, that show what the emulator finds.
#include "cuda/device.cuh"

#include <string_view>

#include "entry.h"

namespace {

struct Row {
  float value[64];
};

// out[i] = in[63 - i], through shared memory. Without the barrier a thread may read what nobody has written yet.
template <bool kBarrier>
__global__ void reverse_kernel(const float* in, float* out) {
  GID_SHARED(Row, row);
  row.value[threadIdx.x] = in[threadIdx.x];
  if constexpr (kBarrier) __syncthreads();
  out[threadIdx.x] = row.value[63 - threadIdx.x];
}

// Twice in a row: without the second barrier a thread may overwrite what another has yet to read.
template <bool kBarrier>
__global__ void reverse_twice_kernel(const float* in, float* out) {
  GID_SHARED(Row, row);
  float value = in[threadIdx.x];
  for (int turn = 0; turn < 2; ++turn) {
    row.value[threadIdx.x] = value;
    __syncthreads();
    value = row.value[63 - threadIdx.x];
    if constexpr (kBarrier) __syncthreads();
  }
  out[threadIdx.x] = value;
}

// out[0] = the sum of in, by all threads at once.
template <bool kAtomic>
__global__ void sum_kernel(const float* in, float* out) {
  if constexpr (kAtomic) {
    atomicAdd(out, in[blockIdx.x * blockDim.x + threadIdx.x]);
  } else {
    out[0] += in[blockIdx.x * blockDim.x + threadIdx.x];
  }
}

// Half a warp meets at a barrier that the other half never reaches.
__global__ void divergent_kernel(const float* in, float* out) {
  if (threadIdx.x % 32 < 16) __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}

// The even lanes have returned when the odd ones shuffle with all 32.
__global__ void absent_kernel(const float* in, float* out) {
  if (threadIdx.x % 2 == 0) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, in[threadIdx.x], 1);
}

// Two halves of a warp shuffle with masks that overlap.
__global__ void masks_kernel(const float* in, float* out) {
  const unsigned mask = threadIdx.x % 32 < 16 ? 0x0001ffffu : 0xffff8000u;
  out[threadIdx.x] = __shfl_xor_sync(mask, in[threadIdx.x], 1);
}

__global__ void out_of_bounds_kernel(const float* in, float* out) { out[threadIdx.x] = in[threadIdx.x + 1]; }

__global__ void misaligned_kernel(const float* in, float* out) {
  if (threadIdx.x == 0) gid::store_pack(out, gid::load_pack(in + 1));
}

struct Large {
  float value[16 * 1024];
};

__global__ void large_kernel(const float* in, float* out) {
  GID_SHARED(Large, large);
  large.value[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = large.value[threadIdx.x];
}

// Past the end of the shared variable.
__global__ void shared_bounds_kernel(const float* in, float* out) {
  GID_SHARED(Row, row);
  float* value = row.value;
  value[threadIdx.x + 1] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = value[1];
}

// Two barriers, one on each side of a branch.
__global__ void two_barriers_kernel(const float* in, float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = in[threadIdx.x];
}

// The lower half of a warp reads from the upper half, which takes no part.
__global__ void source_kernel(const float* in, float* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffu, in[threadIdx.x], 16);
}

// A race that a shuffle does not mend: of the warp's operations only __syncwarp orders memory.
template <bool kSync>
__global__ void warp_kernel(const float* in, float* out) {
  GID_SHARED(Row, row);
  row.value[threadIdx.x] = in[threadIdx.x];
  __shfl_xor_sync(0xffffffffu, 0, 1);
  if constexpr (kSync) __syncwarp();
  out[threadIdx.x] = row.value[threadIdx.x ^ 1];
}

using Kernel = void (*)(const float*, float*);

struct Lesson {
  const char* name;
  Kernel kernel;
  unsigned blocks;
};

constexpr Lesson kLessons[] = {
    {"reverse", reverse_kernel<true>, 1},
    {"reverse_without_barrier", reverse_kernel<false>, 1},
    {"reverse_twice", reverse_twice_kernel<true>, 1},
    {"reverse_twice_without_barrier", reverse_twice_kernel<false>, 1},
    {"sum", sum_kernel<true>, 4},
    {"sum_without_atomic", sum_kernel<false>, 4},
    {"divergent", divergent_kernel, 1},
    {"absent", absent_kernel, 1},
    {"masks", masks_kernel, 1},
    {"out_of_bounds", out_of_bounds_kernel, 1},
    {"misaligned", misaligned_kernel, 1},
    {"large", large_kernel, 1},
    {"shared_bounds", shared_bounds_kernel, 1},
    {"two_barriers", two_barriers_kernel, 1},
    {"source", source_kernel, 1},
    {"warp", warp_kernel<true>, 1},
    {"warp_with_shuffle_alone", warp_kernel<false>, 1},
};

}  // namespace

SIMT_ENTRY(run_lesson)(uint64_t seed, const char* name, const float* in, float* out) {
  return simt::guarded([&] {
    for (const Lesson& lesson : kLessons) {
      if (lesson.name == std::string_view(name)) {
        simt::Launch{seed}(lesson.kernel, dim3(lesson.blocks), dim3(64), in, out);
        return;
      }
    }
    throw std::invalid_argument("no such lesson");
  });
}
