// gi_score and decoded_gi_score on the CPU: one pass over the logits, as many classes at a time as the
// machine's vectors hold.
#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/boxes.h"
#include "common/checks.h"
#include "common/coder.h"

namespace gid {
namespace {

constexpr int64_t kRowsAChunk = 256;  // fewer rows are not worth another thread
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

}  // namespace
}  // namespace gid

#define GID_VECTOR_CODE "cpu/gi_score_rows.h"
#include "cpu/instruction_sets.h"

namespace gid {
namespace {

// Scores all rows, and asks box_of(teacher_is_surer, row, row of the image) for each row's box, which is then clipped.
template <typename BoxOf>
std::tuple<Tensor, Tensor> score_and_choose(
    const Tensor& teacher_logits, const Tensor& student_logits, const std::optional<Tensor>& image_sizes,
    const BoxOf& box_of) {
  const int64_t images = teacher_logits.size(0), count = teacher_logits.size(1), classes = teacher_logits.size(2);
  const Tensor t = prepared(teacher_logits), s = prepared(student_logits);
  const std::optional<Tensor> sizes = prepared(image_sizes);
  Tensor scores = torch::stable::new_empty(t, {images, count}, ScalarType::Float);
  Tensor boxes = torch::stable::new_empty(t, {images, count, 4}, ScalarType::Float);
  const int64_t* size = pointer<int64_t>(sizes);
  float* score = mutable_pointer<float>(scores);
  Box* box = mutable_pointer<Box>(boxes);
  const int64_t chunks = (count + kRowsAChunk - 1) / kRowsAChunk;  // of an image
  for_float_type(t, [&](auto type) {
    using T = decltype(type);
    const T *teacher = pointer<T>(t), *student = pointer<T>(s);
    const auto score_rows = GID_WIDEST(score_rows<T>);
    torch::stable::parallel_for(0, images * chunks, 1, [&](int64_t begin, int64_t end) {
      bool teacher_is_surer[kRowsAChunk];
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t b = chunk / chunks, first = chunk % chunks * kRowsAChunk;
        const int64_t rows = std::min(kRowsAChunk, count - first), start = b * count + first;
        const int64_t offset = start * classes;
        score_rows(teacher + offset, student + offset, rows, classes, score + start, teacher_is_surer);
        const float height = size ? float(size[b * 2]) : 0.0f, width = size ? float(size[b * 2 + 1]) : 0.0f;
        for (int64_t row = 0; row < rows; ++row) {
          const Box chosen = box_of(teacher_is_surer[row], start + row, first + row);
          box[start + row] = size ? clip(chosen, height, width) : chosen;
        }
      }
    });
  });
  return {scores, boxes};
}

std::tuple<Tensor, Tensor> gi_score(
    const Tensor& teacher_logits, const Tensor& student_logits, const Tensor& teacher_boxes,
    const Tensor& student_boxes, std::optional<Tensor> image_sizes) {
  check_gi_score(teacher_logits, student_logits, teacher_boxes, student_boxes, image_sizes);
  const Tensor t_boxes = prepared(teacher_boxes), s_boxes = prepared(student_boxes);
  const Box *from_teacher = pointer<Box>(t_boxes), *from_student = pointer<Box>(s_boxes);
  return score_and_choose(teacher_logits, student_logits, image_sizes, [&](bool of_teacher, int64_t row, int64_t) {
    return of_teacher ? from_teacher[row] : from_student[row];
  });
}

std::tuple<Tensor, Tensor> decoded_gi_score(
    const Tensor& teacher_logits, const Tensor& student_logits, const Tensor& teacher_deltas,
    const Tensor& student_deltas, const Tensor& anchors, std::optional<Tensor> image_sizes,
    const std::vector<double>& weights, bool distances) {
  check_decoded_gi_score(
      teacher_logits, student_logits, teacher_deltas, student_deltas, anchors, image_sizes, weights);
  const Tensor t_deltas = prepared(teacher_deltas), s_deltas = prepared(student_deltas), around = prepared(anchors);
  const AnyFloats from_teacher = any_floats(t_deltas), from_student = any_floats(s_deltas);
  const Box* anchor = pointer<Box>(around);
  const BoxCoder coder = box_coder(weights, distances);
  return score_and_choose(teacher_logits, student_logits, image_sizes, [&](bool of_teacher, int64_t row, int64_t r) {
    const AnyFloats& from = of_teacher ? from_teacher : from_student;
    const float deltas[4] = {from[row * 4], from[row * 4 + 1], from[row * 4 + 2], from[row * 4 + 3]};
    return decode(coder, deltas, anchor[r]);
  });
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CPU, m) {
  m.impl("gi_score", TORCH_BOX(&gid::gi_score));
  m.impl("decoded_gi_score", TORCH_BOX(&gid::decoded_gi_score));
}
