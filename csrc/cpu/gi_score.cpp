// gi_score on the CPU: one pass over the logits, and exponentials only for classes that may hold a row's maximum.
#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/boxes.h"
#include "common/checks.h"
#include "common/scores.h"

namespace gid {
namespace {

constexpr int64_t kLanes = 16;       // classes a step; separate maxima for each lane let the compiler use vector registers
constexpr int64_t kRowsAThread = 512;  // fewer rows are not worth another thread

struct RowMaxima {
  float teacher, student, bound;
  bool has_nan;
};

// Reads one row (C,) of both models' logits; writes each class's bound on |sigmoid(t) - sigmoid(s)| to bounds (C,).
template <typename T>
RowMaxima scan_row(const T* teacher, const T* student, int64_t classes, float* bounds) {
  float top_teacher[kLanes], top_student[kLanes], top_bound[kLanes];
  uint32_t nan[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    top_teacher[lane] = top_student[lane] = -std::numeric_limits<float>::infinity();
    top_bound[lane] = 0.0f;
    nan[lane] = 0;
  }
  const auto step = [&](int64_t start, int64_t lanes) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const float t = to_float(teacher[start + lane]), s = to_float(student[start + lane]);
      const float bound = probability_gap_bound(t, s);
      bounds[start + lane] = bound;
      top_bound[lane] = bound > top_bound[lane] ? bound : top_bound[lane];
      top_teacher[lane] = t > top_teacher[lane] ? t : top_teacher[lane];
      top_student[lane] = s > top_student[lane] ? s : top_student[lane];
      nan[lane] |= uint32_t(t != t) | uint32_t(s != s);
    }
  };
  int64_t start = 0;
  for (; start + kLanes <= classes; start += kLanes) step(start, kLanes);
  step(start, classes - start);
  return {*std::max_element(top_teacher, top_teacher + kLanes), *std::max_element(top_student, top_student + kLanes),
          *std::max_element(top_bound, top_bound + kLanes), std::any_of(nan, nan + kLanes, [](uint32_t n) { return n; })};
}

// The largest |sigmoid(t) - sigmoid(s)| of a row without NaN. The class with the largest bound goes first: after it
// few others can still win.
template <typename T>
float largest_gap(const T* teacher, const T* student, int64_t classes, const float* bounds, float top_bound) {
  if (top_bound == 0.0f) return 0.0f;
  const int64_t first = std::find(bounds, bounds + classes, top_bound) - bounds;
  float best = probability_gap(to_float(teacher[first]), to_float(student[first]));
  for (int64_t c = 0; c < classes; ++c) {
    if (bounds[c] > best) best = std::max(best, probability_gap(to_float(teacher[c]), to_float(student[c])));
  }
  return best;
}

std::tuple<Tensor, Tensor> gi_score(
    const Tensor& teacher_logits, const Tensor& student_logits, const Tensor& teacher_boxes,
    const Tensor& student_boxes, std::optional<Tensor> image_sizes) {
  check_gi_score(teacher_logits, student_logits, teacher_boxes, student_boxes, image_sizes);
  const int64_t images = teacher_logits.size(0), count = teacher_logits.size(1), classes = teacher_logits.size(2);
  const Tensor t = torch::stable::contiguous(teacher_logits), s = torch::stable::contiguous(student_logits);
  const Tensor t_boxes = torch::stable::contiguous(teacher_boxes), s_boxes = torch::stable::contiguous(student_boxes);
  const Tensor sizes = image_sizes ? torch::stable::contiguous(*image_sizes) : Tensor();
  Tensor scores = torch::stable::new_empty(teacher_boxes, {images, count});
  Tensor boxes = torch::stable::new_empty(teacher_boxes, {images, count, 4});

  const auto* from_teacher = static_cast<const Box*>(t_boxes.const_data_ptr());
  const auto* from_student = static_cast<const Box*>(s_boxes.const_data_ptr());
  const auto* size = image_sizes ? static_cast<const int64_t*>(sizes.const_data_ptr()) : nullptr;
  auto* score = static_cast<float*>(scores.mutable_data_ptr());
  auto* box = static_cast<Box*>(boxes.mutable_data_ptr());
  for_float_type(t, [&](auto type) {
    using T = decltype(type);
    const T* teacher = static_cast<const T*>(t.const_data_ptr());
    const T* student = static_cast<const T*>(s.const_data_ptr());
    torch::stable::parallel_for(0, images * count, kRowsAThread, [&](int64_t begin, int64_t end) {
      std::vector<float> bounds(classes);
      for (int64_t row = begin; row < end; ++row) {
        const T *t_row = teacher + row * classes, *s_row = student + row * classes;
        const RowMaxima top = scan_row(t_row, s_row, classes, bounds.data());
        score[row] = top.has_nan ? std::numeric_limits<float>::quiet_NaN()
                                 : largest_gap(t_row, s_row, classes, bounds.data(), top.bound);
        box[row] = !top.has_nan && top.teacher > top.student ? from_teacher[row] : from_student[row];
        if (size) box[row] = clip(box[row], float(size[row / count * 2]), float(size[row / count * 2 + 1]));
      }
    });
  });
  return {scores, boxes};
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CPU, m) { m.impl("gi_score", TORCH_BOX(&gid::gi_score)); }
