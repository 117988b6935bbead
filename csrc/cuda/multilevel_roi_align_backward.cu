#include "cuda/multilevel_roi_align_backward.cuh"

#include <type_traits>
#include <vector>

#include "cuda/multilevel_roi_align_scatter.cuh"
#include "cuda/roi_args.h"

namespace gid {
namespace {

// Puts the maps of `args` into one float32 buffer, cleared, laid out as the gradients are, and returns it with what is
// needed to round it into them.
template <typename T>
Tensor float_maps(std::vector<Tensor>& gradients, RoiArgs<T, float>& args, RoiRounding<T>& rounding) {
  constexpr int64_t kSize = Pack<float>::kSize;
  int64_t total = 0;
  for (const Tensor& gradient : gradients) total += ceil_div<int64_t>(gradient.numel(), kSize) * kSize;
  Tensor sums = torch::stable::new_zeros(gradients[0], {total}, ScalarType::Float);
  float* data = mutable_pointer<float>(sums);
  rounding.levels = args.levels;
  for (int l = 0; l < args.levels; ++l) {
    rounding.sums[l] = args.maps[l].data = data;
    rounding.maps[l] = mutable_pointer<T>(gradients[l]);
    rounding.sizes[l] = gradients[l].numel();
    data += ceil_div<int64_t>(gradients[l].numel(), kSize) * kSize;
  }
  return sums;
}

template <typename T>
void scatter(const CudaLaunch& launch, std::vector<Tensor>& gradients, RoiArgs<T, float> args) {
  if constexpr (std::is_same_v<T, float>) {
    for (Tensor& gradient : gradients) torch::stable::zero_(gradient);
    launch_roi_align_scatter(launch, args);
  } else {
    RoiRounding<T> rounding = {};
    const Tensor sums = float_maps(gradients, args, rounding);
    launch_roi_align_scatter(launch, args);
    launch_roi_round(launch, rounding);
  }
}

std::vector<Tensor> multilevel_roi_align_backward(
    const Tensor& grad, const std::vector<Tensor>& features, const Tensor& boxes, std::optional<Tensor> counts,
    const std::vector<int64_t>& strides, int64_t output_size, int64_t sampling_ratio, double canonical_size,
    int64_t canonical_level, bool aligned, bool deterministic) {
  check_multilevel_roi_align_backward(grad, features, boxes, counts, strides, output_size);
  const CudaLaunch launch(grad);
  const Tensor pooled = torch::stable::contiguous(grad), box = prepared(boxes);
  const std::optional<Tensor> count = prepared(counts);
  std::vector<Tensor> gradients;  // dense, whatever the features are
  for (const Tensor& feature : features) gradients.push_back(torch::stable::empty_like(feature));
  for_float_type(grad, [&](auto type) {
    using T = decltype(type);
    T* pooled_gradient = static_cast<T*>(const_cast<void*>(pooled.const_data_ptr()));
    if (deterministic) {
      RoiArgs<T> args = make_args<T>(
          gradients, box, count, strides, output_size, sampling_ratio, canonical_size, canonical_level, aligned);
      args.pooled = pooled_gradient;
      launch_roi_align_backward(launch, args);
    } else {
      RoiArgs<T, float> args = make_args<T, float>(
          gradients, box, count, strides, output_size, sampling_ratio, canonical_size, canonical_level, aligned);
      args.pooled = pooled_gradient;
      scatter(launch, gradients, args);
    }
  });
  return gradients;
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CUDA, m) {
  m.impl("multilevel_roi_align_backward", TORCH_BOX(&gid::multilevel_roi_align_backward));
}
