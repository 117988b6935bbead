#include "cuda/gi_score.cuh"

#include <tuple>

#include "cuda/launch.h"

namespace gid {
namespace {

std::tuple<Tensor, Tensor> gi_score(
    const Tensor& teacher_logits, const Tensor& student_logits, const Tensor& teacher_boxes,
    const Tensor& student_boxes, std::optional<Tensor> image_sizes) {
  check_gi_score(teacher_logits, student_logits, teacher_boxes, student_boxes, image_sizes);
  const CudaLaunch launch(teacher_logits);
  const Tensor teacher = prepared(teacher_logits), student = prepared(student_logits);
  const Tensor from_teacher = prepared(teacher_boxes), from_student = prepared(student_boxes);
  const std::optional<Tensor> sizes = prepared(image_sizes);
  const int64_t images = teacher.size(0), count = teacher.size(1);
  Tensor scores = torch::stable::new_empty(from_teacher, {images, count});
  Tensor boxes = torch::stable::new_empty(from_teacher, {images, count, 4});
  for_float_type(teacher, [&](auto type) {
    using T = decltype(type);
    GiScoreArgs<T> args = {};
    args.teacher_logits = pointer<T>(teacher);
    args.student_logits = pointer<T>(student);
    args.teacher_boxes = pointer<Box>(from_teacher);
    args.student_boxes = pointer<Box>(from_student);
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

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CUDA, m) { m.impl("gi_score", TORCH_BOX(&gid::gi_score)); }
