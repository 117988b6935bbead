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

constexpr int64_t kRowsAChunk = 256;  // fewer rows are not worth another thread
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <int N>
struct Rows : Simd<N> {
  using V = Simd<N>;
  using Floats = typename V::Floats;

  // A fraction, the difference of two sigmoids. Fractions are compared by cross-multiplication, which costs less than
  // dividing each.
  struct Gap {
    Floats top = V::all(0.0f), bottom = V::all(1.0f);
  };

  // sigmoid(20) is 1 - 2e-9: logits beyond change nothing that counts; within, no product below overflows. NaN stays.
  static GID_INLINE Floats exp_of_minus(const Floats& x) {
    // sigmoid hardly moves where exp is least exact.
    return V::exp(V::smaller(V::all(20.0f), V::larger(V::all(-20.0f), -x)));
  }

  // |sigmoid(t) - sigmoid(s)| = |e^-s - e^-t| / ((1 + e^-t) (1 + e^-s))
  static GID_INLINE Gap probability_gap(const Floats& t, const Floats& s) {
    const Floats a = exp_of_minus(t), b = exp_of_minus(s);
    return {V::absolute(b - a), (1.0f + a) * (1.0f + b)};
  }

  // Of the classes seen so far, lane by lane.
  struct Maxima {
    Gap gap;
    Floats teacher = V::all(-kInfinity), student = V::all(-kInfinity);
    Floats nan = V::all(0.0f);  // NaN once a logit was, else 0
  };

  static GID_INLINE void take(Maxima& top, const Floats& t, const Floats& s) {
    const Gap gap = probability_gap(t, s);
    const auto larger = gap.top * top.gap.bottom > top.gap.top * gap.bottom;
    top.gap.top = larger ? gap.top : top.gap.top;
    top.gap.bottom = larger ? gap.bottom : top.gap.bottom;
    top.teacher = V::larger(t, top.teacher);
    top.student = V::larger(s, top.student);
    top.nan += gap.top * 0.0f;
  }

  // The largest gap of each row (C,) of logits, and whether the teacher's largest logit is above the student's.
  template <typename T>
  static GID_INLINE void score(
      const T* teacher, const T* student, int64_t rows, int64_t classes, float* scores, bool* teacher_is_surer) {
    if (classes < N) return score_short(teacher, student, rows, classes, scores, teacher_is_surer);
    for (int64_t row = 0; row < rows; ++row, teacher += classes, student += classes) {
      Maxima top;
      for (int64_t c = 0; c + N <= classes; c += N) take(top, V::load(teacher + c), V::load(student + c));
      // The last N classes are taken again where some are left, which changes no maximum.
      if (classes % N) take(top, V::load(teacher + classes - N), V::load(student + classes - N));
      const float nan = V::sum(top.nan);
      scores[row] = V::largest(top.gap.top / top.gap.bottom) + nan;
      teacher_is_surer[row] = V::largest(top.teacher) > V::largest(top.student) && nan == 0.0f;
    }
  }

  // Rows shorter than a vector: first all gaps, whichever row they are of, then the rows.
  template <typename T>
  static GID_INLINE void score_short(
      const T* teacher, const T* student, int64_t rows, int64_t classes, float* scores, bool* teacher_is_surer) {
    float gaps[kRowsAChunk * N];
    const int64_t count = rows * classes;
    for (int64_t i = 0; i < count; i += N) {
      if (i + N > count) {  // too few left: the last N again, or in a vector of their own
        if (count < N) return score_few(teacher, student, rows, classes, scores, teacher_is_surer);
        i = count - N;
      }
      const Gap gap = probability_gap(V::load(teacher + i), V::load(student + i));
      V::store(gaps + i, gap.top / gap.bottom);
    }
    reduce_rows(gaps, teacher, student, rows, classes, scores, teacher_is_surer);
  }

  // Fewer numbers than a vector has.
  template <typename T>
  static GID_INLINE void score_few(
      const T* teacher, const T* student, int64_t rows, int64_t classes, float* scores, bool* teacher_is_surer) {
    float t[N] = {}, s[N] = {}, gaps[N];
    for (int64_t i = 0; i < rows * classes; ++i) {
      t[i] = to_float(teacher[i]);
      s[i] = to_float(student[i]);
    }
    const Gap gap = probability_gap(V::load(t), V::load(s));
    V::store(gaps, gap.top / gap.bottom);
    reduce_rows(gaps, teacher, student, rows, classes, scores, teacher_is_surer);
  }

  template <typename T>
  static GID_INLINE void reduce_rows(
      const float* gaps, const T* teacher, const T* student, int64_t rows, int64_t classes, float* scores,
      bool* teacher_is_surer) {
    for (int64_t row = 0; row < rows; ++row, gaps += classes, teacher += classes, student += classes) {
      float score = gaps[0], sure_teacher = to_float(teacher[0]), sure_student = to_float(student[0]);
      for (int64_t c = 1; c < classes; ++c) {
        const float t = to_float(teacher[c]), s = to_float(student[c]);
        score = gaps[c] > score || gaps[c] != gaps[c] ? gaps[c] : score;  // NaN is the largest, and stays
        sure_teacher = t > sure_teacher ? t : sure_teacher;
        sure_student = s > sure_student ? s : sure_student;
      }
      scores[row] = score;
      teacher_is_surer[row] = sure_teacher > sure_student && score == score;
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
    ScoreRows<T>* const score_some = score_rows<T>();
    torch::stable::parallel_for(0, images * chunks, 1, [&](int64_t begin, int64_t end) {
      bool teacher_is_surer[kRowsAChunk];
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t b = chunk / chunks, first = chunk % chunks * kRowsAChunk;
        const int64_t rows = std::min(kRowsAChunk, count - first), start = b * count + first;
        const int64_t offset = start * classes;
        score_some(teacher + offset, student + offset, rows, classes, score + start, teacher_is_surer);
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
  return score_and_choose(teacher_logits, student_logits, image_sizes, [&](bool teacher_is_surer, int64_t row, int64_t) {
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
  const BoxCoder coder = box_coder(weights, distances);
  return score_and_choose(teacher_logits, student_logits, image_sizes, [&](bool teacher_is_surer, int64_t row, int64_t r) {
    const AnyFloats& from = teacher_is_surer ? from_teacher : from_student;
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
