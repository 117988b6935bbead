// The gradient of multilevel_roi_align: one thread for a feature cell and kChannels channels, which gathers what the
// boxes over it hold. Scattering with atomics would first have to clear the maps (for 16-bit types, float32 copies of
// them); gathering writes every cell once, in its own type, and sums in one order: the result is always the same.
#pragma once

#include "cuda/multilevel_roi_align.cuh"

namespace gid {

// Times that each thread takes a cell. Finding the boxes that reach a block's cells takes a block longer than writing
// 256 packs, most of them zeros; so it is done once for several.
constexpr int kRoiTurns = 4;
constexpr int kRoiItems = kRoiThreads * kRoiTurns;  // of a block

// The cells that a box can reach, widened by more than rounding may cost. NaN reaches none.
struct RoiReach {
  float low, high;
  __device__ __forceinline__ bool meets(int first, int last) const {
    return high >= float(first) && low <= float(last);
  }
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
__device__ __forceinline__ float cell_weight(
    const RoiAxis& axis, int bin, const SampleRange& range, int length, int cell) {
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

template <typename T, bool kPacks>
__device__ __forceinline__ void store_cell(T* out, int64_t stride, int channels, const float (&sums)[kChannels]) {
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
      if (c < channels) out[c * stride] = from_float<T>(sums[c]);
    }
  }
}

// A level's place in the launch.
struct RoiBlocks {
  int first[kMaxLevels + 1];  // block of each level; the last entry is the grid's size
};

GID_HD int roi_blocks_a_map(int channels, int height, int width) {
  return int(ceil_div<int64_t>(int64_t(ceil_div(channels, kChannels)) * height * width, kRoiItems));
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
  const int first_item = (int(blockIdx.x) - blocks.first[level]) % blocks_a_map * kRoiItems;

  // Neighbouring threads take what lies together in memory: channels of a cell, or cells of a channel.
  const int groups = ceil_div(args.channels, kChannels), size = map.height * map.width;
  const int items = groups * size;
  const int last_item = items - first_item < kRoiItems ? items - 1 : first_item + kRoiItems - 1;
  const bool groups_first = map.channel == 1;
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

  for (int start = first_item; start <= last_item; start += kRoiThreads) {
    const int item = start + int(threadIdx.x);
    const bool is_item = item <= last_item;
    const int cell = groups_first ? item / groups : item % size;
    const int channel = (groups_first ? item % groups : item / size) * kChannels;
    const int channels = kPacks || args.channels - channel >= kChannels ? kChannels : args.channels - channel;
    const int row = cell / map.width, column = cell % map.width;
    float sums[kChannels] = {};
    for (int first = 0; first < args.slots; first += kRoiThreads) {
      if (start == first_item || args.slots > kRoiThreads) find_hits(args, map, level, image, first, cells, shared);
      for (int i = 0; i < shared.count; ++i) {
        const RoiHit& hit = shared.hits[i];
        if (!is_item || !hit.row_reach.meets(row, row) || !hit.column_reach.meets(column, column)) continue;
        const int64_t box_index = int64_t(image) * args.slots + hit.slot;
        const T* pooled = args.pooled + (box_index * args.channels + channel) * args.bins * args.bins;
        gather_box(args, map, hit, pooled, row, column, channels, sums);
      }
    }
    if (!is_item) break;
    T* out = map.data + image * map.image + channel * map.channel + row * map.row + column * map.column;
    store_cell<T, kPacks>(out, map.channel, channels, sums);
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
  const bool packs = has_channel_packs(args);
  const auto kernel = packs ? roi_align_backward_kernel<T, true> : roi_align_backward_kernel<T, false>;
  launch(kernel, grid_of(total), dim3(kRoiThreads), args, blocks);
}

}  // namespace gid
