// The gradient of multilevel_roi_align in its other form: one thread for a bin and kChannels channels, which adds to
// all cells that the bin has read. Atomic additions come in any order, so the last bits differ from run to run.
//
// Bytes, of a pyramid with N elements: gathering (multilevel_roi_align_backward.cuh) writes each once, 4 N in float32
// and 2 N in 16 bits. Scattering clears 4 N first, and of 16-bit types that is a float32 copy, which is then read and
// rounded: 4 N + 4 N + 2 N, five times as much. The boxes' own part is small beside it in both. So gathering is what
// autograd takes; this one is here to be measured against, and for boxes by the hundred, where a cell's gatherer has
// many of them to look through.
#pragma once

#include "cuda/multilevel_roi_align.cuh"

namespace gid {

// Threads for the channels of a bin: whole warps, as in channels_last maps a warp adds to 32 neighbouring channels.
GID_HD int roi_scatter_groups(int channels) { return ceil_div(channels, kChannels * kWarpSize) * kWarpSize; }

GID_HD int64_t roi_scatter_blocks_a_box(int channels, int bins) {
  return ceil_div<int64_t>(int64_t(roi_scatter_groups(channels)) * bins * bins, kRoiThreads);
}

// The channels that a thread takes: first, first + step, ... below `end`.
struct RoiChannels {
  int first, step, end;
};

__device__ __forceinline__ void scatter_cell(
    float* cell, int64_t stride, const RoiChannels& channels, float weight, const float (&values)[kChannels]) {
  if (!(weight > 0.0f)) return;
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    const int channel = channels.first + i * channels.step;
    if (channel < channels.end) atomicAdd(cell + channel * stride, weight * values[i]);
  }
}

// Adds one bin's gradient to the cells of its image, whose first channel starts at `data`.
__device__ __forceinline__ void scatter_bin(
    const RoiMap<float>& map, float* data, const RoiAxis& rows, const RoiAxis& columns, int bin_row, int bin_column,
    const RoiChannels& channels, const float (&values)[kChannels]) {
  for (int i = 0; i < rows.grid; ++i) {
    RoiTap y;
    if (!roi_tap(rows, bin_row, i, map.height, y)) continue;
    float* low = data + y.low * map.row;
    float* high = data + y.high * map.row;
    for (int j = 0; j < columns.grid; ++j) {
      RoiTap x;
      if (!roi_tap(columns, bin_column, j, map.width, x)) continue;
      const int64_t left = x.low * map.column, right = x.high * map.column;
      scatter_cell(low + left, map.channel, channels, y.weight_low * x.weight_low, values);
      scatter_cell(low + right, map.channel, channels, y.weight_low * x.weight_high, values);
      scatter_cell(high + left, map.channel, channels, y.weight_high * x.weight_low, values);
      scatter_cell(high + right, map.channel, channels, y.weight_high * x.weight_high, values);
    }
  }
}

// The maps are float32, and 0 before the launch.
template <typename T>
__global__ void __launch_bounds__(kRoiThreads)
    roi_align_scatter_kernel(const __grid_constant__ RoiArgs<T, float> args) {
  const int area = args.bins * args.bins, groups = roi_scatter_groups(args.channels);
  const int64_t blocks = roi_scatter_blocks_a_box(args.channels, args.bins);
  const int box_index = int(blockIdx.x / blocks), image = box_index / args.slots;
  const int64_t item = blockIdx.x % blocks * kRoiThreads + threadIdx.x;
  if (item >= int64_t(groups) * area || !is_filled(args, image, box_index % args.slots)) return;
  const Box box = args.boxes[box_index];
  const RoiMap<float>& map = args.maps[roi_level(box, args.thresholds, args.levels)];

  // Neighbouring threads add to what lies together in memory: channels of a cell, or the bins of a channel.
  const bool channels_last = map.channel == 1;
  const int bin = int(channels_last ? item / groups : item % area);
  const int group = int(channels_last ? item % groups : item / area);
  const int lane = group % kWarpSize;
  const RoiChannels channels = {channels_last ? (group - lane) * kChannels + lane : group * kChannels,
                                channels_last ? kWarpSize : 1, args.channels};
  const T* pooled = args.pooled + int64_t(box_index) * args.channels * area + bin;
  float values[kChannels];
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    const int64_t channel = channels.first + i * channels.step;
    values[i] = channel < channels.end ? to_float(pooled[channel * area]) : 0.0f;
  }
  const RoiAxis rows = roi_axis(box.y1, box.y2, map.stride, args.bins, args.sampling_ratio, args.aligned);
  const RoiAxis columns = roi_axis(box.x1, box.x2, map.stride, args.bins, args.sampling_ratio, args.aligned);
  scatter_bin(map, map.data + image * map.image, rows, columns, bin / args.bins, bin % args.bins, channels, values);
}

// Maps that are summed in float32 and then rounded to T. Both lie in the same order, so it does not matter which.
template <typename T>
struct RoiRounding {
  const float* sums[kMaxLevels];  // 16-byte aligned
  T* maps[kMaxLevels];            // 16-byte aligned
  int64_t sizes[kMaxLevels];      // elements
  int64_t first_block[kMaxLevels + 1];
  int levels;
};

template <typename T>
__global__ void __launch_bounds__(kRoiThreads) roi_round_kernel(const __grid_constant__ RoiRounding<T> args) {
  constexpr int kSize = Pack<T>::kSize, kSumSize = Pack<float>::kSize;
  int level = 0;
  while (blockIdx.x >= args.first_block[level + 1]) ++level;
  const int64_t first = ((blockIdx.x - args.first_block[level]) * kRoiThreads + threadIdx.x) * kSize;
  const int64_t left = args.sizes[level] - first;
  const float* sums = args.sums[level] + first;
  T* map = args.maps[level] + first;
  if (left >= kSize) {
    Pack<T> rounded;
#pragma unroll
    for (int start = 0; start < kSize; start += kSumSize) {
      const Pack<float> pack = load_pack(sums + start);
#pragma unroll
      for (int i = 0; i < kSumSize; ++i) rounded.value[start + i] = from_float<T>(pack.value[i]);
    }
    store_pack(map, rounded);
  } else {
    for (int i = 0; i < left; ++i) map[i] = from_float<T>(sums[i]);
  }
}

template <typename T, typename Launch>
void launch_roi_align_scatter(const Launch& launch, const RoiArgs<T, float>& args) {
  const int64_t boxes = int64_t(args.images) * args.slots;
  if (boxes == 0 || args.channels == 0) return;
  const int64_t blocks = boxes * roi_scatter_blocks_a_box(args.channels, args.bins);
  launch(roi_align_scatter_kernel<T>, grid_of(blocks), dim3(kRoiThreads), args);
}

template <typename T, typename Launch>
void launch_roi_round(const Launch& launch, RoiRounding<T> args) {
  for (int l = 0; l < args.levels; ++l) {
    const int64_t blocks = ceil_div<int64_t>(args.sizes[l], kRoiThreads * Pack<T>::kSize);
    args.first_block[l + 1] = args.first_block[l] + blocks;
  }
  const int64_t total = args.first_block[args.levels];
  if (total > 0) launch(roi_round_kernel<T>, grid_of(total), dim3(kRoiThreads), args);
}

}  // namespace gid
