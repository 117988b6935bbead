#include "cuda/match_anchors.cuh"

#include "cuda/launch.h"

namespace gid {
namespace {

Tensor match_anchors(
    const Tensor& boxes, std::optional<Tensor> counts, const Tensor& anchors, double high, double low,
    bool low_quality) {
  check_match_anchors(boxes, counts, anchors, high, low);
  STD_TORCH_CHECK(boxes.size(1) <= int64_t(1) << 30, "boxes must be at most 2^30 an image, got ", boxes.size(1));
  const CudaLaunch launch(boxes);
  const Tensor box = prepared(boxes), anchor = prepared(anchors);
  const std::optional<Tensor> count = prepared(counts);
  MatchAnchorsArgs args = {};
  args.images = boxes.size(0);
  args.slots = int(boxes.size(1));
  args.count = anchors.size(0);
  args.high = float(high);
  args.low = float(low);
  Tensor matched = torch::stable::new_empty(box, {args.images, args.count}, ScalarType::Long);
  std::optional<Tensor> best;
  if (low_quality) best = torch::stable::new_zeros(box, {args.images, args.slots}, ScalarType::Int);
  args.boxes = pointer<Box>(box);
  args.counts = pointer<int64_t>(count);
  args.anchors = pointer<Box>(anchor);
  args.best = best ? mutable_pointer<unsigned>(*best) : nullptr;
  args.matched = mutable_pointer<int64_t>(matched);
  launch_match_anchors(launch, args);
  return matched;
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CUDA, m) { m.impl("match_anchors", TORCH_BOX(&gid::match_anchors)); }
