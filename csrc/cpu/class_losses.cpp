// class_losses and its gradient on the CPU. Nearly all rows are background, next to each other and treated alike, so
// runs of them are taken as one long vector whatever the number of classes. The few others are done number by number.
#include <algorithm>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/checks.h"
#include "common/losses.h"
#include "cpu/huge_pages.h"

namespace gid {
namespace {

constexpr int64_t kRowsAChunk = 256;
constexpr int64_t kNumbersAPart = 4096;  // summed in float32 before they join a double: long rows lose nothing
constexpr float kBackground = 1.0f - kFocalAlpha;

}  // namespace
}  // namespace gid

#define GID_VECTOR_CODE "cpu/class_losses_background.h"
#include "cpu/instruction_sets.h"

namespace gid {
namespace {

// One image, as the kernels see it. matched, or teacher and mask, may be missing.
template <typename T>
struct Image {
  const T* logits;         // (R, C)
  const int64_t* matched;  // (R,)
  const int64_t* labels;   // (N,)
  int64_t truths;          // N
  AnyFloats teacher;       // (R, C), from `first` on
  int64_t first;
  const bool* mask;  // (R,)
  int64_t classes;
  bool soft_focal;

  int64_t match(int64_t row) const { return matched ? matched[row] : -2; }

  bool is_masked(int64_t row) const { return mask && mask[row]; }

  // The class of a row's ground truth; -1: none.
  int64_t target(int64_t row) const {
    const int64_t match = matched[row];
    return match >= 0 && match < truths ? labels[match] : -1;
  }

  float logit(int64_t row, int64_t c) const { return to_float(logits[row * classes + c]); }

  Response response(int64_t row, int64_t c) const {
    const float student = logit(row, c), taught = teacher[first + row * classes + c];
    return {student, taught, std::exp(-std::fabs(student)), std::exp(-std::fabs(taught)), soft_focal};
  }
};

// A class's focal loss, and its derivative by the logit.
struct ClassFocal {
  float loss, derivative;

  ClassFocal(float logit, bool is_target) {
    const Focal<float> focal(is_target ? -logit : logit, std::exp(-std::fabs(logit)));
    loss = focal.loss * (is_target ? kFocalAlpha : kBackground);
    derivative = focal.derivative * (is_target ? -kFocalAlpha : kBackground);
  }
};

// Calls body(begin, end) for each run of rows for which is_member holds.
template <typename Member, typename Body>
void for_each_run(int64_t begin, int64_t end, const Member& is_member, const Body& body) {
  while (begin < end) {
    if (!is_member(begin)) {
      ++begin;
      continue;
    }
    int64_t stop = begin + 1;
    while (stop < end && is_member(stop)) ++stop;
    body(begin, stop);
    begin = stop;
  }
}

template <typename T>
double focal_sum(const Image<T>& image, int64_t begin, int64_t end) {
  const auto background_sum = GID_WIDEST(background_sum<T>);
  double total = 0.0;
  for_each_run(begin, end, [&](int64_t row) { return image.match(row) == -1; }, [&](int64_t first, int64_t last) {
    total += kBackground * background_sum(image.logits + first * image.classes, (last - first) * image.classes);
  });
  for (int64_t row = begin; row < end; ++row) {
    if (image.match(row) < 0) continue;
    const int64_t target = image.target(row);
    for (int64_t c = 0; c < image.classes; ++c) total += ClassFocal(image.logit(row, c), c == target).loss;
  }
  return total;
}

template <typename T>
double response_sum(const Image<T>& image, int64_t begin, int64_t end) {
  double total = 0.0;
  for (int64_t row = begin; row < end; ++row) {
    if (!image.is_masked(row)) continue;
    for (int64_t c = 0; c < image.classes; ++c) total += image.response(row, c).loss;
  }
  return total;
}

// Every number of `result` is written once; `cleared`: but for the zeros, which are there already.
template <typename T>
void write_gradient(
    const Image<T>& image, float of_focal, float of_response, int64_t begin, int64_t end, bool cleared, T* result) {
  const auto background_gradient = GID_WIDEST(background_gradient<T>);
  const int64_t classes = image.classes;
  const auto is_plain = [&](int64_t row) { return !image.is_masked(row) && image.match(row) < 0; };
  for_each_run(begin, end, is_plain, [&](int64_t first, int64_t last) {
    const auto is_background = [&](int64_t row) { return image.match(row) == -1; };
    const auto is_left_out = [&](int64_t row) { return image.match(row) < -1; };
    for_each_run(first, last, is_background, [&](int64_t from, int64_t to) {
      background_gradient(
          image.logits + from * classes, (to - from) * classes, of_focal * kBackground, result + from * classes);
    });
    if (cleared) return;
    for_each_run(first, last, is_left_out, [&](int64_t from, int64_t to) {
      std::fill(result + from * classes, result + to * classes, T{});
    });
  });
  for (int64_t row = begin; row < end; ++row) {
    if (is_plain(row)) continue;
    const int64_t target = image.match(row) >= 0 ? image.target(row) : -1;
    for (int64_t c = 0; c < classes; ++c) {
      float value = 0.0f;
      if (image.match(row) >= -1) value += of_focal * ClassFocal(image.logit(row, c), c == target).derivative;
      if (image.is_masked(row)) value += of_response * image.response(row, c).derivative;
      result[row * classes + c] = from_float<T>(value);
    }
  }
}

// The tensors of a call, held as kernels want them.
struct Arguments {
  Tensor logits;
  std::optional<Tensor> matched, labels, teacher, mask;
  int64_t images, count, classes, chunks;
  bool soft_focal;

  Arguments(
      const Tensor& logits, const std::optional<Tensor>& matched, const std::optional<Tensor>& labels,
      const std::optional<Tensor>& teacher, const std::optional<Tensor>& mask, bool soft_focal)
      : logits(prepared(logits)), matched(prepared(matched)), labels(prepared(labels)), teacher(prepared(teacher)),
        mask(prepared(mask)), images(logits.size(0)), count(logits.size(1)), classes(logits.size(2)),
        chunks((count + kRowsAChunk - 1) / kRowsAChunk), soft_focal(soft_focal) {}

  template <typename T>
  Image<T> image(int64_t b) const {
    Image<T> image{};
    image.first = b * count * classes;
    image.logits = pointer<T>(logits) + image.first;
    image.classes = classes;
    image.soft_focal = soft_focal;
    if (matched) {
      image.matched = pointer<int64_t>(*matched) + b * count;
      image.truths = labels->size(1);
      image.labels = pointer<int64_t>(*labels) + b * image.truths;
    }
    if (mask) {
      image.mask = pointer<bool>(*mask) + b * count;
      image.teacher = any_floats(*teacher);
    }
    return image;
  }

  // Calls body(b, begin, end, i) for pieces of the images' rows, the i-th of all.
  template <typename Body>
  void for_each_chunk(const Body& body) const {
    torch::stable::parallel_for(0, images * chunks, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t begin = i % chunks * kRowsAChunk;
        body(i / chunks, begin, std::min(begin + kRowsAChunk, count), i);
      }
    });
  }
};

void add_up(const std::vector<double>& parts, int64_t images, float* sums) {
  const int64_t each = images ? int64_t(parts.size()) / images : 0;
  for (int64_t b = 0; b < images; ++b) {
    double total = 0.0;
    for (int64_t i = b * each; i < (b + 1) * each; ++i) total += parts[i];
    sums[b] = float(total);
  }
}

std::tuple<Tensor, Tensor> class_losses(
    const Tensor& logits, std::optional<Tensor> matched, std::optional<Tensor> labels,
    std::optional<Tensor> teacher_logits, std::optional<Tensor> mask, std::optional<Tensor> focal, bool soft_focal) {
  check_class_losses(logits, matched, labels, teacher_logits, mask);
  check_image_sums(focal, "focal", logits);
  const Arguments in(logits, matched, labels, teacher_logits, mask, soft_focal);
  std::vector<double> of_focal(in.images * in.chunks, 0.0), of_response(in.images * in.chunks, 0.0);
  for_float_type(in.logits, [&](auto type) {
    using T = decltype(type);
    in.for_each_chunk([&](int64_t b, int64_t begin, int64_t end, int64_t i) {
      const Image<T> image = in.image<T>(b);
      if (image.matched && !focal) of_focal[i] = focal_sum(image, begin, end);
      if (image.mask) of_response[i] = response_sum(image, begin, end);
    });
  });
  Tensor task = torch::stable::new_empty(logits, {in.images}, ScalarType::Float);
  Tensor response = torch::stable::new_empty(logits, {in.images}, ScalarType::Float);
  add_up(of_focal, in.images, mutable_pointer<float>(task));
  add_up(of_response, in.images, mutable_pointer<float>(response));
  if (focal) torch::stable::copy_(task, *focal);
  return {task, response};
}

Tensor class_losses_backward(
    std::optional<Tensor> grad_focal, std::optional<Tensor> grad_response, const Tensor& logits,
    std::optional<Tensor> matched, std::optional<Tensor> labels, std::optional<Tensor> teacher_logits,
    std::optional<Tensor> mask, bool soft_focal) {
  check_class_losses(logits, matched, labels, teacher_logits, mask);
  check_image_sums(grad_focal, "grad_focal", logits);
  check_image_sums(grad_response, "grad_response", logits);
  if (!grad_focal) matched = labels = std::nullopt;
  if (!grad_response) teacher_logits = mask = std::nullopt;
  const std::optional<Tensor> focal = prepared(grad_focal), response = prepared(grad_response);
  const Arguments in(logits, matched, labels, teacher_logits, mask, soft_focal);
  Tensor result = torch::stable::new_empty(logits, {in.images, in.count, in.classes});
  // Without the task loss few rows are more than zero.
  const bool cleared = !in.matched && zeros_from_the_system(result);
  if (!cleared) wish_for_huge_pages(result);
  const float *of_focal = pointer<float>(focal), *of_response = pointer<float>(response);
  for_float_type(in.logits, [&](auto type) {
    using T = decltype(type);
    T* out = mutable_pointer<T>(result);
    in.for_each_chunk([&](int64_t b, int64_t begin, int64_t end, int64_t) {
      const Image<T> image = in.image<T>(b);
      write_gradient(image, of_focal ? of_focal[b] : 0.0f, of_response ? of_response[b] : 0.0f, begin, end,
                     cleared, out + image.first);
    });
  });
  return result;
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CPU, m) {
  m.impl("class_losses", TORCH_BOX(&gid::class_losses));
  m.impl("class_losses_backward", TORCH_BOX(&gid::class_losses_backward));
}
