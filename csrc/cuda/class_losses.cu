#include "cuda/class_losses.cuh"

#include <tuple>

#include "cuda/launch.h"

namespace gid {
namespace {

// The tensors of a call, held as kernels want them.
struct ClassLosses {
  Tensor logits;
  std::optional<Tensor> matched, labels, teacher, mask;
  bool soft_focal;

  template <typename T>
  ClassLossesArgs<T> args() const {
    ClassLossesArgs<T> args = {};
    args.logits = pointer<T>(logits);
    args.matched = pointer<int64_t>(matched);
    args.labels = pointer<int64_t>(labels);
    if (teacher) args.teacher_logits = any_floats(*teacher);
    args.mask = pointer<bool>(mask);
    args.images = logits.size(0);
    args.count = logits.size(1);
    args.slots = labels ? labels->size(1) : 0;
    args.classes = int(logits.size(2));
    args.soft_focal = soft_focal;
    return args;
  }
};

ClassLosses prepare(
    const Tensor& logits, const std::optional<Tensor>& matched, const std::optional<Tensor>& labels,
    const std::optional<Tensor>& teacher_logits, const std::optional<Tensor>& mask, bool soft_focal) {
  check_class_losses(logits, matched, labels, teacher_logits, mask);
  STD_TORCH_CHECK(logits.size(2) <= int64_t(1) << 30, "logits must have at most 2^30 classes, got ", logits.size(2));
  return {prepared(logits), prepared(matched), prepared(labels), prepared(teacher_logits), prepared(mask), soft_focal};
}

std::tuple<Tensor, Tensor> class_losses(
    const Tensor& logits, std::optional<Tensor> matched, std::optional<Tensor> labels,
    std::optional<Tensor> teacher_logits, std::optional<Tensor> mask, std::optional<Tensor> focal, bool soft_focal) {
  check_image_sums(focal, "focal", logits);
  ClassLosses in = prepare(logits, matched, labels, teacher_logits, mask, soft_focal);
  const CudaLaunch launch(logits);
  if (focal) in.matched = std::nullopt;
  const std::optional<Tensor> given = prepared(focal);
  const int64_t images = logits.size(0);
  Tensor task = torch::stable::new_empty(in.logits, {images}, ScalarType::Float);
  Tensor response = torch::stable::new_empty(in.logits, {images}, ScalarType::Float);
  for_float_type(in.logits, [&](auto type) {
    using T = decltype(type);
    ClassLossesArgs<T> args = in.args<T>();
    const int64_t parts = class_losses_parts(args);
    const Tensor partial = torch::stable::new_empty(in.logits, {2, images, parts}, ScalarType::Float);
    args.focal_partial = mutable_pointer<float>(partial);
    args.response_partial = args.focal_partial + images * parts;
    const ImageSumsArgs sums = {{args.focal_partial, args.response_partial}, pointer<float>(given),
                                {mutable_pointer<float>(task), mutable_pointer<float>(response)}, images, parts};
    launch_class_losses(launch, args, sums);
  });
  return {task, response};
}

Tensor class_losses_backward(
    std::optional<Tensor> grad_focal, std::optional<Tensor> grad_response, const Tensor& logits,
    std::optional<Tensor> matched, std::optional<Tensor> labels, std::optional<Tensor> teacher_logits,
    std::optional<Tensor> mask, bool soft_focal) {
  check_image_sums(grad_focal, "grad_focal", logits);
  check_image_sums(grad_response, "grad_response", logits);
  ClassLosses in = prepare(logits, matched, labels, teacher_logits, mask, soft_focal);
  const CudaLaunch launch(logits);
  if (!grad_focal) in.matched = std::nullopt;
  if (!grad_response) in.mask = std::nullopt;
  const std::optional<Tensor> of_focal = prepared(grad_focal), of_response = prepared(grad_response);
  Tensor gradient = torch::stable::new_empty(in.logits, {logits.size(0), logits.size(1), logits.size(2)});
  for_float_type(in.logits, [&](auto type) {
    using T = decltype(type);
    ClassLossesArgs<T> args = in.args<T>();
    args.grad_focal = pointer<float>(of_focal);
    args.grad_response = pointer<float>(of_response);
    args.gradient = mutable_pointer<T>(gradient);
    launch_class_losses_backward(launch, args);
  });
  return gradient;
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CUDA, m) {
  m.impl("class_losses", TORCH_BOX(&gid::class_losses));
  m.impl("class_losses_backward", TORCH_BOX(&gid::class_losses_backward));
}
