// Which feature cells the bins of a box read, and with what weights: computed once a box, used for all its channels.
#pragma once

#include <algorithm>
#include <vector>

#include "common/checks.h"
#include "common/roi.h"

namespace gid {

// One axis of one box. Bin p reads the cells index[begin[p]] .. index[begin[p + 1] - 1] with these weights (all > 0);
// first and last are the range of all of them, first > last where there are none.
struct AxisTaps {
  std::vector<int> begin, index;
  std::vector<float> weight;
  int first, last;
};

// A box of the batch: slot k of image b, with its level and both axes.
struct SlotTaps {
  int level;  // -1 in an empty slot
  AxisTaps rows, columns;
};

inline void add_tap(AxisTaps& taps, int index, float weight) {
  if (!(weight > 0.0f)) return;
  // Neighbouring samples share cells: add to one of the bin's two latest instead of reading the cell twice.
  const int size = int(taps.index.size());
  for (int i = size - 1; i >= std::max(size - 2, taps.begin.back()); --i) {
    if (taps.index[i] == index) {
      taps.weight[i] += weight;
      return;
    }
  }
  taps.index.push_back(index);
  taps.weight.push_back(weight);
  taps.first = std::min(taps.first, index);
  taps.last = std::max(taps.last, index);
}

inline AxisTaps axis_taps(const RoiAxis& axis, int bins, int length) {
  AxisTaps taps{{0}, {}, {}, length, -1};
  for (int bin = 0; bin < bins; ++bin) {
    for (int sample = 0; sample < axis.grid; ++sample) {
      RoiTap tap;
      if (!roi_tap(axis, bin, sample, length, tap)) continue;
      add_tap(taps, tap.low, tap.weight_low);
      add_tap(taps, tap.high, tap.weight_high);
    }
    taps.begin.push_back(int(taps.index.size()));
  }
  return taps;
}

// What both directions of multilevel_roi_align are told about the boxes.
struct RoiArguments {
  const std::vector<Tensor>& features;
  const Tensor& boxes;
  const std::optional<Tensor>& counts;
  const std::vector<int64_t>& strides;
  int64_t output_size, sampling_ratio;
  double canonical_size;
  int64_t canonical_level;
  bool aligned;
};

// The taps of all B * K slots.
inline std::vector<SlotTaps> slot_taps(const RoiArguments& arguments) {
  const int64_t images = arguments.boxes.size(0), slots = arguments.boxes.size(1);
  const int bins = int(arguments.output_size), ratio = int(arguments.sampling_ratio);
  const Tensor boxes = prepared(arguments.boxes);
  const std::optional<Tensor> counts = prepared(arguments.counts);
  const Box* box = pointer<Box>(boxes);
  const int64_t* count = pointer<int64_t>(counts);
  float thresholds[kMaxLevels];
  const int levels = int(arguments.strides.size());
  for (int l = 0; l < levels; ++l) {
    thresholds[l] = level_threshold(arguments.strides[l], arguments.canonical_size, arguments.canonical_level);
  }
  std::vector<SlotTaps> result(images * slots);
  torch::stable::parallel_for(0, images * slots, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      result[i].level = count && i % slots >= count[i / slots] ? -1 : roi_level(box[i], thresholds, levels);
      if (result[i].level < 0) continue;
      const Tensor& feature = arguments.features[result[i].level];
      const float stride = float(arguments.strides[result[i].level]);
      const RoiAxis rows = roi_axis(box[i].y1, box[i].y2, stride, bins, ratio, arguments.aligned);
      const RoiAxis columns = roi_axis(box[i].x1, box[i].x2, stride, bins, ratio, arguments.aligned);
      result[i].rows = axis_taps(rows, bins, int(feature.size(2)));
      result[i].columns = axis_taps(columns, bins, int(feature.size(3)));
    }
  });
  return result;
}

// A feature map (B, Ch, H, W) as it lies: data of type T and the distance between neighbours along each axis.
template <typename T>
struct Map {
  T* data;
  int64_t image, channel, row, column;
};

template <typename T>
Map<T> map_of(const Tensor& tensor) {
  void* data = const_cast<void*>(tensor.const_data_ptr());
  return {static_cast<T*>(data), tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

}  // namespace gid
