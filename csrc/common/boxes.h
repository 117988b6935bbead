// Boxes as xyxy float32: clipping, overlap, and which of them may be chosen at all.
#pragma once

#include "types.h"

namespace gid {

struct alignas(16) Box {
  float x1, y1, x2, y2;
};

// Comparisons and not fminf / fmaxf, because those turn NaN into a bound.
GID_HD float clip(float value, float limit) {
  const float positive = value < 0.0f ? 0.0f : value;
  return positive > limit ? limit : positive;
}

GID_HD Box clip(Box box, float height, float width) {
  return {clip(box.x1, width), clip(box.y1, height), clip(box.x2, width), clip(box.y2, height)};
}

GID_HD float area(Box box) { return mul(sub(box.x2, box.x1), sub(box.y2, box.y1)); }

// inter / ((area_a + area_b) - inter), each step rounded to float32; 0 where the union is not above 0 (or is NaN).
GID_HD float iou(Box a, float area_a, Box b, float area_b) {
  const float width = sub(a.x2 < b.x2 ? a.x2 : b.x2, a.x1 > b.x1 ? a.x1 : b.x1);
  const float height = sub(a.y2 < b.y2 ? a.y2 : b.y2, a.y1 > b.y1 ? a.y1 : b.y1);
  const float inter = mul(width > 0.0f ? width : 0.0f, height > 0.0f ? height : 0.0f);
  const float united = sub(add(area_a, area_b), inter);
  return united > 0.0f ? div(inter, united) : 0.0f;
}

GID_HD float iou(Box a, Box b) { return iou(a, area(a), b, area(b)); }

// May NMS choose this box? min_size is at least 0, so that a negative side fails too.
GID_HD bool is_usable(Box box, float score, float min_size) {
  return is_finite(score) && is_finite(box.x1) && is_finite(box.y1) && is_finite(box.x2) && is_finite(box.y2) &&
         sub(box.x2, box.x1) >= min_size && sub(box.y2, box.y1) >= min_size;
}

// An order-preserving key: larger score, larger key; -0.0 and 0.0 give the same one. Not for NaN.
GID_HD uint32_t score_key(float score) {
  const uint32_t bits = float_to_bits(score + 0.0f);  // -0.0 + 0.0 is +0.0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

}  // namespace gid
