// What both directions of multilevel_roi_align tell their kernels.
#pragma once

#include <vector>

#include "cuda/launch.h"
#include "cuda/multilevel_roi_align.cuh"

namespace gid {

template <typename T>
RoiMap<T> map_of(const Tensor& tensor, int64_t stride) {
  // const_data_ptr, so that a forward pass does not count as a write to the features.
  return {static_cast<T*>(const_cast<void*>(tensor.const_data_ptr())),
          tensor.stride(0),
          tensor.stride(1),
          tensor.stride(2),
          tensor.stride(3),
          as_int(tensor.size(2), "the height of a feature map"),
          as_int(tensor.size(3), "the width of a feature map"),
          float(stride)};
}

// The kernels number a map's cells, and a box's bins, times the channels that a thread does not take at once, in an
// int.
inline void check_places(int64_t channels, int64_t rows, int64_t columns, const char* name) {
  const int64_t groups = ceil_div<int64_t>(channels, kChannels), most = INT_MAX - kRoiThreads;
  STD_TORCH_CHECK(groups == 0 || rows <= most / columns / groups, name, " is too large for the CUDA kernel: ", channels,
                  " channels of ", rows, " x ", columns);
}

// All but `pooled`. maps: the features, or in the backward pass their gradients.
template <typename T, typename Cell = T>
RoiArgs<T, Cell> make_args(
    const std::vector<Tensor>& maps, const Tensor& boxes, const std::optional<Tensor>& counts,
    const std::vector<int64_t>& strides, int64_t output_size, int64_t sampling_ratio, double canonical_size,
    int64_t canonical_level, bool aligned) {
  RoiArgs<T, Cell> args = {};
  check_places(maps[0].size(1), output_size, output_size, "output_size");
  for (size_t l = 0; l < maps.size(); ++l) {
    check_places(maps[l].size(1), maps[l].size(2), maps[l].size(3), "a feature map");
    args.maps[l] = map_of<Cell>(maps[l], strides[l]);
    args.thresholds[l] = level_threshold(strides[l], canonical_size, canonical_level);
  }
  args.levels = int(maps.size());
  args.boxes = pointer<Box>(boxes);
  args.counts = pointer<int64_t>(counts);
  args.images = as_int(boxes.size(0), "the number of images");
  args.slots = as_int(boxes.size(1), "the number of boxes");
  args.channels = as_int(maps[0].size(1), "the number of channels");
  args.bins = as_int(output_size, "output_size");
  args.sampling_ratio = as_int(sampling_ratio, "sampling_ratio");
  args.aligned = aligned;
  return args;
}

}  // namespace gid
