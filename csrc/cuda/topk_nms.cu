#include "cuda/topk_nms.cuh"

#include <algorithm>
#include <tuple>

#include "cuda/launch.h"

namespace gid {
namespace {

std::tuple<Tensor, Tensor> topk_nms(
    const Tensor& boxes, const Tensor& scores, int64_t k, double iou_threshold, std::optional<Tensor> groups,
    double min_size) {
  check_topk_nms(boxes, scores, k, iou_threshold, groups, min_size);
  STD_TORCH_CHECK(scores.size(1) <= int64_t(1) << 30, "boxes must be at most 2^30 an image, got ", scores.size(1));
  const CudaLaunch launch(scores);
  const Tensor box = prepared(boxes), score = prepared(scores);
  const std::optional<Tensor> group = prepared(groups);
  TopkNmsArgs args = {};
  args.images = as_int(scores.size(0), "the number of images");
  args.count = int(scores.size(1));
  args.list_size = std::max(1, std::min(args.count, kNmsList));
  args.k = as_int(k, "k");
  args.kept_pitch = std::min(args.k, args.count);
  args.iou_threshold = float(iou_threshold);
  args.min_size = float(min_size);

  Tensor indices = torch::stable::new_empty(score, {args.images, args.k}, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(score, {args.images}, ScalarType::Long);
  const Tensor counted = torch::stable::new_zeros(score, {args.images, kBins + 1}, ScalarType::Int);
  const Tensor list = torch::stable::new_empty(score, {args.images, args.list_size}, ScalarType::Long);
  const Tensor kept_boxes = torch::stable::new_empty(score, {args.images, args.kept_pitch, 4});
  std::optional<Tensor> kept_groups;
  if (group) kept_groups = torch::stable::new_empty(*group, {args.images, args.kept_pitch});
  args.boxes = pointer<Box>(box);
  args.scores = pointer<float>(score);
  args.groups = pointer<int64_t>(group);
  args.indices = mutable_pointer<int64_t>(indices);
  args.counts = mutable_pointer<int64_t>(counts);
  args.histogram = mutable_pointer<int>(counted);
  args.listed = args.histogram + int64_t(args.images) * kBins;
  args.list = static_cast<uint64_t*>(list.mutable_data_ptr());
  args.kept_boxes = mutable_pointer<Box>(kept_boxes);
  args.kept_groups = kept_groups ? mutable_pointer<int64_t>(*kept_groups) : nullptr;
  launch_topk_nms(launch, args);
  return {indices, counts};
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CUDA, m) { m.impl("topk_nms", TORCH_BOX(&gid::topk_nms)); }
