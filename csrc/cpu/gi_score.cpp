// gi_score and decoded_gi_score on the CPU: one pass over the logits, as many classes at a time as the machine's vectors hold.
#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/boxes.h"
#include "common/checks.h"
#include "common/coder.h"
#include "cpu/simd.h"

namespace gid {
namespace {

constexpr int64_t kRowsAThread = 256;  // fewer rows are not worth another thread
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <int N>
struct Rows : Simd<N> {
  using V = Simd<N>;
  using Floats = typename V::Floats;

  // Logits beyond 43 change nothing that a float32 near 1 can hold; within, nothing overflows. NaN stays NaN.
  static GID_INLINE Floats bounded(const Floats& x) {
    const Floats below = x > 43.0f ? V::all(43.0f) : x;
    return below < -43.0f ? V::all(-43.0f) : below;
  }

  // |sigmoid(t) - sigmoid(s)| = |e^-s - e^-t| / ((1 + e^-t) (1 + e^-s))
  static GID_INLINE Floats probability_gap(const Floats& t, const Floats& s) {
    // sigmoid hardly moves where exp is least exact.
    const Floats a = V::exp(-bounded(t)), b = V::exp(-bounded(s));
    return V::absolute(b - a) / ((1.0f + a) * (1.0f + b));
  }

  // Of the classes seen so far, lane by lane.
  struct Maxima {
    Floats gap = V::all(0.0f), teacher = V::all(-kInfinity), student = V::all(-kInfinity);
    Floats nan = V::all(0.0f);  // NaN once a gap was, else 0
  };

  static GID_INLINE void take(Maxima& top, const Floats& t, const Floats& s) {
    const Floats gap = probability_gap(t, s);
    top.gap = V::larger(gap, top.gap);
    top.teacher = V::larger(t, top.teacher);
    top.student = V::larger(s, top.student);
    top.nan += gap * 0.0f;
  }

  // The largest gap of each row (C,) of logits, and whether the teacher's largest logit is above the student's.
  template <typename T>
  static GID_INLINE void score(
      const T* teacher, const T* student, int64_t rows, int64_t classes, float* scores, bool* teacher_is_surer) {
    for (int64_t row = 0; row < rows; ++row, teacher += classes, student += classes) {
      Maxima top;
      int64_t c = 0;
      for (; c + N <= classes; c += N) take(top, V::load(teacher + c), V::load(student + c));
      if (c < classes) {
        float t[N], s[N];
        std::fill(t, t + N, -kInfinity);
        std::fill(s, s + N, -kInfinity);
        for (int lane = 0; c + lane < classes; ++lane) {
          t[lane] = to_float(teacher[c + lane]);
          s[lane] = to_float(student[c + lane]);
        }
        take(top, V::load(t), V::load(s));
      }
      const float nan = V::sum(top.nan);
      scores[row] = V::largest(top.gap) + nan;
      teacher_is_surer[row] = V::largest(top.teacher) > V::largest(top.student) && nan == 0.0f;
    }
  }
};

template <typename T>
using ScoreRows = void(const T*, const T*, int64_t, int64_t, float*, bool*);

template <typename T>
void score_rows_4(const T* t, const T* s, int64_t rows, int64_t classes, float* scores, bool* teacher_is_surer) {
  Rows<4>::score(t, s, rows, classes, scores, teacher_is_surer);
}

#ifdef GID_X86
template <typename T>
GID_TARGET("avx2")
void score_rows_8(const T* t, const T* s, int64_t rows, int64_t classes, float* scores, bool* teacher_is_surer) {
  Rows<8>::score(t, s, rows, classes, scores, teacher_is_surer);
}

template <typename T>
GID_TARGET("avx512f")
void score_rows_16(const T* t, const T* s, int64_t rows, int64_t classes, float* scores, bool* teacher_is_surer) {
  Rows<16>::score(t, s, rows, classes, scores, teacher_is_surer);
}
#endif

// The widest that this machine can run.
template <typename T>
ScoreRows<T>* score_rows() {
#ifdef GID_X86
  if (__builtin_cpu_supports("avx512f")) return score_rows_16<T>;
  if (__builtin_cpu_supports("avx2")) return score_rows_8<T>;
#endif
  return score_rows_4<T>;
}

// Scores all rows, and asks box_of(teacher_is_surer, row) for each row's box, which is then clipped to its image.
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
  for_float_type(t, [&](auto type) {
    using T = decltype(type);
    const T *teacher = pointer<T>(t), *student = pointer<T>(s);
    ScoreRows<T>* const score_some = score_rows<T>();
    torch::stable::parallel_for(0, images * count, kRowsAThread, [&](int64_t begin, int64_t end) {
      bool teacher_is_surer[kRowsAThread];
      for (int64_t start = begin; start < end; start += kRowsAThread) {
        const int64_t rows = std::min(kRowsAThread, end - start), offset = start * classes;
        score_some(teacher + offset, student + offset, rows, classes, score + start, teacher_is_surer);
        for (int64_t row = start; row < start + rows; ++row) {
          box[row] = box_of(teacher_is_surer[row - start], row);
          if (size) box[row] = clip(box[row], float(size[row / count * 2]), float(size[row / count * 2 + 1]));
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
  return score_and_choose(teacher_logits, student_logits, image_sizes, [&](bool teacher_is_surer, int64_t row) {
    return teacher_is_surer ? from_teacher[row] : from_student[row];
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
  const int64_t count = anchors.size(0);
  const BoxCoder coder = box_coder(weights, distances);
  return score_and_choose(teacher_logits, student_logits, image_sizes, [&](bool teacher_is_surer, int64_t row) {
    const AnyFloats& from = teacher_is_surer ? from_teacher : from_student;
    const float deltas[4] = {from[row * 4], from[row * 4 + 1], from[row * 4 + 2], from[row * 4 + 3]};
    return decode(coder, deltas, anchor[row % count]);
  });
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CPU, m) {
  m.impl("gi_score", TORCH_BOX(&gid::gi_score));
  m.impl("decoded_gi_score", TORCH_BOX(&gid::decoded_gi_score));
}
