// topk_nms: exact greedy NMS that never orders all boxes. Three kernels.
//
// 1. Many blocks an image count the leading bits of all scores' sorting keys.
// 2. Many blocks an image list the boxes from the top whose number, by that count, fits into the list, leaving out what
//    may not be chosen. So only their boxes are read, and all else reads 4 bytes a box twice.
// 3. One block an image goes down the list in stretches of a box a thread: a radix selection finds where the stretch
//    ends, its ranks are gathered, sorted and gone through. It ends with k survivors, mostly within the first stretch;
//    how far it has to go is decided on the device. Where the list does not suffice, or one bin of the count was larger
//    than it, the block fills it again with what follows, by the same selection over all scores.
#pragma once

#include "cuda/topk_nms_order.cuh"

namespace gid {

constexpr int kScoresABlock = 8192;
constexpr int kNmsList = 16384;    // ranks
constexpr int kEnough = 256;       // a stretch with so many boxes is not refined further
constexpr int kLazyStretches = 2;  // after so many, what the kept boxes suppress is struck off the list first

GID_HD int score_blocks_an_image(int count) { return ceil_div(count, kScoresABlock); }

// What a block of the first two kernels looks at.
__device__ __forceinline__ ScoreRanks ranks_of_block(const TopkNmsArgs& args, int64_t b, int part) {
  const int begin = part * kScoresABlock, end = args.count - begin < kScoresABlock ? args.count : begin + kScoresABlock;
  return {args, args.scores + b * args.count, begin, end};
}

__global__ void __launch_bounds__(kNmsThreads) topk_nms_count_kernel(const __grid_constant__ TopkNmsArgs args) {
  GID_SHARED(Selection, shared);
  const int blocks = score_blocks_an_image(args.count);
  const int64_t b = blockIdx.x / blocks;
  for (int bin = threadIdx.x; bin < kBins; bin += kNmsThreads) shared.histogram[bin] = 0;
  __syncthreads();
  const int shift = 32 + args.index_bits - kDigitBits;
  ranks_of_block(args, b, int(blockIdx.x % blocks))([&](uint64_t rank, int) {
    count_bin(shared.histogram, int(rank >> shift), rank != 0);
  });
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += kNmsThreads) {
    if (shared.histogram[bin]) atomicAdd(&args.histogram[b * kBins + bin], shared.histogram[bin]);
  }
}

// The lowest rank that the second kernel lists. All threads; ends with a barrier.
__device__ __forceinline__ uint64_t lowest_listed(const TopkNmsArgs& args, int64_t b, Selection& shared) {
  for (int bin = threadIdx.x; bin < kBins; bin += kNmsThreads) {
    shared.histogram[bin] = args.histogram[b * kBins + bin];
  }
  __syncthreads();
  find_pivot(shared, args.list_size);
  return uint64_t(shared.pivot + 1) << (32 + args.index_bits - kDigitBits);
}

__global__ void __launch_bounds__(kNmsThreads) topk_nms_list_kernel(const __grid_constant__ TopkNmsArgs args) {
  GID_SHARED(Selection, shared);
  const int blocks = score_blocks_an_image(args.count);
  const int64_t b = blockIdx.x / blocks;
  const uint64_t lower = lowest_listed(args, b, shared);
  const ScoreRanks ranks = ranks_of_block(args, b, int(blockIdx.x % blocks));
  ranks([&](uint64_t rank, int index) {
    bool takes = rank != 0 && rank >= lower;
    if (takes) takes = is_usable(args.boxes[b * args.count + index], ranks.scores[index], args.min_size);
    append(args.list + b * args.list_size, &args.listed[b], rank, takes);
  });
}

struct NmsPiece {
  Box boxes[kNmsThreads];
  int64_t groups[kNmsThreads];
};

struct NmsShared {
  union {
    Selection selection;  // while a stretch is selected
    NmsPiece piece;       // while it is gone through
  };
  uint64_t order[kNmsThreads];
  unsigned alive[2][kNmsWarps];  // one bit a box of the piece
  int gathered;
};

// One image, as all threads of its block see it.
struct NmsImage {
  const Box* boxes;
  const int64_t* groups;  // or null
  uint64_t* list;
  Box* kept_boxes;
  int64_t* kept_groups;
  int kept = 0;     // boxes chosen
  int applied = 0;  // of these, how many have struck off the list what they suppress
};

// Do the kept boxes from image.applied on suppress this one?
__device__ __forceinline__ bool is_suppressed(const TopkNmsArgs& args, const NmsImage& image, Box box, int64_t group) {
  const float box_area = area(box);
  for (int j = image.applied; j < image.kept; ++j) {
    if (image.groups && image.kept_groups[j] != group) continue;
    const Box other = image.kept_boxes[j];
    if (iou(other, area(other), box, box_area) > args.iou_threshold) return true;
  }
  return false;
}

// Puts the stretch's ranks for which `takes` holds into `to`, in no order, and returns how many they are. All threads;
// ends with a barrier.
template <typename Ranks, typename Takes>
__device__ __forceinline__ int gather(
    NmsShared& shared, const Ranks& ranks, uint64_t lower, uint64_t upper, uint64_t* to, const Takes& takes) {
  if (threadIdx.x == 0) shared.gathered = 0;
  __syncthreads();
  ranks([&](uint64_t rank, int) {
    append(to, &shared.gathered, rank, rank != 0 && rank >= lower && rank < upper && takes(rank));
  });
  __syncthreads();
  return shared.gathered;
}

// Fills the list with what follows below `upper`, but for what may not be chosen or is suppressed by now: its size goes
// to `size`, the lowest rank that it could hold is returned. All threads, after a barrier; ends with one.
__device__ __forceinline__ uint64_t fill_list(
    const TopkNmsArgs& args, NmsImage& image, NmsShared& shared, uint64_t upper, int& size) {
  const ScoreRanks ranks = {args, args.scores + int64_t(blockIdx.x) * args.count, 0, args.count};
  const Stretch stretch = select_stretch(args, shared.selection, ranks, upper, args.list_size, kNmsThreads);
  image.applied = 0;
  size = gather(shared, ranks, stretch.lower, upper, image.list, [&](uint64_t rank) {
    const int index = index_of(args, rank);
    return is_usable(image.boxes[index], ranks.scores[index], args.min_size) &&
           !is_suppressed(args, image, image.boxes[index], image.groups ? image.groups[index] : 0);
  });
  image.applied = image.kept;
  return stretch.lower;
}

// Takes the boxes below `upper` that the kept ones suppress off the list.
__device__ __forceinline__ void strike_off(const TopkNmsArgs& args, NmsImage& image, int size, uint64_t upper) {
  ListRanks{image.list, size}([&](uint64_t rank, int slot) {
    if (rank == 0 || rank >= upper) return;
    const int index = index_of(args, rank);
    if (is_suppressed(args, image, image.boxes[index], image.groups ? image.groups[index] : 0)) image.list[slot] = 0;
  });
  image.applied = image.kept;
}

// The first of the piece's boxes that is alive, or -1. All threads; `turn` alternates between 0 and 1 from call to
// call, so that one barrier is enough: nobody writes what others may still read.
__device__ __forceinline__ int first_alive(NmsShared& shared, bool alive, int turn) {
  const int lane = threadIdx.x % kWarpSize;
  const unsigned own = __ballot_sync(kAllLanes, alive);
  if (lane == 0) shared.alive[turn][threadIdx.x / kWarpSize] = own;
  __syncthreads();
  const unsigned bits = shared.alive[turn][lane];
  const unsigned warps = __ballot_sync(kAllLanes, bits != 0);
  if (warps == 0) return -1;
  const int warp = __ffs(warps) - 1;
  return warp * kWarpSize + __ffs(__shfl_sync(kAllLanes, bits, warp)) - 1;
}

// Greedy NMS over boxes in the order of their ranks, one a thread, until k are kept. All threads, after a barrier; ends
// with one.
__device__ __forceinline__ void go_through(
    const TopkNmsArgs& args, NmsImage& image, NmsShared& shared, uint64_t rank) {
  const int own = threadIdx.x;
  bool alive = rank != 0;
  int index = 0;
  int64_t group = 0;
  Box box = {};
  if (alive) {
    index = index_of(args, rank);
    box = image.boxes[index];
    if (image.groups) group = image.groups[index];
    alive = !is_suppressed(args, image, box, group);
  }
  shared.piece.boxes[own] = box;
  shared.piece.groups[own] = group;
  const float own_area = area(box);
  for (int turn = 0; image.kept < args.k; turn ^= 1) {
    const int best = first_alive(shared, alive, turn);
    if (best < 0) break;
    if (own == best) {
      args.indices[int64_t(blockIdx.x) * args.k + image.kept] = index;
      image.kept_boxes[image.kept] = box;
      if (image.groups) image.kept_groups[image.kept] = group;
      alive = false;
    }
    ++image.kept;
    if (alive) {
      const Box other = shared.piece.boxes[best];
      const bool same_group = shared.piece.groups[best] == group;
      if (same_group && iou(other, area(other), box, own_area) > args.iou_threshold) alive = false;
    }
  }
  __syncthreads();  // the kept boxes are there for all to read, and the piece may be overwritten
}

// Greedy NMS over the list's ranks below `upper`. All threads, after a barrier; ends with one.
__device__ __forceinline__ void go_through_list(
    const TopkNmsArgs& args, NmsImage& image, NmsShared& shared, int size, uint64_t upper) {
  const ListRanks ranks = {image.list, size};
  for (int number = 0; image.kept < args.k; ++number) {
    if (number >= kLazyStretches) strike_off(args, image, size, upper);
    const Stretch stretch = select_stretch(args, shared.selection, ranks, upper, kNmsThreads, kEnough);
    if (stretch.size == 0) return;
    gather(shared, ranks, stretch.lower, upper, shared.order, [](uint64_t) { return true; });
    go_through(args, image, shared, sort_descending(shared.order, stretch.size));
    upper = stretch.lower;
  }
}

__global__ void __launch_bounds__(kNmsThreads) topk_nms_choose_kernel(const __grid_constant__ TopkNmsArgs args) {
  GID_SHARED(NmsShared, shared);
  const int64_t b = blockIdx.x;
  NmsImage image = {
      args.boxes + b * args.count,
      args.groups ? args.groups + b * args.count : nullptr,
      args.list + b * args.list_size,
      args.kept_boxes + b * args.kept_pitch,
      args.groups ? args.kept_groups + b * args.kept_pitch : nullptr,
  };
  uint64_t upper = uint64_t(1) << (32 + args.index_bits), lower = lowest_listed(args, b, shared.selection);
  int size = args.listed[b];
  for (;;) {
    go_through_list(args, image, shared, size, upper);
    if (image.kept >= args.k || lower == 0) break;
    upper = lower;
    lower = fill_list(args, image, shared, upper, size);
  }
  for (int slot = image.kept + int(threadIdx.x); slot < args.k; slot += kNmsThreads) {
    args.indices[b * args.k + slot] = -1;
  }
  if (threadIdx.x == 0) args.counts[b] = image.kept;
}

template <typename Launch>
void launch_topk_nms(const Launch& launch, TopkNmsArgs args) {
  if (args.images == 0) return;
  args.index_bits = 0;
  while (args.count >> args.index_bits) ++args.index_bits;
  if (args.count > 0) {
    const int64_t blocks = int64_t(score_blocks_an_image(args.count)) * args.images;
    // Where all fits into the list, the count is not needed: one of nothing says so.
    if (args.count > args.list_size) launch(topk_nms_count_kernel, grid_of(blocks), dim3(kNmsThreads), args);
    launch(topk_nms_list_kernel, grid_of(blocks), dim3(kNmsThreads), args);
  }
  launch(topk_nms_choose_kernel, grid_of(args.images), dim3(kNmsThreads), args);
}

}  // namespace gid
