// multilevel_roi_align and its gradient: all levels, images and boxes in one launch each, in whatever memory format the
// feature maps have.
//
// Forward: one thread for a bin and kChannels channels, so that a sample's place and weights are worked out once for
// all of them. Backward: the other way round, one thread for a feature cell and kChannels channels, which gathers what
// the boxes over it hold. Scattering with atomics would first have to clear the maps (for 16-bit types, float32 copies
// of them); gathering writes every cell once, in its own type, and sums in one order: the result is always the same.
#pragma once

#include "common/roi.h"
#include "cuda/device.cuh"

namespace gid {

constexpr int kRoiThreads = 256;
constexpr int kRoiBlocks = 3;  // a multiprocessor: 80 registers a thread; with the 64 that ptxas would choose it spills
constexpr int kChannels = 8;  // of a thread; a multiple of every Pack's size

template <typename T>
struct RoiMap {
  T* data;                             // (B, Ch, height, width)
  int64_t image, channel, row, column;  // elements from one to the next
  int height, width;
  float stride;  // pixels a cell
};

template <typename T>
struct RoiArgs {
  RoiMap<T> maps[kMaxLevels];     // features; backward: their gradients
  float thresholds[kMaxLevels];   // of roi_level
  int levels;
  const Box* boxes;               // (B, K), 16-byte aligned
  const int64_t* counts;          // (B,) or null
  T* pooled;                      // (B, K, Ch, P, P); backward: its gradient, which is only read
  int images, slots, channels, bins, sampling_ratio;
  bool aligned;
};

// May kChannels neighbouring channels of every map be read (or written) as packs?
template <typename T>
bool has_channel_packs(const RoiArgs<T>& args) {
  bool packs = args.channels % kChannels == 0;
  for (int l = 0; l < args.levels; ++l) {
    const RoiMap<T>& map = args.maps[l];
    packs = packs && map.channel == 1 && is_aligned(map.data) && map.image % kChannels == 0 &&
            map.row % kChannels == 0 && map.column % kChannels == 0;
  }
  return packs;
}

template <typename T>
GID_HD bool is_filled(const RoiArgs<T>& args, int image, int slot) {
  return !args.counts || slot < args.counts[image];
}

// sums[c] += weight * cell[c * stride] for the first `channels`. A weight of 0 reads nothing: no NaN comes from there.
template <typename T, bool kPacks>
__device__ __forceinline__ void add_cell(float (&sums)[kChannels], const T* cell, int64_t stride, int channels, float weight) {
  if (!(weight > 0.0f)) return;
  if constexpr (kPacks) {
#pragma unroll
    for (int start = 0; start < kChannels; start += Pack<T>::kSize) {
      const Pack<T> pack = load_pack(cell + start);
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; ++i) sums[start + i] = fmaf(weight, to_float(pack.value[i]), sums[start + i]);
    }
  } else {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (c < channels) sums[c] = fmaf(weight, to_float(cell[c * stride]), sums[c]);
    }
  }
}

// One bin of one box, from kChannels channels that start at `data`.
template <typename T, bool kPacks>
__device__ __forceinline__ void pool_bin(
    const RoiMap<T>& map, const T* data, const RoiAxis& rows, const RoiAxis& columns, int bin_row, int bin_column,
    int channels, float (&sums)[kChannels]) {
  for (int i = 0; i < rows.grid; ++i) {
    RoiTap y;
    if (!roi_tap(rows, bin_row, i, map.height, y)) continue;
    const T* low = data + y.low * map.row;
    const T* high = data + y.high * map.row;
    for (int j = 0; j < columns.grid; ++j) {
      RoiTap x;
      if (!roi_tap(columns, bin_column, j, map.width, x)) continue;
      const int64_t left = x.low * map.column, right = x.high * map.column;
      add_cell<T, kPacks>(sums, low + left, map.channel, channels, y.weight_low * x.weight_low);
      add_cell<T, kPacks>(sums, low + right, map.channel, channels, y.weight_low * x.weight_high);
      add_cell<T, kPacks>(sums, high + left, map.channel, channels, y.weight_high * x.weight_low);
      add_cell<T, kPacks>(sums, high + right, map.channel, channels, y.weight_high * x.weight_high);
    }
  }
}

// Blocks of one box: its threads are numbered by bin first, so that neighbours write neighbouring elements.
GID_HD int roi_blocks_a_box(int channels, int bins) {
  return ceil_div(ceil_div(channels, kChannels) * bins * bins, kRoiThreads);
}

template <typename T, bool kPacks>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks) roi_align_kernel(const __grid_constant__ RoiArgs<T> args) {
  const int area = args.bins * args.bins, blocks = roi_blocks_a_box(args.channels, args.bins);
  const int box_index = int(blockIdx.x / blocks);
  const int item = int(blockIdx.x % blocks) * kRoiThreads + int(threadIdx.x);
  const int bin = item % area, channel = item / area * kChannels;
  if (channel >= args.channels) return;
  const int channels = args.channels - channel < kChannels ? args.channels - channel : kChannels;
  const int image = box_index / args.slots;
  float sums[kChannels] = {};
  if (is_filled(args, image, box_index % args.slots)) {
    const Box box = args.boxes[box_index];
    const RoiMap<T>& map = args.maps[roi_level(box, args.thresholds, args.levels)];
    const RoiAxis rows = roi_axis(box.y1, box.y2, map.stride, args.bins, args.sampling_ratio, args.aligned);
    const RoiAxis columns = roi_axis(box.x1, box.x2, map.stride, args.bins, args.sampling_ratio, args.aligned);
    const T* data = map.data + image * map.image + channel * map.channel;
    pool_bin<T, kPacks>(map, data, rows, columns, bin / args.bins, bin % args.bins, channels, sums);
  }
  T* out = args.pooled + (int64_t(box_index) * args.channels + channel) * area + bin;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    if (c < channels) out[int64_t(c) * area] = from_float<T>(sums[c]);
  }
}

template <typename T, typename Launch>
void launch_roi_align(const Launch& launch, const RoiArgs<T>& args) {
  const int64_t boxes = int64_t(args.images) * args.slots;
  if (boxes == 0 || args.channels == 0) return;
  const auto kernel = has_channel_packs(args) ? roi_align_kernel<T, true> : roi_align_kernel<T, false>;
  launch(kernel, grid_of(boxes * roi_blocks_a_box(args.channels, args.bins)), dim3(kRoiThreads), args);
}

// The cells that a box can reach, widened by more than rounding may cost. NaN reaches none.
struct RoiReach {
  float low, high;
  __device__ __forceinline__ bool meets(int first, int last) const { return high >= float(first) && low <= float(last); }
};

__device__ __forceinline__ float rounding_margin(const RoiAxis& axis, int bins) {
  return 0.1f + 1e-6f * (fabsf(axis.start) + fabsf(axis.step * float(bins)));
}

__device__ __forceinline__ RoiReach roi_reach(const RoiAxis& axis, int bins) {
  const float end = axis.start + axis.step * float(bins), margin = 1.0f + rounding_margin(axis, bins);
  return {fminf(axis.start, end) - margin, fmaxf(axis.start, end) + margin};
}

// The samples along one axis, numbered through all bins, that may lie within one cell of `cell`.
struct SampleRange {
  int first, last;
};

__device__ __forceinline__ SampleRange samples_near(const RoiAxis& axis, int bins, int cell) {
  const int samples = bins * axis.grid;
  const float spacing = axis.step / float(axis.grid);
  if (!(spacing > 1e-3f)) return {0, samples - 1};  // crowded in a few cells, or right to left
  const float reach = 1.0f + rounding_margin(axis, bins), offset = float(cell) - axis.start;
  const float first = floorf((offset - reach) / spacing - 0.5f), last = ceilf((offset + reach) / spacing - 0.5f);
  return {int(fminf(fmaxf(first, 0.0f), float(samples))), int(fmaxf(fminf(last, float(samples - 1)), -1.0f))};
}

// The weight of `cell` in a bin, along one axis.
__device__ __forceinline__ float cell_weight(const RoiAxis& axis, int bin, const SampleRange& range, int length, int cell) {
  const int before = bin * axis.grid;
  const int first = range.first > before ? range.first - before : 0;
  const int last = range.last - before < axis.grid - 1 ? range.last - before : axis.grid - 1;
  float weight = 0.0f;
  for (int sample = first; sample <= last; ++sample) {
    RoiTap tap;
    roi_tap(axis, bin, sample, length, tap);
    if (tap.low == cell) weight += tap.weight_low;
    if (tap.high == cell) weight += tap.weight_high;
  }
  return weight;
}

// A box of this level and image that reaches some cell of the block.
struct RoiHit {
  RoiAxis rows, columns;
  RoiReach row_reach, column_reach;
  int slot;
};

struct RoiBackwardShared {
  RoiHit hits[kRoiThreads];
  int warp_sums[kRoiThreads / kWarpSize];
  int count;
};

// The cells of a block: all columns where it spans several rows.
struct CellRange {
  int first_row, last_row, first_column, last_column;
};

// Finds which of kRoiThreads boxes from `first` on reach the block's cells, one box a thread, into shared.hits, in the
// order of their slots. All threads; ends with a barrier.
template <typename T>
__device__ __forceinline__ void find_hits(
    const RoiArgs<T>& args, const RoiMap<T>& map, int level, int image, int first, const CellRange& cells,
    RoiBackwardShared& shared) {
  RoiHit hit = {};
  hit.slot = first + int(threadIdx.x);
  bool hits = hit.slot < args.slots && is_filled(args, image, hit.slot);
  if (hits) {
    const Box box = args.boxes[int64_t(image) * args.slots + hit.slot];
    hit.rows = roi_axis(box.y1, box.y2, map.stride, args.bins, args.sampling_ratio, args.aligned);
    hit.columns = roi_axis(box.x1, box.x2, map.stride, args.bins, args.sampling_ratio, args.aligned);
    hit.row_reach = roi_reach(hit.rows, args.bins);
    hit.column_reach = roi_reach(hit.columns, args.bins);
    hits = hit.rows.grid > 0 && hit.columns.grid > 0 && roi_level(box, args.thresholds, args.levels) == level &&
           hit.row_reach.meets(cells.first_row, cells.last_row) &&
           hit.column_reach.meets(cells.first_column, cells.last_column);
  }
  const int position = block_exclusive_sum(hits, shared.warp_sums);  // its barrier: what was found before has been used
  if (hits) shared.hits[position] = hit;
  if (threadIdx.x == kRoiThreads - 1) shared.count = position + hits;
  __syncthreads();
}

// Adds one box's part of the gradient of the cell (row, column). `pooled` is the gradient of the box's first channel.
template <typename T>
__device__ __forceinline__ void gather_box(
    const RoiArgs<T>& args, const RoiMap<T>& map, const RoiHit& hit, const T* pooled, int row, int column, int channels,
    float (&sums)[kChannels]) {
  const SampleRange near_rows = samples_near(hit.rows, args.bins, row);
  const SampleRange near_columns = samples_near(hit.columns, args.bins, column);
  const int last_bin_row = near_rows.last / hit.rows.grid, last_bin_column = near_columns.last / hit.columns.grid;
  const int area = args.bins * args.bins;
  if (near_rows.last < 0 || near_columns.last < 0) return;
  for (int y = near_rows.first / hit.rows.grid; y <= last_bin_row; ++y) {
    const float row_weight = cell_weight(hit.rows, y, near_rows, map.height, row);
    if (!(row_weight > 0.0f)) continue;
    for (int x = near_columns.first / hit.columns.grid; x <= last_bin_column; ++x) {
      const float weight = row_weight * cell_weight(hit.columns, x, near_columns, map.width, column);
      add_cell<T, false>(sums, pooled + y * args.bins + x, area, channels, weight);
    }
  }
}

// A level's place in the launch.
struct RoiBlocks {
  int first[kMaxLevels + 1];  // block of each level; the last entry is the grid's size
};

GID_HD int roi_blocks_a_map(int channels, int height, int width) {
  return int(ceil_div<int64_t>(int64_t(ceil_div(channels, kChannels)) * height * width, kRoiThreads));
}

template <typename T, bool kPacks>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks)
    roi_align_backward_kernel(const __grid_constant__ RoiArgs<T> args, const __grid_constant__ RoiBlocks blocks) {
  GID_SHARED(RoiBackwardShared, shared);
  int level = 0;
  while (int(blockIdx.x) >= blocks.first[level + 1]) ++level;
  const RoiMap<T>& map = args.maps[level];
  const int blocks_a_map = roi_blocks_a_map(args.channels, map.height, map.width);
  const int image = (int(blockIdx.x) - blocks.first[level]) / blocks_a_map;
  const int first_item = (int(blockIdx.x) - blocks.first[level]) % blocks_a_map * kRoiThreads;

  // Neighbouring threads take what lies together in memory: channels of a cell, or cells of a channel.
  const int groups = ceil_div(args.channels, kChannels), size = map.height * map.width;
  const int items = groups * size, last_item = first_item + kRoiThreads < items ? first_item + kRoiThreads - 1 : items - 1;
  const int item = first_item + int(threadIdx.x);
  const bool groups_first = map.channel == 1;
  const int cell = groups_first ? item / groups : item % size;
  const int channel = (groups_first ? item % groups : item / size) * kChannels;
  const int row = cell / map.width, column = cell % map.width;
  CellRange cells = {0, map.height - 1, 0, map.width - 1};
  if (groups_first || first_item / size == last_item / size) {
    const int first_cell = groups_first ? first_item / groups : first_item % size;
    const int last_cell = groups_first ? last_item / groups : last_item % size;
    cells.first_row = first_cell / map.width;
    cells.last_row = last_cell / map.width;
    if (cells.first_row == cells.last_row) {
      cells.first_column = first_cell % map.width;
      cells.last_column = last_cell % map.width;
    }
  }

  const int channels = args.channels - channel < kChannels ? args.channels - channel : kChannels;
  float sums[kChannels] = {};
  for (int first = 0; first < args.slots; first += kRoiThreads) {
    find_hits(args, map, level, image, first, cells, shared);
    for (int i = 0; i < shared.count; ++i) {
      const RoiHit& hit = shared.hits[i];
      if (item >= items || !hit.row_reach.meets(row, row) || !hit.column_reach.meets(column, column)) continue;
      const int64_t box_index = int64_t(image) * args.slots + hit.slot;
      const T* pooled = args.pooled + (box_index * args.channels + channel) * args.bins * args.bins;
      gather_box(args, map, hit, pooled, row, column, channels, sums);
    }
  }
  if (item >= items) return;
  T* out = map.data + image * map.image + channel * map.channel + row * map.row + column * map.column;
  if constexpr (kPacks) {
#pragma unroll
    for (int start = 0; start < kChannels; start += Pack<T>::kSize) {
      Pack<T> pack;
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; ++i) pack.value[i] = from_float<T>(sums[start + i]);
      store_pack(out + start, pack);
    }
  } else {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (c < channels) out[c * map.channel] = from_float<T>(sums[c]);
    }
  }
}

template <typename T, typename Launch>
void launch_roi_align_backward(const Launch& launch, const RoiArgs<T>& args) {
  RoiBlocks blocks = {};
  int64_t total = 0;
  for (int l = 0; l < args.levels; ++l) {
    total += int64_t(args.images) * roi_blocks_a_map(args.channels, args.maps[l].height, args.maps[l].width);
    blocks.first[l + 1] = int(total);
  }
  if (total == 0) return;
  const auto kernel = has_channel_packs(args) ? roi_align_backward_kernel<T, true> : roi_align_backward_kernel<T, false>;
  launch(kernel, grid_of(total), dim3(kRoiThreads), args, blocks);
}

}  // namespace gid
