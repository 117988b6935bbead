// pairwise_distance and its gradient. The vectors are long and few (10 of 25,600 elements an image), so their length is
// split between blocks; partial sums meet in a second, small kernel, in a fixed order.
#pragma once

#include "cuda/device.cuh"

namespace gid {

constexpr int kPairThreads = 256;
constexpr int kPairWarps = kPairThreads / kWarpSize;
constexpr int kPairsABlock = 64;
constexpr int kChunk = 1024;  // elements of a vector that one warp sums

template <typename T>
struct PairwiseArgs {
  const T* x;             // (B, K, D), 16-byte aligned
  const int64_t* counts;  // (B,) or null
  float* partial;         // workspace (B, pairs, chunks): sums of squares
  float* distances;       // (B, K, K)
  int images, slots;
  int64_t length;
};

GID_HD int64_t pair_count(int slots) { return int64_t(slots) * (slots - 1) / 2; }
GID_HD int64_t chunk_count(int64_t length) { return ceil_div<int64_t>(length, kChunk); }

// Pairs i < j are numbered (0,1), (0,2), (1,2), (0,3), ...
GID_HD int64_t pair_number(int i, int j) { return int64_t(j) * (j - 1) / 2 + i; }

__device__ __forceinline__ void pair_of(int64_t number, int& i, int& j) {
  int64_t high = int64_t((1.0f + sqrtf(1.0f + 8.0f * float(number))) / 2.0f);
  while (high * (high - 1) / 2 > number) --high;  // the square root is only nearly right
  while (high * (high + 1) / 2 <= number) ++high;
  j = int(high);
  i = int(number - high * (high - 1) / 2);
}

__device__ __forceinline__ int filled_slots(const int64_t* counts, int image, int slots) {
  if (!counts || counts[image] > slots) return slots;
  return counts[image] < 0 ? 0 : int(counts[image]);
}

// The lane's part of the sum of (a - b)^2 over `length` elements.
template <typename T>
__device__ __forceinline__ float squared_distance(const T* a, const T* b, int length, bool aligned) {
  constexpr int kSize = Pack<T>::kSize;
  const int lane = threadIdx.x % kWarpSize;
  float sum = 0.0f;
  const int packs = aligned ? length / kSize : 0;
  for (int p = lane; p < packs; p += kWarpSize) {
    const Pack<T> x = load_pack(a + p * kSize), y = load_pack(b + p * kSize);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float difference = to_float(x.value[i]) - to_float(y.value[i]);
      sum = fmaf(difference, difference, sum);
    }
  }
  for (int d = packs * kSize + lane; d < length; d += kWarpSize) {
    const float difference = to_float(a[d]) - to_float(b[d]);
    sum = fmaf(difference, difference, sum);
  }
  return sum;
}

// A block: kPairsABlock pairs of one image, on one chunk of the length, which stays in its cache.
template <typename T>
__global__ void __launch_bounds__(kPairThreads) pairwise_partial_kernel(const __grid_constant__ PairwiseArgs<T> args) {
  const int64_t pairs = pair_count(args.slots), chunks = chunk_count(args.length);
  const int64_t groups = ceil_div<int64_t>(pairs, kPairsABlock);
  const int64_t chunk = blockIdx.x % chunks, group = blockIdx.x / chunks % groups;
  const int image = int(blockIdx.x / chunks / groups);
  const int filled = filled_slots(args.counts, image, args.slots);
  const T* x = args.x + int64_t(image) * args.slots * args.length + chunk * kChunk;
  const int64_t left = args.length - chunk * kChunk;
  const int length = int(left < kChunk ? left : kChunk);
  const bool aligned = args.length % Pack<T>::kSize == 0;
  for (int own = threadIdx.x / kWarpSize; own < kPairsABlock; own += kPairWarps) {
    const int64_t pair = group * kPairsABlock + own;
    if (pair >= pairs) break;
    int i, j;
    pair_of(pair, i, j);
    if (j >= filled) break;  // so are all pairs that follow
    const float sum = warp_sum(squared_distance(x + i * args.length, x + j * args.length, length, aligned));
    if (threadIdx.x % kWarpSize == 0) args.partial[(image * pairs + pair) * chunks + chunk] = sum;
  }
}

// One thread for each element of the result.
template <typename T>
__global__ void __launch_bounds__(kPairThreads) pairwise_finish_kernel(const __grid_constant__ PairwiseArgs<T> args) {
  const int64_t item = int64_t(blockIdx.x) * kPairThreads + threadIdx.x;
  const int64_t square = int64_t(args.slots) * args.slots;
  if (item >= args.images * square) return;
  const int image = int(item / square), a = int(item % square / args.slots), b = int(item % args.slots);
  const int low = a < b ? a : b, high = a < b ? b : a;
  float sum = 0.0f;
  if (low != high && high < filled_slots(args.counts, image, args.slots)) {
    const int64_t chunks = chunk_count(args.length);
    const float* partial = args.partial + (image * pair_count(args.slots) + pair_number(low, high)) * chunks;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk];
  }
  args.distances[item] = sqrtf(sum);
}

template <typename T, typename Launch>
void launch_pairwise_distance(const Launch& launch, const PairwiseArgs<T>& args) {
  const int64_t elements = int64_t(args.images) * args.slots * args.slots;
  if (elements == 0) return;
  const int64_t groups = ceil_div<int64_t>(pair_count(args.slots), kPairsABlock);
  const int64_t blocks = args.images * groups * chunk_count(args.length);
  if (blocks > 0) launch(pairwise_partial_kernel<T>, grid_of(blocks), dim3(kPairThreads), args);
  launch(pairwise_finish_kernel<T>, grid_of(ceil_div<int64_t>(elements, kPairThreads)), dim3(kPairThreads), args);
}

template <typename T>
struct PairwiseBackwardArgs {
  const float* grad;       // (B, K, K)
  const T* x;              // (B, K, D), 16-byte aligned
  const float* distances;  // (B, K, K)
  T* x_grad;               // (B, K, D), 16-byte aligned
  int images, slots;
  int64_t length;
};

struct PairwiseBackwardShared {
  float pull[kPairThreads];
};

// Blocks of one vector: each thread takes as many elements as a pack holds.
template <typename T>
GID_HD int64_t blocks_a_vector(int64_t length) {
  return ceil_div<int64_t>(length, kPairThreads * Pack<T>::kSize);
}

// Up to a pack's elements; those from `left` on are 0.
template <typename T>
__device__ __forceinline__ Pack<T> load_part(const T* address, int64_t left, bool aligned) {
  if (aligned && left >= Pack<T>::kSize) return load_pack(address);
  Pack<T> pack = {};
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    if (i < left) pack.value[i] = address[i];
  }
  return pack;
}

// x_grad[b, i] = sum over j of (grad[b, i, j] + grad[b, j, i]) / distance[b, i, j] * (x[b, i] - x[b, j]). Empty slots
// and the diagonal need no test of their own: their distances are 0, and so is the pull between them.
template <typename T>
__global__ void __launch_bounds__(kPairThreads)
    pairwise_backward_kernel(const __grid_constant__ PairwiseBackwardArgs<T> args) {
  GID_SHARED(PairwiseBackwardShared, shared);
  constexpr int kSize = Pack<T>::kSize;
  const int64_t blocks = blocks_a_vector<T>(args.length), row = blockIdx.x / blocks;
  const int64_t b = row / args.slots, i = row % args.slots;
  const int64_t d = (blockIdx.x % blocks * kPairThreads + threadIdx.x) * kSize, left = args.length - d;
  const bool aligned = args.length % kSize == 0;
  const Pack<T> own = load_part(args.x + row * args.length + d, left, aligned);
  float sums[kSize] = {};
  for (int first = 0; first < args.slots; first += kPairThreads) {
    const int j = first + int(threadIdx.x);
    __syncthreads();  // the pulls before have been used
    if (j < args.slots) {
      const float distance = args.distances[row * args.slots + j];
      const float both = args.grad[row * args.slots + j] + args.grad[(b * args.slots + j) * args.slots + i];
      shared.pull[threadIdx.x] = distance == 0.0f ? 0.0f : both / distance;
    }
    __syncthreads();
    const int count = args.slots - first < kPairThreads ? args.slots - first : kPairThreads;
    for (int other = 0; other < count && left > 0; ++other) {
      const float pull = shared.pull[other];
      if (pull == 0.0f) continue;
      const Pack<T> x = load_part(args.x + (b * args.slots + first + other) * args.length + d, left, aligned);
#pragma unroll
      for (int e = 0; e < kSize; ++e) sums[e] = fmaf(pull, to_float(own.value[e]) - to_float(x.value[e]), sums[e]);
    }
  }
  T* out = args.x_grad + row * args.length + d;
  if (aligned && left >= kSize) {
    Pack<T> pack;
#pragma unroll
    for (int e = 0; e < kSize; ++e) pack.value[e] = from_float<T>(sums[e]);
    store_pack(out, pack);
  } else {
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      if (e < left) out[e] = from_float<T>(sums[e]);
    }
  }
}

template <typename T, typename Launch>
void launch_pairwise_distance_backward(const Launch& launch, const PairwiseBackwardArgs<T>& args) {
  const int64_t blocks = int64_t(args.images) * args.slots * blocks_a_vector<T>(args.length);
  if (blocks > 0) launch(pairwise_backward_kernel<T>, grid_of(blocks), dim3(kPairThreads), args);
}

}  // namespace gid
