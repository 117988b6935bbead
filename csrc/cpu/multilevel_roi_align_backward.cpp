// The gradient of multilevel_roi_align on the CPU. Work is split by image and channel, never by box: each cell is
// summed by one thread in one order, so the result is the same for any number of threads.
#include <algorithm>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/huge_pages.h"
#include "cpu/roi_taps.h"

namespace gid {
namespace {

constexpr int64_t kChannels = 32;  // of one image, in one piece of work on a channels_last map

// Adds the gradient of one box and channel, grad (bins, bins), to a plane: pool_plane the other way round.
template <typename T>
void spread_plane(const T* grad, const SlotTaps& taps, std::vector<float>& blend, float* plane, int64_t row) {
  const AxisTaps &rows = taps.rows, &columns = taps.columns;
  const int64_t bins = int64_t(rows.begin.size()) - 1, width = columns.last - columns.first + 1;
  if (width <= 0) return;
  blend.resize(width);
  for (int64_t p = 0; p < bins; ++p) {
    std::fill(blend.begin(), blend.end(), 0.0f);
    for (int64_t q = 0; q < bins; ++q) {
      const float value = to_float(grad[p * bins + q]);
      for (int j = columns.begin[q]; j < columns.begin[q + 1]; ++j) {
        blend[columns.index[j] - columns.first] += columns.weight[j] * value;
      }
    }
    for (int i = rows.begin[p]; i < rows.begin[p + 1]; ++i) {
      float* line = plane + rows.index[i] * row + columns.first;
      for (int64_t x = 0; x < width; ++x) line[x] += rows.weight[i] * blend[x];
    }
  }
}

// Adds the gradient of one box, grad (channels, bins, bins), to neighbouring channels of a channels_last map whose
// rows are `row` and whose columns are `column` floats apart.
template <typename T>
void spread_channels(
    const T* grad, const SlotTaps& taps, int64_t channels, float* data, int64_t row, int64_t column) {
  const AxisTaps &rows = taps.rows, &columns = taps.columns;
  const int64_t bins = int64_t(rows.begin.size()) - 1;
  for (int64_t p = 0; p < bins; ++p) {
    for (int64_t q = 0; q < bins; ++q) {
      float values[kChannels];
      for (int64_t c = 0; c < channels; ++c) values[c] = to_float(grad[(c * bins + p) * bins + q]);
      for (int i = rows.begin[p]; i < rows.begin[p + 1]; ++i) {
        for (int j = columns.begin[q]; j < columns.begin[q + 1]; ++j) {
          float* cell = data + rows.index[i] * row + columns.index[j] * column;
          const float weight = rows.weight[i] * columns.weight[j];
          for (int64_t c = 0; c < channels; ++c) cell[c] += weight * values[c];
        }
      }
    }
  }
}

// One axis of a block of memory: how many, and how far apart.
struct Extent {
  int64_t size, stride;
};

template <typename T>
void write(const float* from, T* to, Extent outer, Extent middle, Extent inner) {
  for (int64_t i = 0; i < outer.size; ++i) {
    for (int64_t j = 0; j < middle.size; ++j, from += inner.size) {
      T* line = to + i * outer.stride + j * middle.stride;
      for (int64_t k = 0; k < inner.size; ++k) line[k * inner.stride] = from_float<T>(from[k]);
    }
  }
}

// The output's gradient (B, K, Ch, bins, bins), and the slots it belongs to.
template <typename T>
struct Gradient {
  const T* data;
  const std::vector<SlotTaps>& taps;
  int64_t slots, channels, bins;
};

// `size` channels from `first` on of image b, at one level.
struct Piece {
  int level;
  int64_t b, first, size, height, width;
};

// Adds the piece's gradient to `sums`, which is all 0 and lies as the map does: in planes `channel` floats apart, or
// in cells of neighbouring channels.
template <typename T>
void add_gradient(const Gradient<T>& grad, const Piece& piece, bool channels_last, const Map<float>& sums) {
  std::vector<float> blend;
  const int64_t area = grad.bins * grad.bins;
  for (int64_t i = piece.b * grad.slots; i < (piece.b + 1) * grad.slots; ++i) {
    if (grad.taps[i].level != piece.level) continue;
    const T* own = grad.data + (i * grad.channels + piece.first) * area;
    if (channels_last) {
      spread_channels(own, grad.taps[i], piece.size, sums.data, sums.row, sums.column);
    } else {
      for (int64_t c = 0; c < piece.size; ++c) {
        spread_plane(own + c * area, grad.taps[i], blend, sums.data + c * sums.channel, sums.row);
      }
    }
  }
}

// Writes the piece's gradient to the map: planes of float32 are summed where they lie, all else in `sums`. (That would
// do for float32 in channels_last too, but clearing a few channels of every cell costs more than it saves.)
template <typename T>
void write_gradient(const Gradient<T>& grad, const Piece& piece, const Map<T>& map, std::vector<float>& sums) {
  const bool channels_last = map.channel == 1;
  const Extent plane{piece.size, map.channel}, rows{piece.height, map.row}, columns{piece.width, map.column};
  T* out = map.data + piece.b * map.image + piece.first * map.channel;
  if constexpr (std::is_same_v<T, float>) {
    if (!channels_last && map.column == 1) {
      for (int64_t line = 0; line < piece.size * piece.height; ++line) {
        T* start = out + line / piece.height * map.channel + line % piece.height * map.row;
        std::fill_n(start, piece.width, 0.0f);
      }
      return add_gradient(grad, piece, channels_last, {out, map.image, map.channel, map.row, map.column});
    }
  }
  const int64_t cell = channels_last ? piece.size : 1;
  sums.assign(piece.size * piece.height * piece.width, 0.0f);
  add_gradient(grad, piece, channels_last, {sums.data(), 0, piece.height * piece.width, piece.width * cell, cell});
  channels_last ? write(sums.data(), out, rows, columns, plane) : write(sums.data(), out, plane, rows, columns);
}

std::vector<Tensor> multilevel_roi_align_backward(
    const Tensor& grad, const std::vector<Tensor>& features, const Tensor& boxes, std::optional<Tensor> counts,
    const std::vector<int64_t>& strides, int64_t output_size, int64_t sampling_ratio, double canonical_size,
    int64_t canonical_level, bool aligned, bool /* deterministic: it always is */) {
  check_multilevel_roi_align_backward(grad, features, boxes, counts, strides, output_size);
  const int64_t channels = features[0].size(1);
  const Tensor contiguous = prepared(grad);
  const std::vector<SlotTaps> taps = slot_taps(
      {features, boxes, counts, strides, output_size, sampling_ratio, canonical_size, canonical_level, aligned});
  std::vector<Tensor> gradients;
  for (const Tensor& feature : features) {
    gradients.push_back(torch::stable::empty_like(feature));
    wish_for_huge_pages(gradients.back());
  }
  for_float_type(grad, [&](auto type) {
    using T = decltype(type);
    const Gradient<T> gradient{pointer<T>(contiguous), taps, boxes.size(1), channels, output_size};
    for (size_t l = 0; l < gradients.size(); ++l) {
      const Map<T> map = map_of<T>(gradients[l]);
      const int64_t height = gradients[l].size(2), width = gradients[l].size(3);
      const int64_t size = map.channel == 1 ? kChannels : 1, pieces = (channels + size - 1) / size;
      torch::stable::parallel_for(0, boxes.size(0) * pieces, 1, [&](int64_t begin, int64_t end) {
        std::vector<float> sums;
        for (int64_t piece = begin; piece < end; ++piece) {
          const int64_t first = piece % pieces * size;
          write_gradient(
              gradient, {int(l), piece / pieces, first, std::min(size, channels - first), height, width}, map, sums);
        }
      });
    }
  });
  return gradients;
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CPU, m) {
  m.impl("multilevel_roi_align_backward", TORCH_BOX(&gid::multilevel_roi_align_backward));
}
