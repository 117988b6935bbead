// match_anchors on the CPU: two passes over the anchors, many at a time, with every box of an image tried on each. What
// they share, the overlap, is computed alike, so that "equal to the best" is found again.
#include <algorithm>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/boxes.h"
#include "common/checks.h"

namespace gid {
namespace {

constexpr int64_t kChunk = 4096;  // anchors of one piece of work; a multiple of every vector's length
constexpr int64_t kWidest = 16;

struct Anchors {  // by coordinate
  const float *x1, *y1, *x2, *y2, *area;
};

// One image's boxes; best holds each one's largest IoU with any anchor once the first pass is done.
struct Truth {
  const Box* boxes;
  const float* areas;
  int64_t count;
};

struct Thresholds {
  float high, low;
  bool low_quality;
};

}  // namespace
}  // namespace gid

#define GID_VECTOR_CODE "cpu/match_anchors_lanes.h"
#include "cpu/instruction_sets.h"

namespace gid {
namespace {

// Anchors by coordinate, filled up with empty ones to whole vectors.
struct OwnedAnchors {
  std::vector<float> x1, y1, x2, y2, area;
  int64_t padded;

  OwnedAnchors(const Box* boxes, int64_t count) : padded((count + kWidest - 1) / kWidest * kWidest) {
    for (auto* values : {&x1, &y1, &x2, &y2, &area}) values->assign(padded, 0.0f);
    torch::stable::parallel_for(0, count, kChunk, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        x1[r] = boxes[r].x1;
        y1[r] = boxes[r].y1;
        x2[r] = boxes[r].x2;
        y2[r] = boxes[r].y2;
        area[r] = gid::area(boxes[r]);
      }
    });
  }

  Anchors columns() const { return {x1.data(), y1.data(), x2.data(), y2.data(), area.data()}; }
};

// The images' boxes, and where the best overlaps of each image's boxes begin.
struct Images {
  std::vector<Truth> truths;
  std::vector<float> areas;

  Images(const Box* boxes, const int64_t* counts, int64_t images, int64_t slots) : areas(images * slots) {
    for (int64_t i = 0; i < images * slots; ++i) areas[i] = area(boxes[i]);
    for (int64_t b = 0; b < images; ++b) {
      const int64_t filled = counts ? std::clamp<int64_t>(counts[b], 0, slots) : slots;
      truths.push_back({boxes + b * slots, areas.data() + b * slots, filled});
    }
  }
};

Tensor match_anchors(
    const Tensor& boxes, std::optional<Tensor> counts, const Tensor& anchors, double high, double low,
    bool low_quality) {
  check_match_anchors(boxes, counts, anchors, high, low);
  const int64_t images = boxes.size(0), slots = boxes.size(1), count = anchors.size(0);
  const Tensor box = prepared(boxes), around = prepared(anchors);
  const std::optional<Tensor> filled = prepared(counts);
  Tensor matched = torch::stable::new_empty(boxes, {images, count}, ScalarType::Long);
  if (count == 0 || images == 0) return matched;

  const int64_t* number = pointer<int64_t>(filled);
  int64_t* result = mutable_pointer<int64_t>(matched);
  const OwnedAnchors owned(pointer<Box>(around), count);
  const Anchors all = owned.columns();
  const Images known(pointer<Box>(box), number, images, slots);
  const auto find_best = GID_WIDEST(find_best);
  const auto assign = GID_WIDEST(assign);
  const Thresholds thresholds{float(high), float(low), low_quality};
  const int64_t chunks = (owned.padded + kChunk - 1) / kChunk;
  std::vector<float> best_of_chunk(images * chunks * slots, 0.0f), best(images * slots, 0.0f);
  const auto each_chunk = [&](const auto& body) {
    torch::stable::parallel_for(0, images * chunks, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t begin = i % chunks * kChunk;
        body(i / chunks, i, begin, std::min(begin + kChunk, owned.padded));
      }
    });
  };
  if (low_quality) {
    each_chunk([&](int64_t b, int64_t i, int64_t begin, int64_t end) {
      find_best(all, known.truths[b], begin, end, best_of_chunk.data() + i * slots);
    });
    for (int64_t i = 0; i < images * chunks * slots; ++i) {
      float& whole = best[i / (chunks * slots) * slots + i % slots];
      whole = std::max(whole, best_of_chunk[i]);
    }
  }
  each_chunk([&](int64_t b, int64_t, int64_t begin, int64_t end) {
    int64_t* row = result + b * count;
    if (known.truths[b].count == 0) {
      std::fill(row + begin, row + std::min(end, count), number && number[b] < 0 ? -2 : -1);
      return;
    }
    assign(all, known.truths[b], thresholds, best.data() + b * slots, begin, end, count, row);
  });
  return matched;
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CPU, m) { m.impl("match_anchors", TORCH_BOX(&gid::match_anchors)); }
