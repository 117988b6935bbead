// match_anchors on the CPU: two passes over the anchors, many at a time, with every box of an image tried on each. What
// they share, the overlap, is computed alike, so that "equal to the best" is found again.
#include <algorithm>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/boxes.h"
#include "common/checks.h"
#include "cpu/simd.h"

namespace gid {
namespace {

constexpr int64_t kChunk = 4096;  // anchors of one piece of work; a multiple of every vector's length
constexpr int64_t kWidest = 16;

// Anchors by coordinate, filled up with empty ones to whole vectors.
struct Anchors {
  std::vector<float> x1, y1, x2, y2, area;
  int64_t padded;

  Anchors(const Box* boxes, int64_t count) : padded((count + kWidest - 1) / kWidest * kWidest) {
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

template <int N>
struct Match : Simd<N> {
  using V = Simd<N>;
  using Floats = typename V::Floats;
  using Words = typename V::Words;

  struct Some {  // N anchors
    Floats x1, y1, x2, y2, area;

    GID_INLINE Some(const Anchors& all, int64_t r)
        : x1(V::load(&all.x1[r])), y1(V::load(&all.y1[r])), x2(V::load(&all.x2[r])), y2(V::load(&all.y2[r])),
          area(V::load(&all.area[r])) {}

    // gid::iou, in its order of roundings.
    GID_INLINE Floats overlap(const Box& box, float box_area) const {
      const Floats right = x2 > box.x2 ? V::all(box.x2) : x2, left = x1 < box.x1 ? V::all(box.x1) : x1;
      const Floats bottom = y2 > box.y2 ? V::all(box.y2) : y2, top = y1 < box.y1 ? V::all(box.y1) : y1;
      const Floats width = right - left, height = bottom - top;
      const Floats inter = (width > 0.0f ? width : Floats{}) * (height > 0.0f ? height : Floats{});
      const Floats united = (box_area + area) - inter;
      return united > 0.0f ? inter / united : Floats{};
    }
  };

  // best[n]: the largest IoU of box n with the anchors from begin to end.
  static GID_INLINE void find_best(
      const Anchors& anchors, const Truth& truth, int64_t begin, int64_t end, float* best) {
    for (int64_t n = 0; n < truth.count; ++n) {
      Floats lanes{};
      for (int64_t r = begin; r < end; r += N) {
        lanes = V::larger(Some(anchors, r).overlap(truth.boxes[n], truth.areas[n]), lanes);
      }
      best[n] = V::largest(lanes);
    }
  }

  static GID_INLINE void assign(
      const Anchors& anchors, const Truth& truth, const Thresholds& thresholds, const float* best_of_box,
      int64_t begin, int64_t end, int64_t count, int64_t* matched) {
    for (int64_t r = begin; r < end; r += N) {
      const Some some(anchors, r);
      Floats best = V::all(-1.0f);
      Words index{}, ties{};
      for (int64_t n = 0; n < truth.count; ++n) {
        const Floats found = some.overlap(truth.boxes[n], truth.areas[n]);
        const Words better = (Words)(found > best);
        best = found > best ? found : best;
        index = (better & uint32_t(n)) | (~better & index);
        ties |= (Words)(found == best_of_box[n]) & (Words)(found > 0.0f);
      }
      float iou[N];
      uint32_t at[N], tied[N];
      V::store(iou, best);
      memcpy(at, &index, sizeof at);
      memcpy(tied, &ties, sizeof tied);
      for (int lane = 0; lane < N && r + lane < count; ++lane) {
        const bool matches = iou[lane] >= thresholds.high || (thresholds.low_quality && tied[lane]);
        matched[r + lane] = matches ? int64_t(at[lane]) : iou[lane] >= thresholds.low ? -2 : -1;
      }
    }
  }
};

using FindBest = void(const Anchors&, const Truth&, int64_t, int64_t, float*);
using Assign =
    void(const Anchors&, const Truth&, const Thresholds&, const float*, int64_t, int64_t, int64_t, int64_t*);

#define GID_MATCH(N)                                                                                                  \
  void find_best_##N(const Anchors& anchors, const Truth& truth, int64_t begin, int64_t end, float* best) {           \
    Match<N>::find_best(anchors, truth, begin, end, best);                                                            \
  }
#define GID_ASSIGN(N)                                                                                                 \
  void assign_##N(                                                                                                    \
      const Anchors& anchors, const Truth& truth, const Thresholds& thresholds, const float* best, int64_t begin,     \
      int64_t end, int64_t count, int64_t* matched) {                                                                 \
    Match<N>::assign(anchors, truth, thresholds, best, begin, end, count, matched);                                   \
  }
GID_MATCH(4)
GID_ASSIGN(4)
#ifdef GID_X86
GID_TARGET("avx2") GID_MATCH(8)
GID_TARGET("avx2") GID_ASSIGN(8)
GID_TARGET("avx512f") GID_MATCH(16)
GID_TARGET("avx512f") GID_ASSIGN(16)
#endif
#undef GID_MATCH
#undef GID_ASSIGN

struct Functions {
  FindBest* find_best;
  Assign* assign;
};

// The widest that this machine can run.
Functions functions() {
#ifdef GID_X86
  if (__builtin_cpu_supports("avx512f")) return {find_best_16, assign_16};
  if (__builtin_cpu_supports("avx2")) return {find_best_8, assign_8};
#endif
  return {find_best_4, assign_4};
}

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
  const Anchors all(pointer<Box>(around), count);
  const Images known(pointer<Box>(box), number, images, slots);
  const Functions run = functions();
  const Thresholds thresholds{float(high), float(low), low_quality};
  const int64_t chunks = (all.padded + kChunk - 1) / kChunk;
  std::vector<float> best_of_chunk(images * chunks * slots, 0.0f), best(images * slots, 0.0f);
  const auto each_chunk = [&](const auto& body) {
    torch::stable::parallel_for(0, images * chunks, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t begin = i % chunks * kChunk;
        body(i / chunks, i, begin, std::min(begin + kChunk, all.padded));
      }
    });
  };
  if (low_quality) {
    each_chunk([&](int64_t b, int64_t i, int64_t begin, int64_t end) {
      run.find_best(all, known.truths[b], begin, end, best_of_chunk.data() + i * slots);
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
    run.assign(all, known.truths[b], thresholds, best.data() + b * slots, begin, end, count, row);
  });
  return matched;
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CPU, m) { m.impl("match_anchors", TORCH_BOX(&gid::match_anchors)); }
