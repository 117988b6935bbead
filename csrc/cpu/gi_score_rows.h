// The scores of rows of logits, GID_LANES classes at a time. Read by cpu/instruction_sets.h.
namespace gid {
namespace {
namespace GID_SET {

// A fraction, the difference of two sigmoids. Fractions are compared by cross-multiplication, which costs less than
// dividing each.
struct Gap {
  Floats top, bottom;
};

// sigmoid(20) is 1 - 2e-9: logits beyond change nothing that counts; within, no product below overflows.
GID_INLINE Floats exp_of_minus(const Floats& x) {
  return exp2(within(x * -kLog2E, 20.0f * kLog2E));  // sigmoid hardly moves where this is least exact
}

// |sigmoid(t) - sigmoid(s)| = |e^-s - e^-t| / ((1 + e^-t) (1 + e^-s)). Undefined where one is NaN.
GID_INLINE Gap probability_gap(const Floats& t, const Floats& s) {
  const Floats a = exp_of_minus(t), b = exp_of_minus(s), one_more = b + 1.0f;
  return {absolute(b - a), multiply_add(a, one_more, one_more)};
}

// Of the classes seen so far, lane by lane.
struct Maxima {
  Gap gap;
  Floats teacher, student;
  Nans nans;

  // The one that a compiler would make is compiled for any machine.
  GID_INLINE Maxima() : gap{all(0.0f), all(1.0f)}, teacher(all(-kInfinity)), student(all(-kInfinity)) {}

  GID_INLINE void see(const Floats& t, const Floats& s) {
    const Gap found = probability_gap(t, s);
    const auto is_larger = found.top * gap.bottom > gap.top * found.bottom;
    gap.top = is_larger ? found.top : gap.top;
    gap.bottom = is_larger ? found.bottom : gap.bottom;
    teacher = larger(t, teacher);
    student = larger(s, student);
    nans.see(t, s);
  }
};

template <typename T>
GID_INLINE void reduce_rows(
    const float* gaps, const T* teacher, const T* student, int64_t rows, int64_t classes, float* scores,
    bool* teacher_is_surer) {
  for (int64_t row = 0; row < rows; ++row, gaps += classes, teacher += classes, student += classes) {
    float score = 0.0f, sure_teacher = -kInfinity, sure_student = -kInfinity;
    bool is_nan = false;
    for (int64_t c = 0; c < classes; ++c) {
      const float t = to_float(teacher[c]), s = to_float(student[c]);
      score = gaps[c] > score ? gaps[c] : score;
      sure_teacher = t > sure_teacher ? t : sure_teacher;
      sure_student = s > sure_student ? s : sure_student;
      is_nan |= t != t || s != s;
    }
    scores[row] = is_nan ? kNaN : score;
    teacher_is_surer[row] = sure_teacher > sure_student && !is_nan;
  }
}

// Fewer numbers than a vector has.
template <typename T>
GID_INLINE void score_few(
    const T* teacher, const T* student, int64_t rows, int64_t classes, float* scores, bool* teacher_is_surer) {
  float t[N] = {}, s[N] = {}, gaps[N];
  for (int64_t i = 0; i < rows * classes; ++i) {
    t[i] = to_float(teacher[i]);
    s[i] = to_float(student[i]);
  }
  const Gap gap = probability_gap(load(t), load(s));
  store(gaps, gap.top / gap.bottom);
  reduce_rows(gaps, teacher, student, rows, classes, scores, teacher_is_surer);
}

// Rows shorter than a vector: first all gaps, whichever row they are of, then the rows.
template <typename T>
GID_INLINE void score_short(
    const T* teacher, const T* student, int64_t rows, int64_t classes, float* scores, bool* teacher_is_surer) {
  float gaps[kRowsAChunk * N];
  const int64_t count = rows * classes;
  if (count < N) return score_few(teacher, student, rows, classes, scores, teacher_is_surer);
  for (int64_t i = 0; i < count; i += N) {
    const int64_t at = i + N > count ? count - N : i;  // too few left: the last N again
    const Gap gap = probability_gap(load(teacher + at), load(student + at));
    store(gaps + at, gap.top / gap.bottom);
  }
  reduce_rows(gaps, teacher, student, rows, classes, scores, teacher_is_surer);
}

// The largest gap of each row (C,) of logits, and whether the teacher's largest logit is above the student's.
template <typename T>
void score_rows(
    const T* teacher, const T* student, int64_t rows, int64_t classes, float* scores, bool* teacher_is_surer) {
  if (classes < N) return score_short(teacher, student, rows, classes, scores, teacher_is_surer);
  for (int64_t row = 0; row < rows; ++row, teacher += classes, student += classes) {
    Maxima top;
    for (int64_t c = 0; c + N <= classes; c += N) top.see(load(teacher + c), load(student + c));
    // The last N classes are taken again where some are left, which changes no maximum.
    if (classes % N) top.see(load(teacher + classes - N), load(student + classes - N));
    const bool is_nan = top.nans.any();
    scores[row] = is_nan ? kNaN : largest(top.gap.top / top.gap.bottom);
    teacher_is_surer[row] = largest(top.teacher) > largest(top.student) && !is_nan;
  }
}

}  // namespace GID_SET
}  // namespace
}  // namespace gid
