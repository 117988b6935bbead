// The scores of rows of logits, GID_LANES classes at a time. Read by cpu/instruction_sets.h.
namespace gid {
namespace {
namespace GID_SET {

// A fraction, the difference of two sigmoids. Fractions are compared by cross-multiplication, which costs less than
// dividing each.
struct Gap {
  Floats top, bottom;
};

constexpr float kLimit = 20.0f;  // sigmoid(20) is 1 - 2e-9: logits beyond change nothing that counts

// e^-x within 3e-6 of it, which puts a sigmoid 7e-7 off at most. With AVX-512 as it is, else of x `within` kLimit.
GID_INLINE Floats exp_of_minus(const Floats& x) {
  const Floats y = x * -kLog2E;
#if GID_LANES == 16
  const Floats f = _mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF);  // y - floor(y)
  // 2^f, f from 0 to 1, by the polynomial of least relative error, 2.7e-6 with rounding
  Floats power = multiply_add(f, all(1.35341679e-2f), all(5.20114606e-2f));
  power = multiply_add(power, f, all(2.41442757e-1f));
  power = multiply_add(power, f, all(6.93003834e-1f));
  power = multiply_add(power, f, all(1.00000259f));
  return _mm512_scalef_ps(power, y);  // times 2^floor(y)
#else
  return exp2(within(y, kLimit * kLog2E));
#endif
}

// |sigmoid(t) - sigmoid(s)| = |e^-s - e^-t| / ((1 + e^-t) (1 + e^-s)).
GID_INLINE Gap probability_gap(const Floats& t, const Floats& s) {
  const Floats a = exp_of_minus(t), b = exp_of_minus(s), one_more = b + 1.0f;
  return {absolute(b - a), multiply_add(a, one_more, one_more)};
}

// Of the classes seen so far, lane by lane.
struct Maxima {
  Gap gap;
  Floats teacher, student;
  Floats bottoms;  // of all of them the sum: no bottom can be larger, and after NaN it is NaN

  GID_INLINE Maxima(const Floats& t, const Floats& s)
      : gap(probability_gap(t, s)), teacher(t), student(s), bottoms(gap.bottom) {}

  GID_INLINE void see(const Floats& t, const Floats& s) {
    const Gap found = probability_gap(t, s);
    const auto is_larger = found.top * gap.bottom > gap.top * found.bottom;
    gap.top = is_larger ? found.top : gap.top;
    gap.bottom = is_larger ? found.bottom : gap.bottom;
    teacher = larger(t, teacher);
    student = larger(s, student);
    bottoms += found.bottom;
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
  const Gap gap = probability_gap(within(load(t), kLimit), within(load(s), kLimit));
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
    const Gap gap = probability_gap(within(load(teacher + at), kLimit), within(load(student + at), kLimit));
    store(gaps + at, gap.top / gap.bottom);
  }
  reduce_rows(gaps, teacher, student, rows, classes, scores, teacher_is_surer);
}

constexpr float kSafe = 0x1p60f;  // products of fractions with such bottoms do not overflow

template <typename T>
GID_INLINE Maxima maxima_of(const T* teacher, const T* student, int64_t classes) {
  const int64_t last = classes - N;
  Maxima top(load(teacher + last), load(student + last));  // some of these are seen again, which changes no maximum
  for (int64_t c = 0; c < last; c += N) {
    fetch_ahead(teacher + c);
    fetch_ahead(student + c);
    top.see(load(teacher + c), load(student + c));
  }
  return top;
}

// The gaps of a row with logits so low that products of fractions might overflow, or with NaN, which then all are.
template <typename T>
GID_INLINE Floats careful_gaps(const T* teacher, const T* student, int64_t classes) {
  Floats gaps = all(0.0f);
  Nans nans;
  for (int64_t c = 0; c < classes; c += N) {
    const int64_t at = c + N > classes ? classes - N : c;
    const Floats t = load(teacher + at), s = load(student + at);
    const Gap gap = probability_gap(within(t, kLimit), within(s, kLimit));
    gaps = larger(gap.top / gap.bottom, gaps);
    nans.see(t, s);
  }
  return nans.any() ? all(kNaN) : gaps;
}

// The largest gap of each row (C,) of logits, and whether the teacher's largest logit is above the student's.
template <typename T>
void score_rows(
    const T* teacher, const T* student, int64_t rows, int64_t classes, float* scores, bool* teacher_is_surer) {
  if (classes < N) return score_short(teacher, student, rows, classes, scores, teacher_is_surer);
  for (int64_t first = 0; first < rows; first += N) {
    Floats gaps[N], teachers[N], students[N];
    for (int lane = 0; lane < N; ++lane) {
      const int64_t row = first + lane < rows ? first + lane : rows - 1;
      const T *t = teacher + row * classes, *s = student + row * classes;
      const Maxima top = maxima_of(t, s, classes);
      teachers[lane] = top.teacher;
      students[lane] = top.student;
      gaps[lane] = all_below(top.bottoms, kSafe) ? top.gap.top / top.gap.bottom : careful_gaps(t, s, classes);
    }
    float score[N], surest_teacher[N], surest_student[N];
    store(score, largest_of_each(gaps));
    store(surest_teacher, largest_of_each(teachers));
    store(surest_student, largest_of_each(students));
    for (int lane = 0; lane < N && first + lane < rows; ++lane) {
      scores[first + lane] = score[lane];
      teacher_is_surer[first + lane] = surest_teacher[lane] > surest_student[lane] && score[lane] == score[lane];
    }
  }
}

}  // namespace GID_SET
}  // namespace
}  // namespace gid
