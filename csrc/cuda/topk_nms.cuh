// topk_nms: exact greedy NMS that never orders all boxes. Two kernels.
//
// 1. Many blocks an image: every box gets a 32-bit sorting key (0: may not be chosen), and the keys' leading bits are
//    counted.
// 2. One block an image goes down the order in stretches of up to kStretch boxes: a radix selection finds where the
//    stretch ends, the boxes above are gathered, sorted in shared memory, and gone through in pieces of one box a
//    thread. It ends with k survivors, mostly within the first stretch; how far it has to go is decided on the device.
//
// Boxes are ordered by (key, -index), as one number of 32 + index_bits bits: no two are equal, so the order in which
// threads gather them does not matter.
#pragma once

#include "common/boxes.h"
#include "cuda/device.cuh"

namespace gid {

constexpr int kKeyThreads = 256;
constexpr int kBoxesAKeyBlock = 4096;
constexpr int kNmsThreads = 1024;
constexpr int kNmsWarps = kNmsThreads / kWarpSize;
constexpr int kStretch = 2048;
constexpr int kEnough = 512;  // a stretch with so many boxes is not refined further: each refinement reads all keys
constexpr int kDigitBits = 12;
constexpr int kBins = 1 << kDigitBits;
constexpr int kBinsAThread = kBins / kNmsThreads;
constexpr int kLazyStretches = 2;  // after so many, what the kept boxes suppress is struck off the list first

static_assert(kNmsWarps == kWarpSize, "one lane for each warp of the block");

struct TopkNmsArgs {
  const Box* boxes;       // (B, R), 16-byte aligned
  const float* scores;    // (B, R)
  const int64_t* groups;  // (B, R) or null
  int64_t* indices;       // (B, k)
  int64_t* counts;        // (B,)
  uint32_t* keys;         // workspace (B, pitch), 16-byte aligned
  int* histogram;         // workspace (B, kBins), zero before the launch
  Box* kept_boxes;        // workspace (B, kept_pitch)
  int64_t* kept_groups;   // workspace (B, kept_pitch), or null where groups is
  int images, count;
  int pitch;       // topk_nms_pitch(count)
  int k;
  int kept_pitch;  // min(k, R)
  float iou_threshold, min_size;
};

// Keys an image: R made a multiple of four, so that every image's keys can be read in packs.
inline int topk_nms_pitch(int count) { return ceil_div(count, 4) * 4; }

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

struct KeyShared {
  int histogram[kBins];
};

__global__ void __launch_bounds__(kKeyThreads) topk_nms_keys_kernel(const __grid_constant__ TopkNmsArgs args) {
  GID_SHARED(KeyShared, shared);
  for (int bin = threadIdx.x; bin < kBins; bin += kKeyThreads) shared.histogram[bin] = 0;
  __syncthreads();
  const int blocks_an_image = ceil_div(args.pitch, kBoxesAKeyBlock);
  const int64_t b = blockIdx.x / blocks_an_image;
  const int first = int(blockIdx.x % blocks_an_image) * kBoxesAKeyBlock;
  for (int i = 0; i < kBoxesAKeyBlock; i += kKeyThreads) {
    const int64_t r = int64_t(first) + i + threadIdx.x;
    uint32_t key = 0;
    if (r < args.count) {
      const float score = args.scores[b * args.count + r];
      if (is_usable(args.boxes[b * args.count + r], score, args.min_size)) key = score_key(score);
    }
    if (r < args.pitch) args.keys[b * args.pitch + r] = key;
    count_bin(shared.histogram, int(key >> (32 - kDigitBits)), key != 0);
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += kKeyThreads) {
    if (shared.histogram[bin]) atomicAdd(&args.histogram[b * kBins + bin], shared.histogram[bin]);
  }
}

struct NmsPiece {
  Box boxes[kNmsThreads];
  int64_t groups[kNmsThreads];
};

struct NmsShared {
  union {
    int histogram[kBins];  // while a stretch is selected
    NmsPiece piece;        // while it is gone through
  };
  uint64_t order[kStretch];
  unsigned alive[2][kNmsWarps];  // one bit a box of the piece
  int warp_sums[kNmsWarps];
  int pivot, above;  // of find_pivot
  int gathered;
};

// One image, as all threads of its block see it.
struct NmsImage {
  const Box* boxes;
  const int64_t* groups;  // or null
  uint32_t* keys;
  Box* kept_boxes;
  int64_t* kept_groups;
  int index_bits;
  int kept = 0;     // boxes chosen
  int applied = 0;  // of these, how many have struck off the list what they suppress
};

// Calls visit(key, index) for all keys of the image; all threads together, as often each. A thread sees the same keys
// every time, so it may change them.
template <typename Visit>
__device__ __forceinline__ void for_each_key(const TopkNmsArgs& args, const NmsImage& image, const Visit& visit) {
  const int packs = args.pitch / 4;
  for (int base = 0; base < packs; base += kNmsThreads) {
    const int p = base + int(threadIdx.x);
    Pack<uint32_t> keys = {};
    if (p < packs) keys = load_pack(image.keys + int64_t(p) * 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) visit(keys.value[i], p * 4 + i);
  }
}

__device__ __forceinline__ uint64_t rank_of(const TopkNmsArgs& args, const NmsImage& image, uint32_t key, int index) {
  return uint64_t(key) << image.index_bits | uint64_t(args.count - 1 - index);
}

// Do the kept boxes from `first` on suppress this one?
__device__ __forceinline__ bool is_suppressed(
    const TopkNmsArgs& args, const NmsImage& image, int first, Box box, int64_t group) {
  const float box_area = area(box);
  for (int j = first; j < image.kept; ++j) {
    if (image.groups && image.kept_groups[j] != group) continue;
    const Box other = image.kept_boxes[j];
    if (iou(other, area(other), box, box_area) > args.iou_threshold) return true;
  }
  return false;
}

// Finds the bin at which the running sum from the top bin down first exceeds `room`, and the sum above that bin, into
// shared.pivot and shared.above; pivot -1 where all fits. All threads; ends with a barrier.
__device__ __forceinline__ void find_pivot(NmsShared& shared, int room) {
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

// Where a stretch ends, and how many boxes it has.
struct Stretch {
  uint64_t lower;
  int size;
};

// Selects the ranks from `lower` up to, without, `upper`: at most kStretch, at least kEnough where there are so many.
// Digit by digit from the top: whole bins are taken while they fit, the one that does not is looked at more closely.
__device__ __forceinline__ Stretch select_stretch(
    const TopkNmsArgs& args, NmsImage& image, NmsShared& shared, uint64_t upper, int number) {
  Stretch stretch = {0, 0};
  uint64_t prefix = 0;                      // the bits that the pivots so far have fixed
  int above_shift = 32 + image.index_bits;  // and where they end
  for (;;) {
    const int shift = above_shift > kDigitBits ? above_shift - kDigitBits : 0;
    const unsigned digit_mask = (1u << (above_shift - shift)) - 1;
    const bool first_digit = prefix == 0 && above_shift == 32 + image.index_bits;
    if (number == 0 && first_digit) {  // counted by the first kernel
      for (int bin = threadIdx.x; bin < kBins; bin += kNmsThreads) {
        shared.histogram[bin] = args.histogram[int64_t(blockIdx.x) * kBins + bin];
      }
    } else {
      for (int bin = threadIdx.x; bin < kBins; bin += kNmsThreads) shared.histogram[bin] = 0;
      __syncthreads();
      const bool strike_off = first_digit && number >= kLazyStretches;
      for_each_key(args, image, [&](uint32_t key, int index) {
        const uint64_t rank = rank_of(args, image, key, index);
        bool counts = key != 0 && rank < upper && rank >> above_shift == prefix;
        if (counts && strike_off &&
            is_suppressed(args, image, image.applied, image.boxes[index], image.groups ? image.groups[index] : 0)) {
          image.keys[index] = 0;
          counts = false;
        }
        count_bin(shared.histogram, int(unsigned(rank >> shift) & digit_mask), counts);
      });
      if (strike_off) image.applied = image.kept;
    }
    __syncthreads();
    find_pivot(shared, kStretch - stretch.size);
    const int pivot = shared.pivot;
    stretch.size += shared.above;
    prefix <<= above_shift - shift;
    stretch.lower = (prefix + uint64_t(pivot + 1)) << shift;
    if (pivot < 0 || stretch.size >= kEnough || shift == 0) return stretch;
    prefix += uint64_t(pivot);
    above_shift = shift;
  }
}

// Puts the stretch's ranks into shared.order, in no order, and fills up to a power of two with 0. Returns that power.
__device__ __forceinline__ int gather(
    const TopkNmsArgs& args, const NmsImage& image, NmsShared& shared, uint64_t upper, const Stretch& stretch) {
  if (threadIdx.x == 0) shared.gathered = 0;
  __syncthreads();
  for_each_key(args, image, [&](uint32_t key, int index) {
    const uint64_t rank = rank_of(args, image, key, index);
    const bool takes = key != 0 && rank < upper && rank >= stretch.lower;
    const unsigned taking = __ballot_sync(kAllLanes, takes);
    if (taking == 0) return;
    const int lane = threadIdx.x % kWarpSize;
    int start = lane == 0 ? atomicAdd(&shared.gathered, __popc(taking)) : 0;
    start = __shfl_sync(kAllLanes, start, 0);
    if (takes) shared.order[start + __popc(taking & ((1u << lane) - 1))] = rank;
  });
  int size = 1;
  while (size < stretch.size) size *= 2;
  for (int i = stretch.size + int(threadIdx.x); i < size; i += kNmsThreads) shared.order[i] = 0;
  __syncthreads();
  return size;
}

// Bitonic sort, descending; size is a power of two. Ends with a barrier.
__device__ __forceinline__ void sort_descending(uint64_t* order, int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      for (int i = threadIdx.x; i < size / 2; i += kNmsThreads) {
        const int low = 2 * i - (i & (distance - 1)), high = low + distance;
        const uint64_t a = order[low], b = order[high];
        if ((a < b) == ((low & run) == 0)) {
          order[low] = b;
          order[high] = a;
        }
      }
      __syncthreads();
    }
  }
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

// Greedy NMS over the sorted boxes shared.order[start ...], one for each thread, until k are kept.
__device__ __forceinline__ void go_through_piece(
    const TopkNmsArgs& args, NmsImage& image, NmsShared& shared, int start, int size) {
  const int own = threadIdx.x;
  bool alive = start + own < size;
  int64_t index = 0, group = 0;
  Box box = {};
  if (alive) {
    const uint64_t rank = shared.order[start + own];
    index = args.count - 1 - int64_t(rank & ((uint64_t(1) << image.index_bits) - 1));
    box = image.boxes[index];
    if (image.groups) group = image.groups[index];
    alive = !is_suppressed(args, image, image.applied, box, group);
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

__global__ void __launch_bounds__(kNmsThreads) topk_nms_select_kernel(const __grid_constant__ TopkNmsArgs args) {
  GID_SHARED(NmsShared, shared);
  const int64_t b = blockIdx.x;
  NmsImage image = {
      args.boxes + b * args.count,
      args.groups ? args.groups + b * args.count : nullptr,
      args.keys + b * args.pitch,
      args.kept_boxes + b * args.kept_pitch,
      args.groups ? args.kept_groups + b * args.kept_pitch : nullptr,
      32 - __clz(unsigned(args.count)),
  };
  uint64_t upper = uint64_t(1) << (32 + image.index_bits);
  for (int number = 0; image.kept < args.k; ++number) {
    const Stretch stretch = select_stretch(args, image, shared, upper, number);
    if (stretch.size == 0) break;
    const int padded = gather(args, image, shared, upper, stretch);
    sort_descending(shared.order, padded);
    for (int start = 0; start < stretch.size && image.kept < args.k; start += kNmsThreads) {
      go_through_piece(args, image, shared, start, stretch.size);
    }
    if (stretch.lower == 0) break;
    upper = stretch.lower;
  }
  for (int slot = image.kept + int(threadIdx.x); slot < args.k; slot += kNmsThreads) {
    args.indices[b * args.k + slot] = -1;
  }
  if (threadIdx.x == 0) args.counts[b] = image.kept;
}

template <typename Launch>
void launch_topk_nms(const Launch& launch, const TopkNmsArgs& args) {
  if (args.images == 0) return;
  if (args.count > 0) {
    const int64_t blocks = int64_t(ceil_div(args.pitch, kBoxesAKeyBlock)) * args.images;
    launch(topk_nms_keys_kernel, grid_of(blocks), dim3(kKeyThreads), args);
  }
  launch(topk_nms_select_kernel, grid_of(args.images), dim3(kNmsThreads), args);
}

}  // namespace gid
