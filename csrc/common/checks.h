// What every operator demands of its arguments, checked once more behind the Python wrappers for whoever calls
// torch.ops.gid directly; and tensors as kernels want them. For the host side of csrc/cpu/*.cpp and csrc/cuda/*.cu;
// kernels do not read this file.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "coder.h"
#include "roi.h"
#include "types.h"

namespace gid {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_float_type(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  return type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16;
}

inline bool has_shape(const Tensor& tensor, const std::vector<int64_t>& shape) {
  const auto sizes = tensor.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end()) == shape;
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

// Contiguous, and 16-byte aligned as the kernels' wide loads ask for: what torch allocates is, a view need not be.
inline Tensor prepared(const Tensor& tensor) {
  const Tensor contiguous = torch::stable::contiguous(tensor);
  const bool aligned = reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % 16 == 0;
  return aligned ? contiguous : torch::stable::clone(contiguous);
}

inline std::optional<Tensor> prepared(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(prepared(*tensor)) : std::nullopt;
}

template <typename T>
const T* pointer(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
const T* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? pointer<T>(*tensor) : nullptr;
}

template <typename T>
T* mutable_pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline AnyFloats any_floats(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  const FloatType kind = type == ScalarType::Half       ? FloatType::kHalf
                         : type == ScalarType::BFloat16 ? FloatType::kBFloat16
                                                        : FloatType::kFloat;
  return {tensor.const_data_ptr(), kind};
}

inline BoxCoder box_coder(const std::vector<double>& weights, bool distances) {
  return {{float(weights[0]), float(weights[1]), float(weights[2]), float(weights[3])}, distances};
}

// Calls body with a value of the C++ type that stands for the tensor's dtype.
template <typename Body>
void for_float_type(const Tensor& tensor, const Body& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return body(float());
    case ScalarType::Half: return body(Half());
    case ScalarType::BFloat16: return body(BFloat16());
    default: STD_TORCH_CHECK(false, "expected float32, float16 or bfloat16");
  }
}

inline void check_boxes(const Tensor& boxes, const char* name, int64_t images, int64_t count, const Tensor& like) {
  STD_TORCH_CHECK(has_shape(boxes, {images, count, 4}), name, " must be (", images, ", ", count, ", 4)");
  STD_TORCH_CHECK(boxes.scalar_type() == ScalarType::Float, name, " must be float32");
  STD_TORCH_CHECK(same_device(boxes, like), name, " must be on the device of the other arguments");
}

inline void check_integers(
    const std::optional<Tensor>& tensor, const char* name, const std::vector<int64_t>& shape, const Tensor& like) {
  if (!tensor) return;
  STD_TORCH_CHECK(has_shape(*tensor, shape), name, " has another shape than the other arguments ask for");
  STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Long, name, " must be int64");
  STD_TORCH_CHECK(same_device(*tensor, like), name, " must be on the device of the other arguments");
}

inline void check_two_logits(
    const Tensor& teacher_logits, const Tensor& student_logits, const std::optional<Tensor>& image_sizes) {
  STD_TORCH_CHECK(teacher_logits.dim() == 3 && teacher_logits.size(2) > 0, "teacher_logits must be (B, R, C), C >= 1");
  const int64_t images = teacher_logits.size(0), count = teacher_logits.size(1), classes = teacher_logits.size(2);
  STD_TORCH_CHECK(has_shape(student_logits, {images, count, classes}), "student_logits must have teacher_logits' shape");
  STD_TORCH_CHECK(is_float_type(teacher_logits), "teacher_logits must be float32, float16 or bfloat16");
  STD_TORCH_CHECK(student_logits.scalar_type() == teacher_logits.scalar_type() &&
                  same_device(student_logits, teacher_logits), "student_logits must have teacher_logits' dtype and device");
  check_integers(image_sizes, "image_sizes", {images, 2}, teacher_logits);
}

inline void check_gi_score(
    const Tensor& teacher_logits, const Tensor& student_logits, const Tensor& teacher_boxes,
    const Tensor& student_boxes, const std::optional<Tensor>& image_sizes) {
  check_two_logits(teacher_logits, student_logits, image_sizes);
  const int64_t images = teacher_logits.size(0), count = teacher_logits.size(1);
  check_boxes(teacher_boxes, "teacher_boxes", images, count, teacher_logits);
  check_boxes(student_boxes, "student_boxes", images, count, teacher_logits);
}

// Of any of the three float types, also another one than that of `like`.
inline void check_floats(
    const Tensor& tensor, const char* name, const std::vector<int64_t>& shape, const Tensor& like) {
  STD_TORCH_CHECK(has_shape(tensor, shape), name, " has another shape than the other arguments ask for");
  STD_TORCH_CHECK(is_float_type(tensor), name, " must be float32, float16 or bfloat16");
  STD_TORCH_CHECK(same_device(tensor, like), name, " must be on the device of the other arguments");
}

inline void check_floats(
    const std::optional<Tensor>& tensor, const char* name, const std::vector<int64_t>& shape, const Tensor& like) {
  if (tensor) check_floats(*tensor, name, shape, like);
}

inline void check_anchors(const Tensor& anchors, const Tensor& like) {
  STD_TORCH_CHECK(anchors.dim() == 2 && anchors.size(1) == 4 && anchors.scalar_type() == ScalarType::Float,
                  "anchors must be (R, 4) float32");
  STD_TORCH_CHECK(same_device(anchors, like), "anchors must be on the device of the other arguments");
}

inline void check_weights(const std::vector<double>& weights) {
  STD_TORCH_CHECK(weights.size() == 4, "weights must be four numbers");
}

inline void check_decoded_gi_score(
    const Tensor& teacher_logits, const Tensor& student_logits, const Tensor& teacher_deltas,
    const Tensor& student_deltas, const Tensor& anchors, const std::optional<Tensor>& image_sizes,
    const std::vector<double>& weights) {
  check_two_logits(teacher_logits, student_logits, image_sizes);
  const std::vector<int64_t> shape{teacher_logits.size(0), teacher_logits.size(1), 4};
  check_floats(teacher_deltas, "teacher_deltas", shape, teacher_logits);
  check_floats(student_deltas, "student_deltas", shape, teacher_logits);
  check_anchors(anchors, teacher_logits);
  STD_TORCH_CHECK(anchors.size(0) == teacher_logits.size(1), "anchors must be one for each of the R boxes");
  check_weights(weights);
}

inline void check_topk_nms(
    const Tensor& boxes, const Tensor& scores, int64_t k, double iou_threshold, const std::optional<Tensor>& groups,
    double min_size) {
  STD_TORCH_CHECK(scores.dim() == 2 && scores.scalar_type() == ScalarType::Float, "scores must be (B, R) float32");
  STD_TORCH_CHECK(scores.size(1) < (int64_t(1) << 31), "scores must have fewer than 2^31 boxes an image");
  check_boxes(boxes, "boxes", scores.size(0), scores.size(1), scores);
  check_integers(groups, "groups", {scores.size(0), scores.size(1)}, scores);
  STD_TORCH_CHECK(k >= 0, "k must be at least 0");
  STD_TORCH_CHECK(iou_threshold >= 0 && iou_threshold <= 1, "iou_threshold must be from 0 to 1");
  STD_TORCH_CHECK(min_size >= 0, "min_size must be at least 0");
}

inline void check_multilevel_roi_align(
    const std::vector<Tensor>& features, const Tensor& boxes, const std::optional<Tensor>& counts,
    const std::vector<int64_t>& strides, int64_t output_size) {
  STD_TORCH_CHECK(!features.empty() && features.size() <= kMaxLevels, "features must be 1 to ", kMaxLevels, " tensors");
  STD_TORCH_CHECK(strides.size() == features.size(), "strides must have one entry for each of features");
  const Tensor& first = features[0];
  for (size_t l = 0; l < features.size(); ++l) {
    const Tensor& feature = features[l];
    STD_TORCH_CHECK(feature.dim() == 4 && feature.size(2) > 0 && feature.size(3) > 0, "features must be (B, Ch, H, W)");
    STD_TORCH_CHECK(feature.size(0) == first.size(0) && feature.size(1) == first.size(1),
                    "features must agree in B and Ch");
    STD_TORCH_CHECK(is_float_type(feature), "features must be float32, float16 or bfloat16");
    STD_TORCH_CHECK(feature.scalar_type() == first.scalar_type() && same_device(feature, first),
                    "features must agree in dtype and device");
    STD_TORCH_CHECK(strides[l] > 0 && (strides[l] & (strides[l] - 1)) == 0 && (l == 0 || strides[l] > strides[l - 1]),
                    "strides must be ascending powers of two");
  }
  STD_TORCH_CHECK(boxes.dim() == 3, "boxes must be (B, K, 4)");
  check_boxes(boxes, "boxes", first.size(0), boxes.size(1), first);
  check_integers(counts, "counts", {first.size(0)}, first);
  STD_TORCH_CHECK(output_size > 0, "output_size must be at least 1");
}

inline void check_multilevel_roi_align_backward(
    const Tensor& grad, const std::vector<Tensor>& features, const Tensor& boxes, const std::optional<Tensor>& counts,
    const std::vector<int64_t>& strides, int64_t output_size) {
  check_multilevel_roi_align(features, boxes, counts, strides, output_size);
  const std::vector<int64_t> shape{boxes.size(0), boxes.size(1), features[0].size(1), output_size, output_size};
  STD_TORCH_CHECK(has_shape(grad, shape), "grad must have the output's shape");
  STD_TORCH_CHECK(grad.scalar_type() == features[0].scalar_type() && same_device(grad, features[0]),
                  "grad must have the features' dtype and device");
}

inline void check_pairwise_distance(const Tensor& x, const std::optional<Tensor>& counts) {
  STD_TORCH_CHECK(x.dim() == 3 && is_float_type(x), "x must be (B, K, D) in float32, float16 or bfloat16");
  check_integers(counts, "counts", {x.size(0)}, x);
}

inline void check_pairwise_distance_backward(
    const Tensor& grad, const Tensor& x, const Tensor& distances, const std::optional<Tensor>& counts) {
  check_pairwise_distance(x, counts);
  for (const Tensor* tensor : {&grad, &distances}) {
    STD_TORCH_CHECK(has_shape(*tensor, {x.size(0), x.size(1), x.size(1)}) &&
                    tensor->scalar_type() == ScalarType::Float && same_device(*tensor, x),
                    "grad and distances must be (B, K, K) float32 on x's device");
  }
}

inline void check_match_anchors(
    const Tensor& boxes, const std::optional<Tensor>& counts, const Tensor& anchors, double high, double low) {
  STD_TORCH_CHECK(boxes.dim() == 3 && boxes.size(2) == 4 && boxes.scalar_type() == ScalarType::Float,
                  "boxes must be (B, N, 4) float32");
  check_integers(counts, "counts", {boxes.size(0)}, boxes);
  check_anchors(anchors, boxes);
  STD_TORCH_CHECK(low >= 0 && low <= high && high <= 1, "low and high must be from 0 to 1, low not above high");
}

// matched, and what of the ground truth goes with it; a teacher, and the rows that learn from it: each pair whole or not
// at all. Of `predicted` (B, R, ...), both are about the R rows.
inline void check_pairs(
    const Tensor& predicted, const std::optional<Tensor>& matched, bool has_truth, const std::optional<Tensor>& teacher,
    const std::optional<Tensor>& mask) {
  STD_TORCH_CHECK(predicted.dim() == 3 && is_float_type(predicted),
                  "predictions must be (B, R, ...) in float32, float16 or bfloat16");
  STD_TORCH_CHECK(matched.has_value() == has_truth, "matched goes with the ground truth: give all of it or nothing");
  STD_TORCH_CHECK(teacher.has_value() == mask.has_value(), "a teacher goes with a mask: give both or neither");
  const int64_t images = predicted.size(0), count = predicted.size(1);
  check_integers(matched, "matched", {images, count}, predicted);
  check_floats(teacher, "the teacher's tensor", {images, count, predicted.size(2)}, predicted);
  if (!mask) return;
  STD_TORCH_CHECK(has_shape(*mask, {images, count}) && mask->scalar_type() == ScalarType::Bool,
                  "mask must be (B, R) bool");
  STD_TORCH_CHECK(same_device(*mask, predicted), "mask must be on the device of the other arguments");
}

inline void check_image_sums(const std::optional<Tensor>& sums, const char* name, const Tensor& like) {
  if (!sums) return;
  STD_TORCH_CHECK(has_shape(*sums, {like.size(0)}) && sums->scalar_type() == ScalarType::Float &&
                  same_device(*sums, like), name, " must be (B,) float32 on the device of the other arguments");
}

inline void check_class_losses(
    const Tensor& logits, const std::optional<Tensor>& matched, const std::optional<Tensor>& labels,
    const std::optional<Tensor>& teacher_logits, const std::optional<Tensor>& mask) {
  check_pairs(logits, matched, labels.has_value(), teacher_logits, mask);
  if (labels) STD_TORCH_CHECK(labels->dim() == 2, "labels must be (B, N)");
  if (labels) check_integers(labels, "labels", {logits.size(0), labels->size(1)}, logits);
}

inline void check_box_losses(
    const Tensor& deltas, const std::optional<Tensor>& matched, const std::optional<Tensor>& boxes,
    const std::optional<Tensor>& anchors, const std::optional<Tensor>& teacher_deltas,
    const std::optional<Tensor>& mask, double beta, const std::vector<double>& weights) {
  check_pairs(deltas, matched, boxes.has_value() && anchors.has_value(), teacher_deltas, mask);
  STD_TORCH_CHECK(deltas.size(2) == 4, "deltas must be (B, R, 4)");
  if (matched) {
    STD_TORCH_CHECK(boxes->dim() == 3, "boxes must be (B, N, 4)");
    check_boxes(*boxes, "boxes", deltas.size(0), boxes->size(1), deltas);
    check_anchors(*anchors, deltas);
    STD_TORCH_CHECK(anchors->size(0) == deltas.size(1), "anchors must be one for each of the R rows");
  }
  STD_TORCH_CHECK(beta > 0, "beta must be above 0");
  check_weights(weights);
}

}  // namespace gid
