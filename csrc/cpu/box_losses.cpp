// box_losses and its gradient on the CPU. Few rows count; the others cost a look at matched and mask.
#include <algorithm>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/checks.h"
#include "common/coder.h"
#include "common/losses.h"

namespace gid {
namespace {

constexpr int64_t kRowsAThread = 8192;

// The arguments as kernels want them; those of either part may be missing.
struct BoxLosses {
  Tensor deltas;
  std::optional<Tensor> matched, boxes, anchors, teacher, mask;
  int64_t images, count, truths;
  BoxCoder coder;
  float beta;

  BoxLosses(
      const Tensor& deltas, const std::optional<Tensor>& matched, const std::optional<Tensor>& boxes,
      const std::optional<Tensor>& anchors, const std::optional<Tensor>& teacher, const std::optional<Tensor>& mask,
      double beta, const std::vector<double>& weights)
      : deltas(prepared(deltas)), matched(prepared(matched)), boxes(prepared(boxes)), anchors(prepared(anchors)),
        teacher(prepared(teacher)), mask(prepared(mask)), images(deltas.size(0)), count(deltas.size(1)),
        truths(boxes ? boxes->size(1) : 0), coder(box_coder(weights, false)), beta(float(beta)) {}
};

// Goes through rows of all images; the two members say what a row's four deltas differ by from what they should be.
struct BoxRows {
  AnyFloats deltas, teacher;
  const int64_t* matched;
  const Box *boxes, *anchors;
  const bool* mask;
  const BoxLosses& all;

  explicit BoxRows(const BoxLosses& all)
      : deltas(any_floats(all.deltas)), teacher(all.teacher ? any_floats(*all.teacher) : AnyFloats{}),
        matched(pointer<int64_t>(all.matched)), boxes(pointer<Box>(all.boxes)), anchors(pointer<Box>(all.anchors)),
        mask(pointer<bool>(all.mask)), all(all) {}

  // False where the row has no ground truth.
  bool task(int64_t row, float* difference) const {
    if (!matched || matched[row] < 0 || matched[row] >= all.truths) return false;
    encode(all.coder, boxes[row / all.count * all.truths + matched[row]], anchors[row % all.count], difference);
    for (int i = 0; i < 4; ++i) difference[i] = deltas[row * 4 + i] - difference[i];
    return true;
  }

  // False where the row does not learn from the teacher.
  bool response(int64_t row, float* difference) const {
    if (!mask || !mask[row]) return false;
    for (int i = 0; i < 4; ++i) difference[i] = deltas[row * 4 + i] - teacher[row * 4 + i];
    return true;
  }
};

std::tuple<Tensor, Tensor> box_losses(
    const Tensor& deltas, std::optional<Tensor> matched, std::optional<Tensor> boxes, std::optional<Tensor> anchors,
    std::optional<Tensor> teacher_deltas, std::optional<Tensor> mask, double beta,
    const std::vector<double>& weights) {
  check_box_losses(deltas, matched, boxes, anchors, teacher_deltas, mask, beta, weights);
  const BoxLosses in(deltas, matched, boxes, anchors, teacher_deltas, mask, beta, weights);
  const BoxRows rows(in);
  Tensor task = torch::stable::new_empty(deltas, {in.images}, ScalarType::Float);
  Tensor response = torch::stable::new_empty(deltas, {in.images}, ScalarType::Float);
  float *l1 = mutable_pointer<float>(task), *smooth = mutable_pointer<float>(response);
  torch::stable::parallel_for(0, in.images, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      double l1_sum = 0.0, smooth_sum = 0.0;
      for (int64_t row = b * in.count; row < (b + 1) * in.count; ++row) {
        float difference[4];
        if (rows.task(row, difference)) {
          for (const float d : difference) l1_sum += std::fabs(d);
        }
        if (rows.response(row, difference)) {
          for (const float d : difference) smooth_sum += SmoothL1(d, in.beta).loss;
        }
      }
      l1[b] = float(l1_sum);
      smooth[b] = float(smooth_sum);
    }
  });
  return {task, response};
}

Tensor box_losses_backward(
    std::optional<Tensor> grad_l1, std::optional<Tensor> grad_response, const Tensor& deltas,
    std::optional<Tensor> matched, std::optional<Tensor> boxes, std::optional<Tensor> anchors,
    std::optional<Tensor> teacher_deltas, std::optional<Tensor> mask, double beta,
    const std::vector<double>& weights) {
  check_box_losses(deltas, matched, boxes, anchors, teacher_deltas, mask, beta, weights);
  check_image_sums(grad_l1, "grad_l1", deltas);
  check_image_sums(grad_response, "grad_response", deltas);
  if (!grad_l1) matched = boxes = anchors = std::nullopt;
  if (!grad_response) teacher_deltas = mask = std::nullopt;
  const BoxLosses in(deltas, matched, boxes, anchors, teacher_deltas, mask, beta, weights);
  const BoxRows rows(in);
  const std::optional<Tensor> l1 = prepared(grad_l1), smooth = prepared(grad_response);
  const float *of_l1 = pointer<float>(l1), *of_smooth = pointer<float>(smooth);
  Tensor result = torch::stable::new_empty(deltas, {in.images, in.count, 4});
  for_float_type(result, [&](auto type) {
    using T = decltype(type);
    T* out = mutable_pointer<T>(result);
    torch::stable::parallel_for(0, in.images * in.count, kRowsAThread, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        float gradient[4] = {}, difference[4];
        if (rows.task(row, difference)) {
          const float scale = of_l1[row / in.count];
          for (int i = 0; i < 4; ++i) gradient[i] += scale * float((difference[i] > 0) - (difference[i] < 0));
        }
        if (rows.response(row, difference)) {
          const float scale = of_smooth[row / in.count];
          for (int i = 0; i < 4; ++i) gradient[i] += scale * SmoothL1(difference[i], in.beta).derivative;
        }
        for (int i = 0; i < 4; ++i) out[row * 4 + i] = from_float<T>(gradient[i]);
      }
    });
  });
  return result;
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CPU, m) {
  m.impl("box_losses", TORCH_BOX(&gid::box_losses));
  m.impl("box_losses_backward", TORCH_BOX(&gid::box_losses_backward));
}
