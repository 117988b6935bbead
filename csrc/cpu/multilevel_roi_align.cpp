// multilevel_roi_align on the CPU: each box reads the one level it belongs to, in the memory format that it has.
#include <algorithm>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/roi_taps.h"

namespace gid {
namespace {

constexpr int64_t kChannels = 32;  // of one box, in one piece of work

// Asks for the cache lines of [from, from + bytes).
inline void prefetch(const void* from, int64_t bytes) {
  const char* byte = static_cast<const char*>(from);
  for (int64_t offset = 0; offset < bytes; offset += 64) __builtin_prefetch(byte + offset);
  __builtin_prefetch(byte + bytes - 1);
}

// One channel plane whose rows are `row` and whose columns are `column` elements apart -> out (bins, bins). Rows are
// blended first, along contiguous memory, then the blend is sampled along the columns. The same rows of the plane
// `next`, whose turn is next, are asked for meanwhile: a box's few rows of each plane lie in other pages than those of
// the plane before, which no hardware foresees, and waiting for them took most of the time.
template <typename T>
void pool_plane(
    const T* plane, const T* next, int64_t row, int64_t column, const SlotTaps& taps, std::vector<float>& blend,
    float* out) {
  const AxisTaps &rows = taps.rows, &columns = taps.columns;
  const int64_t bins = int64_t(rows.begin.size()) - 1, width = columns.last - columns.first + 1;
  std::fill(out, out + bins * bins, 0.0f);
  if (width <= 0) return;
  blend.resize(width);
  for (int64_t p = 0; p < bins; ++p) {
    std::fill(blend.begin(), blend.end(), 0.0f);
    for (int i = rows.begin[p]; i < rows.begin[p + 1]; ++i) {
      const int64_t start = rows.index[i] * row + columns.first * column;
      prefetch(next + start, ((width - 1) * column + 1) * int64_t(sizeof(T)));
      const T* line = plane + start;
      const float weight = rows.weight[i];
      if (column == 1) {
        for (int64_t x = 0; x < width; ++x) blend[x] += weight * to_float(line[x]);
      } else {
        for (int64_t x = 0; x < width; ++x) blend[x] += weight * to_float(line[x * column]);
      }
    }
    for (int64_t q = 0; q < bins; ++q) {
      float sum = 0.0f;
      for (int j = columns.begin[q]; j < columns.begin[q + 1]; ++j) {
        sum += columns.weight[j] * blend[columns.index[j] - columns.first];
      }
      out[p * bins + q] = sum;
    }
  }
}

// `channels` neighbouring elements of a channels_last map -> out (channels, bins, bins).
template <typename T>
void pool_channels(const Map<const T>& map, const T* data, int64_t channels, const SlotTaps& taps, float* out) {
  const AxisTaps &rows = taps.rows, &columns = taps.columns;
  const int64_t bins = int64_t(rows.begin.size()) - 1;
  for (int64_t p = 0; p < bins; ++p) {
    for (int64_t q = 0; q < bins; ++q) {
      float sums[kChannels] = {};
      for (int i = rows.begin[p]; i < rows.begin[p + 1]; ++i) {
        for (int j = columns.begin[q]; j < columns.begin[q + 1]; ++j) {
          const T* cell = data + rows.index[i] * map.row + columns.index[j] * map.column;
          const float weight = rows.weight[i] * columns.weight[j];
          for (int64_t c = 0; c < channels; ++c) sums[c] += weight * to_float(cell[c]);
        }
      }
      for (int64_t c = 0; c < channels; ++c) out[(c * bins + p) * bins + q] = sums[c];
    }
  }
}

Tensor multilevel_roi_align(
    const std::vector<Tensor>& features, const Tensor& boxes, std::optional<Tensor> counts,
    const std::vector<int64_t>& strides, int64_t output_size, int64_t sampling_ratio, double canonical_size,
    int64_t canonical_level, bool aligned) {
  check_multilevel_roi_align(features, boxes, counts, strides, output_size);
  const int64_t slots = boxes.size(1), channels = features[0].size(1), area = output_size * output_size;
  Tensor output = torch::stable::new_empty(features[0], {boxes.size(0), slots, channels, output_size, output_size});
  const std::vector<SlotTaps> taps = slot_taps(
      {features, boxes, counts, strides, output_size, sampling_ratio, canonical_size, canonical_level, aligned});
  for_float_type(output, [&](auto type) {
    using T = decltype(type);
    std::vector<Map<const T>> maps;
    for (const Tensor& feature : features) maps.push_back(map_of<const T>(feature));
    T* out = mutable_pointer<T>(output);
    const int64_t pieces = (channels + kChannels - 1) / kChannels;
    torch::stable::parallel_for(0, int64_t(taps.size()) * pieces, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> pooled(kChannels * area), blend;
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t i = piece / pieces, first = piece % pieces * kChannels;
        const int64_t size = std::min(kChannels, channels - first);
        if (taps[i].level < 0) {
          std::fill(pooled.begin(), pooled.end(), 0.0f);
        } else {
          const Map<const T>& map = maps[taps[i].level];
          const T* data = map.data + i / slots * map.image + first * map.channel;
          if (map.channel == 1) {
            pool_channels(map, data, size, taps[i], pooled.data());
          } else {
            for (int64_t c = 0; c < size; ++c) {
              const T *plane = data + c * map.channel, *next = c + 1 < size ? plane + map.channel : plane;
              pool_plane(plane, next, map.row, map.column, taps[i], blend, pooled.data() + c * area);
            }
          }
        }
        T* destination = out + (i * channels + first) * area;
        for (int64_t e = 0; e < size * area; ++e) destination[e] = from_float<T>(pooled[e]);
      }
    });
  });
  return output;
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CPU, m) { m.impl("multilevel_roi_align", TORCH_BOX(&gid::multilevel_roi_align)); }
