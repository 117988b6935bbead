// match_anchors: first the best overlap that each box has with any anchor, then what each anchor is for. Both passes
// work out the same overlaps by the same function, bit for bit, so that no matrix of them is kept. Neighbouring anchors
// lie side by side: a warp passes over a box that none of its anchors touches.
#pragma once

#include "common/boxes.h"
#include "cuda/device.cuh"

namespace gid {

constexpr int kMatchThreads = 256;
constexpr int kAnchorsAThread = 4;
constexpr int kAnchorsABlock = kMatchThreads * kAnchorsAThread;
constexpr int kBoxesAChunk = kMatchThreads;  // held in shared memory at a time

struct MatchAnchorsArgs {
  const Box* boxes;       // (B, N)
  const int64_t* counts;  // (B,) or null
  const Box* anchors;     // (R,)
  unsigned* best;         // workspace (B, N), zeros: bits of each box's best IoU; null without low-quality matches
  int64_t* matched;       // (B, R)
  int64_t images, count;
  int slots;
  float high, low;
  unsigned blocks;  // of an image; set by the launch
};

constexpr int64_t kBackgroundAnchor = -1, kLeftOutAnchor = -2;

struct MatchShared {
  Box boxes[kBoxesAChunk];
  float areas[kBoxesAChunk];
  unsigned best[kBoxesAChunk];  // bits of floats that are not negative: as integers they have the same order
};

// Four anchors of a thread. Those of a warp are neighbours; where there are no more, boxes of no size stand in.
struct MatchAnchors {
  Box boxes[kAnchorsAThread];
  float areas[kAnchorsAThread];
  int64_t first;  // the number of the thread's first; the next are a warp's size apart

  __device__ __forceinline__ explicit MatchAnchors(const MatchAnchorsArgs& args, int64_t block) {
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    first = block * kAnchorsABlock + warp * (kWarpSize * kAnchorsAThread) + lane;
#pragma unroll
    for (int i = 0; i < kAnchorsAThread; ++i) {
      boxes[i] = number(i) < args.count ? args.anchors[number(i)] : Box{};
      areas[i] = area(boxes[i]);
    }
  }

  __device__ __forceinline__ int64_t number(int i) const { return first + i * kWarpSize; }

  // Where this is false for all the IoU is 0.
  __device__ __forceinline__ bool may_touch(Box box) const {
    bool touches = false;
#pragma unroll
    for (int i = 0; i < kAnchorsAThread; ++i) {
      const Box own = boxes[i];
      touches |= (own.x1 < box.x2) & (box.x1 < own.x2) & (own.y1 < box.y2) & (box.y1 < own.y2);
    }
    return touches;
  }

  __device__ __forceinline__ float iou_with(const MatchShared& shared, int box, int i) const {
    return iou(shared.boxes[box], shared.areas[box], boxes[i], areas[i]);
  }
};

// Calls start(first, size) and, between two barriers, for_box(first, n) for the boxes first + n that touch one of the
// warp's anchors; then end(first, size). All threads of the block.
template <typename Start, typename ForBox, typename End>
__device__ __forceinline__ void for_each_box(
    const MatchAnchorsArgs& args, int64_t image, int filled, MatchShared& shared, const MatchAnchors& anchors,
    const Start& start, const ForBox& for_box, const End& end) {
  for (int first = 0; first < filled; first += kBoxesAChunk) {
    const int size = filled - first < kBoxesAChunk ? filled - first : kBoxesAChunk, own = threadIdx.x;
    __syncthreads();  // the boxes before have been used
    if (own < size) {
      shared.boxes[own] = args.boxes[image * args.slots + first + own];
      shared.areas[own] = area(shared.boxes[own]);
      shared.best[own] = start(first + own);
    }
    __syncthreads();
    for (int n = 0; n < size; ++n) {
      if (__any_sync(kAllLanes, anchors.may_touch(shared.boxes[n]))) for_box(first, n);
    }
    end(first, size);
  }
}

// -1 for an image without labels.
__device__ __forceinline__ int match_filled(const MatchAnchorsArgs& args, int64_t image) {
  if (!args.counts || args.counts[image] > args.slots) return args.slots;
  return args.counts[image] < 0 ? -1 : int(args.counts[image]);
}

// A block: some anchors, all boxes of one image.
__global__ void __launch_bounds__(kMatchThreads) match_best_kernel(const __grid_constant__ MatchAnchorsArgs args) {
  GID_SHARED(MatchShared, shared);
  const int64_t image = blockIdx.x / args.blocks;
  const MatchAnchors anchors(args, blockIdx.x % args.blocks);
  for_each_box(
      args, image, match_filled(args, image), shared, anchors, [](int) { return 0u; },
      [&](int, int n) {
        float best = 0.0f;
#pragma unroll
        for (int i = 0; i < kAnchorsAThread; ++i) best = fmaxf(best, anchors.iou_with(shared, n, i));
        for (int bit = kWarpSize / 2; bit > 0; bit /= 2) best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, bit));
        if (threadIdx.x % kWarpSize == 0) atomicMax(&shared.best[n], float_to_bits(best));
      },
      [&](int first, int size) {
        __syncthreads();  // all warps have had their say
        const int own = threadIdx.x;
        if (own < size && shared.best[own] > 0) atomicMax(&args.best[image * args.slots + first + own], shared.best[own]);
      });
}

__global__ void __launch_bounds__(kMatchThreads) match_anchors_kernel(const __grid_constant__ MatchAnchorsArgs args) {
  GID_SHARED(MatchShared, shared);
  const int64_t image = blockIdx.x / args.blocks;
  const int filled = match_filled(args, image);
  const MatchAnchors anchors(args, blockIdx.x % args.blocks);
  float best[kAnchorsAThread] = {};
  int index[kAnchorsAThread] = {};
  bool is_best_of_a_box[kAnchorsAThread] = {};
  for_each_box(
      args, image, filled, shared, anchors,
      [&](int n) { return args.best ? args.best[image * args.slots + n] : 0u; },
      [&](int first, int n) {
        const float best_of_box = bits_to_float(shared.best[n]);
#pragma unroll
        for (int i = 0; i < kAnchorsAThread; ++i) {
          const float overlap = anchors.iou_with(shared, n, i);
          is_best_of_a_box[i] |= (overlap > 0.0f) & (overlap == best_of_box);
          if (overlap > best[i]) {  // the first of equals stays
            best[i] = overlap;
            index[i] = first + n;
          }
        }
      },
      [](int, int) {});
#pragma unroll
  for (int i = 0; i < kAnchorsAThread; ++i) {
    if (anchors.number(i) >= args.count) continue;
    int64_t match = best[i] >= args.low ? kLeftOutAnchor : kBackgroundAnchor;
    if (best[i] >= args.high || is_best_of_a_box[i]) match = index[i];
    if (filled <= 0) match = filled < 0 ? kLeftOutAnchor : kBackgroundAnchor;
    args.matched[image * args.count + anchors.number(i)] = match;
  }
}

template <typename Launch>
void launch_match_anchors(const Launch& launch, MatchAnchorsArgs args) {
  const int64_t blocks = ceil_div<int64_t>(args.count, kAnchorsABlock);
  if (args.images * blocks == 0) return;
  args.blocks = unsigned(blocks);
  const dim3 grid = grid_of(args.images * blocks);
  if (args.best && args.slots > 0) launch(match_best_kernel, grid, dim3(kMatchThreads), args);
  launch(match_anchors_kernel, grid, dim3(kMatchThreads), args);
}

}  // namespace gid
