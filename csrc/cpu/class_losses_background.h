// The focal loss of background, GID_LANES logits at a time. Read by cpu/instruction_sets.h.
namespace gid {
namespace {
namespace GID_SET {

GID_INLINE Focal<Floats> background(const Floats& x) {
  const Floats size = absolute(x);
  return {x, exp(-(size > 43.0f ? all(43.0f) : size))};  // e^-43 beside 1 is nothing
}

template <typename T>
GID_INLINE Floats load_some(const T* from, int64_t count, float rest) {
  float values[N];
  for (int64_t i = 0; i < N; ++i) values[i] = i < count ? to_float(from[i]) : rest;
  return load(values);
}

template <typename T>
double background_sum(const T* logits, int64_t count) {
  double total = 0.0;
  for (int64_t start = 0; start < count; start += kNumbersAPart) {
    const int64_t end = start + kNumbersAPart < count ? start + kNumbersAPart : count;
    Floats part{};
    int64_t i = start;
    for (; i + N <= end; i += N) {
      fetch_ahead(logits + i);
      part += background(load(logits + i)).loss;
    }
    if (i < end) part += background(load_some(logits + i, end - i, -INFINITY)).loss;
    total += sum(part);
  }
  return total;
}

template <typename T>
void background_gradient(const T* logits, int64_t count, float scale, T* result) {
  int64_t i = 0;
  for (; i + N <= count; i += N) {
    fetch_ahead(logits + i);
    store(result + i, background(load(logits + i)).derivative * scale);
  }
  if (i == count) return;
  float values[N];
  store(values, background(load_some(logits + i, count - i, -INFINITY)).derivative * scale);
  for (int64_t lane = 0; i + lane < count; ++lane) result[i + lane] = from_float<T>(values[lane]);
}

}  // namespace GID_SET
}  // namespace
}  // namespace gid
