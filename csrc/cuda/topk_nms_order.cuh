// topk_nms: the order of an image's boxes, and how to take some from its top without sorting the rest.
//
// A box's rank is its score's 32-bit sorting key, then its index reversed, as one number of 32 + index_bits bits: no
// two are equal, so it does not matter in which order threads gather them. 0 is no box.
#pragma once

#include "common/boxes.h"
#include "cuda/device.cuh"

namespace gid {

constexpr int kNmsThreads = 1024;
constexpr int kNmsWarps = kNmsThreads / kWarpSize;
constexpr int kDigitBits = 12;
constexpr int kBins = 1 << kDigitBits;
constexpr int kBinsAThread = kBins / kNmsThreads;
constexpr int kScoresAtOnce = 4;  // loads that a thread has on their way

static_assert(kNmsWarps == kWarpSize, "one lane for each warp of the block");

struct TopkNmsArgs {
  const Box* boxes;       // (B, R), 16-byte aligned
  const float* scores;    // (B, R)
  const int64_t* groups;  // (B, R) or null
  int64_t* indices;       // (B, k)
  int64_t* counts;        // (B,)
  int* histogram;         // workspace (B, kBins), zero before the launch
  int* listed;            // workspace (B,), zero before the launch: ranks in the list
  uint64_t* list;         // workspace (B, list_size): ranks, in no order
  Box* kept_boxes;        // workspace (B, kept_pitch)
  int64_t* kept_groups;   // workspace (B, kept_pitch), or null where groups is
  int images, count;
  int list_size;   // at least 1
  int k;
  int kept_pitch;  // min(k, R)
  int index_bits;  // set by launch_topk_nms
  float iou_threshold, min_size;
};

// Where a stretch of the order ends, and how many ranks it has.
struct Stretch {
  uint64_t lower;
  int size;
};

__device__ __forceinline__ uint64_t rank_of(const TopkNmsArgs& args, float score, int index) {
  return is_finite(score) ? uint64_t(score_key(score)) << args.index_bits | uint64_t(args.count - 1 - index) : 0;
}

__device__ __forceinline__ int index_of(const TopkNmsArgs& args, uint64_t rank) {
  return args.count - 1 - int(rank & ((uint64_t(1) << args.index_bits) - 1));
}

// Sources of ranks: each calls visit(rank, slot) for all of them; all threads together, as often each, with rank 0
// where a thread has none. A thread visits the same slots every time.

// The boxes begin ... end - 1 of an image, whether NMS may choose them or not: that is looked at when they are taken.
struct ScoreRanks {
  const TopkNmsArgs& args;
  const float* scores;  // of the image
  int begin, end;

  template <typename Visit>
  __device__ __forceinline__ void operator()(const Visit& visit) const {
    for (int base = begin; base < end; base += kNmsThreads * kScoresAtOnce) {
      float own[kScoresAtOnce];
#pragma unroll
      for (int i = 0; i < kScoresAtOnce; ++i) {
        const int index = base + i * kNmsThreads + int(threadIdx.x);
        own[i] = index < end ? scores[index] : INFINITY;
      }
#pragma unroll
      for (int i = 0; i < kScoresAtOnce; ++i) {
        const int index = base + i * kNmsThreads + int(threadIdx.x);
        visit(rank_of(args, own[i], index), index);
      }
    }
  }
};

struct ListRanks {
  const uint64_t* list;
  int size;

  template <typename Visit>
  __device__ __forceinline__ void operator()(const Visit& visit) const {
    for (int base = 0; base < size; base += kNmsThreads) {
      const int slot = base + int(threadIdx.x);
      visit(slot < size ? list[slot] : 0, slot);
    }
  }
};

// Adds one to histogram[bin] for every lane with `counts`. All 32 lanes must call. Where they agree on the bin, as with
// many equal scores, one of them adds for all: 32 atomics on one address would queue.
__device__ __forceinline__ void count_bin(int* histogram, int bin, bool counts) {
  const unsigned counting = __ballot_sync(kAllLanes, counts);
  if (counting == 0) return;
  const int leader = __ffs(counting) - 1;
  const int leaders_bin = __shfl_sync(kAllLanes, bin, leader);
  if (__ballot_sync(kAllLanes, counts && bin == leaders_bin) == counting) {
    if (int(threadIdx.x % kWarpSize) == leader) atomicAdd(&histogram[bin], __popc(counting));
  } else if (counts) {
    atomicAdd(&histogram[bin], 1);
  }
}

// Puts the rank into the list and counts it, for every lane with `takes`. All 32 lanes must call.
__device__ __forceinline__ void append(uint64_t* list, int* count, uint64_t rank, bool takes) {
  const unsigned taking = __ballot_sync(kAllLanes, takes);
  if (taking == 0) return;
  const int lane = threadIdx.x % kWarpSize;
  int start = lane == 0 ? atomicAdd(count, __popc(taking)) : 0;
  start = __shfl_sync(kAllLanes, start, 0);
  if (takes) list[start + __popc(taking & ((1u << lane) - 1))] = rank;
}

struct Selection {
  int histogram[kBins];
  int warp_sums[kNmsWarps];
  int pivot, above;  // of find_pivot
};

// Finds the bin at which the running sum from the top bin down first exceeds `room`, and the sum above that bin, into
// shared.pivot and shared.above; pivot -1 where all fits. All threads; ends with a barrier.
__device__ __forceinline__ void find_pivot(Selection& shared, int room) {
  const int top = kBins - 1 - int(threadIdx.x) * kBinsAThread;
  int own = 0;
#pragma unroll
  for (int i = 0; i < kBinsAThread; ++i) own += shared.histogram[top - i];
  int sum = block_exclusive_sum(own, shared.warp_sums);
#pragma unroll
  for (int i = 0; i < kBinsAThread; ++i) {
    const int next = sum + shared.histogram[top - i];
    if (sum <= room && next > room) {
      shared.pivot = top - i;
      shared.above = sum;
    }
    sum = next;
  }
  if (threadIdx.x == kNmsThreads - 1 && sum <= room) {
    shared.pivot = -1;
    shared.above = sum;
  }
  __syncthreads();
}

// Selects the ranks from `lower` up to, without, `upper`: at most `room`, at least `enough` where there are so many.
// Digit by digit from the top: whole bins are taken while they fit, the one that does not is looked at more closely,
// which reads all ranks once more, unless there are enough. All threads, after a barrier; ends with one.
template <typename Ranks>
__device__ __forceinline__ Stretch select_stretch(
    const TopkNmsArgs& args, Selection& shared, const Ranks& ranks, uint64_t upper, int room, int enough) {
  Stretch stretch = {0, 0};
  uint64_t prefix = 0;                     // the bits that the pivots so far have fixed
  int above_shift = 32 + args.index_bits;  // and where they end
  for (;;) {
    const int shift = above_shift > kDigitBits ? above_shift - kDigitBits : 0;
    const unsigned digit_mask = (1u << (above_shift - shift)) - 1;
    for (int bin = threadIdx.x; bin < kBins; bin += kNmsThreads) shared.histogram[bin] = 0;
    __syncthreads();
    ranks([&](uint64_t rank, int) {
      const bool counts = rank != 0 && rank < upper && rank >> above_shift == prefix;
      count_bin(shared.histogram, int(unsigned(rank >> shift) & digit_mask), counts);
    });
    __syncthreads();
    find_pivot(shared, room - stretch.size);
    const int pivot = shared.pivot;
    stretch.size += shared.above;
    prefix <<= above_shift - shift;
    stretch.lower = (prefix + uint64_t(pivot + 1)) << shift;
    if (pivot < 0 || stretch.size >= enough || shift == 0) return stretch;
    prefix += uint64_t(pivot);
    above_shift = shift;
  }
}

// Sorts the first `size` of order (kNmsThreads): thread i gets the i-th largest, or 0 beyond them. Bitonic, one rank a
// thread: partners in a warp shuffle, the others meet in `order`. All threads, after a barrier.
__device__ __forceinline__ uint64_t sort_descending(uint64_t* order, int size) {
  const int thread = threadIdx.x;
  uint64_t own = thread < size ? order[thread] : 0;
  for (int run = 2; run / 2 < size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      uint64_t other;
      if (distance < kWarpSize) {
        other = __shfl_xor_sync(kAllLanes, own, distance);
      } else {
        order[thread] = own;
        __syncthreads();
        other = order[thread ^ distance];
        __syncthreads();
      }
      const bool takes_larger = ((thread & distance) == 0) == ((thread & run) == 0);
      own = takes_larger == (own > other) ? own : other;
    }
  }
  return own;
}

}  // namespace gid
