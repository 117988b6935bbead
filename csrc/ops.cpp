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
      "topk_nms(Tensor boxes, Tensor scores, int k, float iou_threshold=0.3, Tensor? groups=None, "
      "float min_size=0.0) -> (Tensor, Tensor)");
  m.def(
      "multilevel_roi_align(Tensor[] features, Tensor boxes, Tensor? counts, int[] strides, int output_size=10, "
      "int sampling_ratio=2, float canonical_size=224.0, int canonical_level=4, bool aligned=True) -> Tensor");
  m.def(
      "multilevel_roi_align_backward(Tensor grad, Tensor[] features, Tensor boxes, Tensor? counts, int[] strides, "
      "int output_size, int sampling_ratio, float canonical_size, int canonical_level, bool aligned) "
      "-> Tensor[]");
  m.def("pairwise_distance(Tensor x, Tensor? counts=None) -> Tensor");
  m.def("pairwise_distance_backward(Tensor grad, Tensor x, Tensor distances, Tensor? counts) -> Tensor");
}

PYBIND11_MODULE(_C, m) {
  m.def(
      "build_info",
      [] { return pybind11::module_::import("json").attr("loads")(GID_BUILD_INFO); },
      "What this library was built from and for, as a dict.");
}
