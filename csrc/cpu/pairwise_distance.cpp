// pairwise_distance and its gradient on the CPU.
#include <algorithm>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/checks.h"

namespace gid {
namespace {

constexpr int64_t kLanes = 16;    // partial sums, so that the compiler can use vector registers
constexpr int64_t kChunk = 1024;  // elements summed in float32 before they join a double: long vectors lose nothing

template <typename T>
float distance(const T* a, const T* b, int64_t length) {
  double total = 0.0;
  for (int64_t start = 0; start < length; start += kChunk) {
    const int64_t end = std::min(start + kChunk, length);
    float sums[kLanes] = {};
    int64_t d = start;
    for (; d + kLanes <= end; d += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const float difference = to_float(a[d + lane]) - to_float(b[d + lane]);
        sums[lane] += difference * difference;
      }
    }
    for (; d < end; ++d) {
      const float difference = to_float(a[d]) - to_float(b[d]);
      sums[0] += difference * difference;
    }
    for (const float sum : sums) total += sum;
  }
  return std::sqrt(float(total));
}

Tensor pairwise_distance(const Tensor& x, std::optional<Tensor> counts) {
  check_pairwise_distance(x, counts);
  const int64_t images = x.size(0), slots = x.size(1), length = x.size(2);
  const Tensor vectors = prepared(x);
  const std::optional<Tensor> filled_slots = prepared(counts);
  const int64_t* count = pointer<int64_t>(filled_slots);
  Tensor distances = torch::stable::new_zeros(x, {images, slots, slots}, ScalarType::Float);
  float* out = mutable_pointer<float>(distances);
  for_float_type(x, [&](auto type) {
    using T = decltype(type);
    const T* data = pointer<T>(vectors);
    torch::stable::parallel_for(0, images * slots, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / slots, i = row % slots, filled = count ? std::min(count[b], slots) : slots;
        for (int64_t j = i + 1; j < filled; ++j) {
          out[row * slots + j] = distance(data + row * length, data + (b * slots + j) * length, length);
          out[(b * slots + j) * slots + i] = out[row * slots + j];
        }
      }
    });
  });
  return distances;
}

// Writes the gradient (D,) of vector i of x (K, D): the sum over j of pull[j] * (x[i] - x[j]).
template <typename T>
void pull_together(const T* x, int64_t i, const std::vector<float>& pull, int64_t length, T* gradient) {
  float sums[kChunk];
  for (int64_t start = 0; start < length; start += kChunk) {
    const int64_t size = std::min(kChunk, length - start);
    std::fill(sums, sums + size, 0.0f);
    const T* own = x + i * length + start;
    for (size_t j = 0; j < pull.size(); ++j) {
      if (pull[j] == 0.0f) continue;
      const T* other = x + int64_t(j) * length + start;
      for (int64_t d = 0; d < size; ++d) sums[d] += pull[j] * (to_float(own[d]) - to_float(other[d]));
    }
    for (int64_t d = 0; d < size; ++d) gradient[start + d] = from_float<T>(sums[d]);
  }
}

Tensor pairwise_distance_backward(
    const Tensor& grad, const Tensor& x, const Tensor& distances, std::optional<Tensor> counts) {
  check_pairwise_distance_backward(grad, x, distances, counts);
  const int64_t images = x.size(0), slots = x.size(1), length = x.size(2);
  const Tensor vectors = prepared(x), g = prepared(grad), d = prepared(distances);
  Tensor gradient = torch::stable::new_empty(x, {images, slots, length});
  const float *grads = pointer<float>(g), *lengths = pointer<float>(d);
  for_float_type(x, [&](auto type) {
    using T = decltype(type);
    const T* data = pointer<T>(vectors);
    T* out = mutable_pointer<T>(gradient);
    torch::stable::parallel_for(0, images * slots, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> pull(slots);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / slots, i = row % slots;
        for (int64_t j = 0; j < slots; ++j) {
          // Empty slots and the diagonal need no test of their own: their distances are 0.
          const float length_ij = lengths[row * slots + j];
          const float both = grads[row * slots + j] + grads[(b * slots + j) * slots + i];
          pull[j] = length_ij == 0.0f ? 0.0f : both / length_ij;
        }
        pull_together(data + b * slots * length, i, pull, length, out + row * length);
      }
    });
  });
  return gradient;
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CPU, m) {
  m.impl("pairwise_distance", TORCH_BOX(&gid::pairwise_distance));
  m.impl("pairwise_distance_backward", TORCH_BOX(&gid::pairwise_distance_backward));
}
