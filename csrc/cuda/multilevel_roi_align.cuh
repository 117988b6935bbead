// multilevel_roi_align: all levels, images and boxes in one launch, in whatever memory format the feature maps have.
// One thread for a bin and kChannels channels, so that a sample's place and weights are worked out once for them all.
#pragma once

#include "common/roi.h"
#include "cuda/device.cuh"

namespace gid {

constexpr int kRoiThreads = 256;
constexpr int kRoiBlocks = 3;  // a multiprocessor: 80 registers a thread; with the 64 that ptxas would choose it spills
constexpr int kChannels = 8;  // of a thread; a multiple of every Pack's size

template <typename T>
struct RoiMap {
  T* data;                              // (B, Ch, height, width)
  int64_t image, channel, row, column;  // elements from one to the next
  int height, width;
  float stride;  // pixels a cell
};

template <typename T, typename Cell = T>
struct RoiArgs {
  RoiMap<Cell> maps[kMaxLevels];  // features; backward: their gradients
  float thresholds[kMaxLevels];   // of roi_level
  int levels;
  const Box* boxes;       // (B, K), 16-byte aligned
  const int64_t* counts;  // (B,) or null
  T* pooled;              // (B, K, Ch, P, P); backward: its gradient, which is only read
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

template <typename T, typename Cell>
GID_HD bool is_filled(const RoiArgs<T, Cell>& args, int image, int slot) {
  return !args.counts || slot < args.counts[image];
}

// sums[c] += weight * cell[c * stride] for the first `channels`. A weight of 0 reads nothing: no NaN comes from there.
template <typename T, bool kPacks>
__device__ __forceinline__ void add_cell(
    float (&sums)[kChannels], const T* cell, int64_t stride, int channels, float weight) {
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

}  // namespace gid
