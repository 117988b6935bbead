#include "cuda/multilevel_roi_align.cuh"

#include <vector>

#include "cuda/launch.h"

namespace gid {
namespace {

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

// All but `pooled`. maps: the features, or in the backward pass their gradients.
template <typename T>
RoiArgs<T> make_args(
    const std::vector<Tensor>& maps, const Tensor& boxes, const std::optional<Tensor>& counts,
    const std::vector<int64_t>& strides, int64_t output_size, int64_t sampling_ratio, double canonical_size,
    int64_t canonical_level, bool aligned) {
  RoiArgs<T> args = {};
  for (size_t l = 0; l < maps.size(); ++l) {
    args.maps[l] = map_of<T>(maps[l], strides[l]);
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

std::vector<Tensor> multilevel_roi_align_backward(
    const Tensor& grad, const std::vector<Tensor>& features, const Tensor& boxes, std::optional<Tensor> counts,
    const std::vector<int64_t>& strides, int64_t output_size, int64_t sampling_ratio, double canonical_size,
    int64_t canonical_level, bool aligned, bool /*deterministic: always*/) {
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
  m.impl("multilevel_roi_align", TORCH_BOX(&gid::multilevel_roi_align));
  m.impl("multilevel_roi_align_backward", TORCH_BOX(&gid::multilevel_roi_align_backward));
}
