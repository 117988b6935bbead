// The operators' schemas, and the Python module `_C` whose import registers them.
//
// Every csrc/cpu/NAME.cpp and csrc/cuda/NAME.cu registers its own kernels for these schemas. The CUDA kernels live in a
// second library, so that this one loads under a torch without CUDA. Both use nothing of torch but its stable ABI.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "build_info.h"  // written by the build: GID_BUILD_INFO, a JSON object

STABLE_TORCH_LIBRARY(gid, m) {
  m.def(
      "gi_score(Tensor teacher_logits, Tensor student_logits, Tensor teacher_boxes, Tensor student_boxes, "
      "Tensor? image_sizes=None) -> (Tensor, Tensor)");
  m.def(
      "decoded_gi_score(Tensor teacher_logits, Tensor student_logits, Tensor teacher_deltas, Tensor student_deltas, "
      "Tensor anchors, Tensor? image_sizes=None, float[] weights=[1.0, 1.0, 1.0, 1.0], bool distances=False) "
      "-> (Tensor, Tensor)");
  m.def(
      "topk_nms(Tensor boxes, Tensor scores, int k, float iou_threshold=0.3, Tensor? groups=None, "
      "float min_size=0.0) -> (Tensor, Tensor)");
  m.def(
      "multilevel_roi_align(Tensor[] features, Tensor boxes, Tensor? counts, int[] strides, int output_size=10, "
      "int sampling_ratio=2, float canonical_size=224.0, int canonical_level=4, bool aligned=True) -> Tensor");
  m.def(
      "multilevel_roi_align_backward(Tensor grad, Tensor[] features, Tensor boxes, Tensor? counts, int[] strides, "
      "int output_size, int sampling_ratio, float canonical_size, int canonical_level, bool aligned, "
      "bool deterministic=True) -> Tensor[]");
  m.def("pairwise_distance(Tensor x, Tensor? counts=None) -> Tensor");
  m.def("pairwise_distance_backward(Tensor grad, Tensor x, Tensor distances, Tensor? counts) -> Tensor");
  m.def(
      "match_anchors(Tensor boxes, Tensor? counts, Tensor anchors, float high=0.5, float low=0.4, "
      "bool low_quality=True) -> Tensor");
  m.def(
      "class_losses(Tensor logits, Tensor? matched=None, Tensor? labels=None, Tensor? teacher_logits=None, "
      "Tensor? mask=None, Tensor? focal=None, bool soft_focal=False) -> (Tensor, Tensor)");
  m.def(
      "class_losses_backward(Tensor? grad_focal, Tensor? grad_response, Tensor logits, Tensor? matched, "
      "Tensor? labels, Tensor? teacher_logits, Tensor? mask, bool soft_focal) -> Tensor");
  m.def(
      "box_losses(Tensor deltas, Tensor? matched=None, Tensor? boxes=None, Tensor? anchors=None, "
      "Tensor? teacher_deltas=None, Tensor? mask=None, float beta=0.1, float[] weights=[1.0, 1.0, 1.0, 1.0]) "
      "-> (Tensor, Tensor)");
  m.def(
      "box_losses_backward(Tensor? grad_l1, Tensor? grad_response, Tensor deltas, Tensor? matched, Tensor? boxes, "
      "Tensor? anchors, Tensor? teacher_deltas, Tensor? mask, float beta, float[] weights) -> Tensor");
}

PYBIND11_MODULE(_C, m) {
  m.def(
      "build_info",
      [] { return pybind11::module_::import("json").attr("loads")(GID_BUILD_INFO); },
      "What this library was built from and for, as a dict.");
}
