#include "cuda/gi_score.cuh"

#include <tuple>

#include "cuda/launch.h"

namespace gid {
namespace {

template <typename Boxes>
std::tuple<Tensor, Tensor> run(
    const Tensor& teacher_logits, const Tensor& student_logits, const Boxes& source,
    const std::optional<Tensor>& image_sizes) {
  const CudaLaunch launch(teacher_logits);
  const Tensor teacher = prepared(teacher_logits), student = prepared(student_logits);
  const std::optional<Tensor> sizes = prepared(image_sizes);
  const int64_t images = teacher.size(0), count = teacher.size(1);
  Tensor scores = torch::stable::new_empty(teacher, {images, count}, ScalarType::Float);
  Tensor boxes = torch::stable::new_empty(teacher, {images, count, 4}, ScalarType::Float);
  for_float_type(teacher, [&](auto type) {
    using T = decltype(type);
    GiScoreArgs<T, Boxes> args = {};
    args.teacher_logits = pointer<T>(teacher);
    args.student_logits = pointer<T>(student);
    args.source = source;
    args.image_sizes = pointer<int64_t>(sizes);
    args.scores = mutable_pointer<float>(scores);
    args.boxes = mutable_pointer<Box>(boxes);
    args.images = images;
    args.count = count;
    args.classes = as_int(teacher.size(2), "the number of classes");
    launch_gi_score(launch, args);
  });
  return {scores, boxes};
}

std::tuple<Tensor, Tensor> gi_score(
    const Tensor& teacher_logits, const Tensor& student_logits, const Tensor& teacher_boxes,
    const Tensor& student_boxes, std::optional<Tensor> image_sizes) {
  check_gi_score(teacher_logits, student_logits, teacher_boxes, student_boxes, image_sizes);
  const Tensor teacher = prepared(teacher_boxes), student = prepared(student_boxes);
  return run(teacher_logits, student_logits, GivenBoxes{pointer<Box>(teacher), pointer<Box>(student)}, image_sizes);
}

std::tuple<Tensor, Tensor> decoded_gi_score(
    const Tensor& teacher_logits, const Tensor& student_logits, const Tensor& teacher_deltas,
    const Tensor& student_deltas, const Tensor& anchors, std::optional<Tensor> image_sizes,
    const std::vector<double>& weights, bool distances) {
  check_decoded_gi_score(
      teacher_logits, student_logits, teacher_deltas, student_deltas, anchors, image_sizes, weights);
  const Tensor teacher = prepared(teacher_deltas), student = prepared(student_deltas), anchor = prepared(anchors);
  const EncodedBoxes source{
      any_floats(teacher), any_floats(student), pointer<Box>(anchor), box_coder(weights, distances)};
  return run(teacher_logits, student_logits, source, image_sizes);
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CUDA, m) {
  m.impl("gi_score", TORCH_BOX(&gid::gi_score));
  m.impl("decoded_gi_score", TORCH_BOX(&gid::decoded_gi_score));
}
