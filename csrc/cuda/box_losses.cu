#include "cuda/box_losses.cuh"

#include <tuple>
#include <vector>

#include "cuda/launch.h"

namespace gid {
namespace {

// The tensors of a call, held as kernels want them.
struct BoxLosses {
  Tensor deltas;
  std::optional<Tensor> matched, boxes, anchors, teacher, mask;
  BoxCoder coder;
  float beta;

  BoxLossesArgs args() const {
    BoxLossesArgs args = {};
    args.deltas = any_floats(deltas);
    args.matched = pointer<int64_t>(matched);
    args.boxes = pointer<Box>(boxes);
    args.anchors = pointer<Box>(anchors);
    if (teacher) args.teacher_deltas = any_floats(*teacher);
    args.mask = pointer<bool>(mask);
    args.coder = coder;
    args.beta = beta;
    args.images = deltas.size(0);
    args.count = deltas.size(1);
    args.slots = boxes ? boxes->size(1) : 0;
    return args;
  }
};

BoxLosses prepare(
    const Tensor& deltas, const std::optional<Tensor>& matched, const std::optional<Tensor>& boxes,
    const std::optional<Tensor>& anchors, const std::optional<Tensor>& teacher_deltas,
    const std::optional<Tensor>& mask, double beta, const std::vector<double>& weights) {
  check_box_losses(deltas, matched, boxes, anchors, teacher_deltas, mask, beta, weights);
  return {prepared(deltas),         prepared(matched), prepared(boxes),           prepared(anchors),
          prepared(teacher_deltas), prepared(mask),    box_coder(weights, false), float(beta)};
}

std::tuple<Tensor, Tensor> box_losses(
    const Tensor& deltas, std::optional<Tensor> matched, std::optional<Tensor> boxes, std::optional<Tensor> anchors,
    std::optional<Tensor> teacher_deltas, std::optional<Tensor> mask, double beta,
    const std::vector<double>& weights) {
  const BoxLosses in = prepare(deltas, matched, boxes, anchors, teacher_deltas, mask, beta, weights);
  const CudaLaunch launch(deltas);
  BoxLossesArgs args = in.args();
  const int64_t images = args.images, parts = box_losses_parts(args);
  Tensor task = torch::stable::new_empty(in.deltas, {images}, ScalarType::Float);
  Tensor response = torch::stable::new_empty(in.deltas, {images}, ScalarType::Float);
  const Tensor partial = torch::stable::new_empty(in.deltas, {2, images, parts}, ScalarType::Float);
  args.l1_partial = mutable_pointer<float>(partial);
  args.response_partial = args.l1_partial + images * parts;
  const ImageSumsArgs sums = {{args.l1_partial, args.response_partial}, nullptr,
                              {mutable_pointer<float>(task), mutable_pointer<float>(response)}, images, parts};
  launch_box_losses(launch, args, sums);
  return {task, response};
}

Tensor box_losses_backward(
    std::optional<Tensor> grad_l1, std::optional<Tensor> grad_response, const Tensor& deltas,
    std::optional<Tensor> matched, std::optional<Tensor> boxes, std::optional<Tensor> anchors,
    std::optional<Tensor> teacher_deltas, std::optional<Tensor> mask, double beta,
    const std::vector<double>& weights) {
  check_image_sums(grad_l1, "grad_l1", deltas);
  check_image_sums(grad_response, "grad_response", deltas);
  BoxLosses in = prepare(deltas, matched, boxes, anchors, teacher_deltas, mask, beta, weights);
  if (!grad_l1) in.matched = std::nullopt;
  if (!grad_response) in.mask = std::nullopt;
  const CudaLaunch launch(deltas);
  const std::optional<Tensor> of_l1 = prepared(grad_l1), of_response = prepared(grad_response);
  BoxLossesArgs args = in.args();
  args.grad_l1 = pointer<float>(of_l1);
  args.grad_response = pointer<float>(of_response);
  Tensor gradient = torch::stable::new_empty(in.deltas, {args.images, args.count, 4});
  for_float_type(in.deltas, [&](auto type) {
    using T = decltype(type);
    launch_box_losses_backward(launch, BoxLossesBackwardArgs<T>{args, mutable_pointer<T>(gradient)});
  });
  return gradient;
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CUDA, m) {
  m.impl("box_losses", TORCH_BOX(&gid::box_losses));
  m.impl("box_losses_backward", TORCH_BOX(&gid::box_losses_backward));
}
