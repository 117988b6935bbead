// Boxes against GID_LANES anchors at a time. Read by cpu/instruction_sets.h.
namespace gid {
namespace {
namespace GID_SET {

struct Some {  // N anchors
  Floats x1, y1, x2, y2, area;

  GID_INLINE Some(const Anchors& anchors, int64_t r)
      : x1(load(anchors.x1 + r)), y1(load(anchors.y1 + r)), x2(load(anchors.x2 + r)), y2(load(anchors.y2 + r)),
        area(load(anchors.area + r)) {}

  // gid::iou, in its order of roundings.
  GID_INLINE Floats overlap(const Box& box, float box_area) const {
    const Floats right = x2 > box.x2 ? all(box.x2) : x2, left = x1 < box.x1 ? all(box.x1) : x1;
    const Floats bottom = y2 > box.y2 ? all(box.y2) : y2, top = y1 < box.y1 ? all(box.y1) : y1;
    const Floats width = right - left, height = bottom - top;
    const Floats inter = (width > 0.0f ? width : Floats{}) * (height > 0.0f ? height : Floats{});
    const Floats united = (box_area + area) - inter;
    return united > 0.0f ? inter / united : Floats{};
  }
};

// best[n]: the largest IoU of box n with the anchors from begin to end.
void find_best(const Anchors& anchors, const Truth& truth, int64_t begin, int64_t end, float* best) {
  for (int64_t n = 0; n < truth.count; ++n) {
    Floats lanes{};
    for (int64_t r = begin; r < end; r += N) {
      lanes = larger(Some(anchors, r).overlap(truth.boxes[n], truth.areas[n]), lanes);
    }
    best[n] = largest(lanes);
  }
}

void assign(
    const Anchors& anchors, const Truth& truth, const Thresholds& thresholds, const float* best_of_box, int64_t begin,
    int64_t end, int64_t count, int64_t* matched) {
  for (int64_t r = begin; r < end; r += N) {
    const Some some(anchors, r);
    Floats best = all(-1.0f);
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
    store(iou, best);
    memcpy(at, &index, sizeof at);
    memcpy(tied, &ties, sizeof tied);
    for (int lane = 0; lane < N && r + lane < count; ++lane) {
      const bool matches = iou[lane] >= thresholds.high || (thresholds.low_quality && tied[lane]);
      matched[r + lane] = matches ? int64_t(at[lane]) : iou[lane] >= thresholds.low ? -2 : -1;
    }
  }
}

}  // namespace GID_SET
}  // namespace
}  // namespace gid
