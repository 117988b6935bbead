#include "cuda/multilevel_roi_align_backward.cuh"

#include <vector>

#include "cuda/roi_args.h"

namespace gid {
namespace {

std::vector<Tensor> multilevel_roi_align_backward(
    const Tensor& grad, const std::vector<Tensor>& features, const Tensor& boxes, std::optional<Tensor> counts,
    const std::vector<int64_t>& strides, int64_t output_size, int64_t sampling_ratio, double canonical_size,
    int64_t canonical_level, bool aligned) {
  check_multilevel_roi_align_backward(grad, features, boxes, counts, strides, output_size);
  const CudaLaunch launch(grad);
  const Tensor pooled = torch::stable::contiguous(grad), box = prepared(boxes);
  const std::optional<Tensor> count = prepared(counts);
  std::vector<Tensor> gradients;
  for (const Tensor& feature : features) gradients.push_back(torch::stable::empty_like(feature));
  for_float_type(grad, [&](auto type) {
    using T = decltype(type);
    RoiArgs<T> args = make_args<T>(
        gradients, box, count, strides, output_size, sampling_ratio, canonical_size, canonical_level, aligned);
    args.pooled = static_cast<T*>(const_cast<void*>(pooled.const_data_ptr()));
    launch_roi_align_backward(launch, args);
  });
  return gradients;
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CUDA, m) {
  m.impl("multilevel_roi_align_backward", TORCH_BOX(&gid::multilevel_roi_align_backward));
}
