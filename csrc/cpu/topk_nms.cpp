// topk_nms on the CPU: exact greedy NMS that orders only as much of the boxes as it needs.
#include <algorithm>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/boxes.h"
#include "common/checks.h"

namespace gid {
namespace {

// One image's inputs: boxes, scores and (or null) groups of R boxes.
struct Candidates {
  const Box* boxes;
  const float* scores;
  const int64_t* groups;
  int64_t count;
};

struct Kept {
  Box box;
  float area;
  int64_t group;
};

// Sorting keys of the boxes that may be chosen: ascending is by descending score, then by ascending index.
std::vector<uint64_t> usable_keys(const Candidates& in, float min_size) {
  std::vector<uint64_t> keys;
  keys.reserve(in.count);
  for (int64_t r = 0; r < in.count; ++r) {
    if (is_usable(in.boxes[r], in.scores[r], min_size)) {
      keys.push_back(uint64_t(~score_key(in.scores[r])) << 32 | uint64_t(r));
    }
  }
  return keys;
}

bool is_suppressed(const std::vector<Kept>& kept, const Kept& candidate, float iou_threshold) {
  return std::any_of(kept.begin(), kept.end(), [&](const Kept& other) {
    return other.group == candidate.group && iou(other.box, other.area, candidate.box, candidate.area) > iou_threshold;
  });
}

// Writes the survivors' indices (k,) and returns how many there are. Goes down the order in stretches, each selected
// and sorted only when the ones before it did not yield k survivors: mostly the first is enough.
int64_t choose(const Candidates& in, int64_t k, float iou_threshold, float min_size, int64_t* indices) {
  std::vector<uint64_t> keys = usable_keys(in, min_size);
  std::vector<Kept> kept;
  auto stretch = std::max<int64_t>(256, 4 * k);
  for (auto begin = keys.begin(); begin != keys.end() && int64_t(kept.size()) < k; stretch *= 4) {
    const auto end = begin + std::min<int64_t>(stretch, keys.end() - begin);
    if (end != keys.end()) std::nth_element(begin, end, keys.end());
    std::sort(begin, end);
    for (; begin != end && int64_t(kept.size()) < k; ++begin) {
      const auto r = int64_t(*begin & 0xffffffffu);
      const Kept candidate{in.boxes[r], area(in.boxes[r]), in.groups ? in.groups[r] : 0};
      if (is_suppressed(kept, candidate, iou_threshold)) continue;
      indices[kept.size()] = r;
      kept.push_back(candidate);
    }
  }
  return int64_t(kept.size());
}

std::tuple<Tensor, Tensor> topk_nms(
    const Tensor& boxes, const Tensor& scores, int64_t k, double iou_threshold, std::optional<Tensor> groups,
    double min_size) {
  check_topk_nms(boxes, scores, k, iou_threshold, groups, min_size);
  const int64_t images = scores.size(0), count = scores.size(1);
  const Tensor box = prepared(boxes), score = prepared(scores);
  const std::optional<Tensor> group = prepared(groups);
  Tensor indices = torch::stable::new_empty(scores, {images, k}, ScalarType::Long);
  torch::stable::fill_(indices, -1);
  Tensor counts = torch::stable::new_empty(scores, {images}, ScalarType::Long);

  const Box* all_boxes = pointer<Box>(box);
  const float* all_scores = pointer<float>(score);
  const int64_t* all_groups = pointer<int64_t>(group);
  int64_t *index = mutable_pointer<int64_t>(indices), *chosen = mutable_pointer<int64_t>(counts);
  torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * count;
      const Candidates in{all_boxes + first, all_scores + first, all_groups ? all_groups + first : nullptr, count};
      chosen[b] = choose(in, k, float(iou_threshold), float(min_size), index + b * k);
    }
  });
  return {indices, counts};
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CPU, m) { m.impl("topk_nms", TORCH_BOX(&gid::topk_nms)); }
