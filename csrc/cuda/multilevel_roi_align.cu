#include "cuda/multilevel_roi_align.cuh"

#include <vector>

#include "cuda/roi_args.h"

namespace gid {
namespace {

Tensor multilevel_roi_align(
    const std::vector<Tensor>& features, const Tensor& boxes, std::optional<Tensor> counts,
    const std::vector<int64_t>& strides, int64_t output_size, int64_t sampling_ratio, double canonical_size,
    int64_t canonical_level, bool aligned) {
  check_multilevel_roi_align(features, boxes, counts, strides, output_size);
  const CudaLaunch launch(features[0]);
  const Tensor box = prepared(boxes);
  const std::optional<Tensor> count = prepared(counts);
  Tensor output = torch::stable::new_empty(
      features[0], {box.size(0), box.size(1), features[0].size(1), output_size, output_size});
  for_float_type(output, [&](auto type) {
    using T = decltype(type);
    RoiArgs<T> args = make_args<T>(
        features, box, count, strides, output_size, sampling_ratio, canonical_size, canonical_level, aligned);
    args.pooled = mutable_pointer<T>(output);
    launch_roi_align(launch, args);
  });
  return output;
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CUDA, m) { m.impl("multilevel_roi_align", TORCH_BOX(&gid::multilevel_roi_align)); }
