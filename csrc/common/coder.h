// How boxes are written as four numbers against an anchor: decoding of what a head predicts, encoding of what it should.
// Each step is rounded to float32 in the order of torchvision's coders.
#pragma once

#include "boxes.h"
#include "types.h"

namespace gid {

// "deltas": R-CNN's dx, dy, dw, dh. "distances": FCOS's left, top, right, bottom in units of the anchor's size.
struct BoxCoder {
  float weights[4];  // what the four numbers are divided by before use
  bool distances;
};

constexpr float kMaxLogScale = 4.135166556742356f;  // log(1000 / 16): keeps exp() of an untrained head finite

// NaN stays NaN.
GID_HD float decoded_side(float delta, float side) {
  return mul(expf(delta > kMaxLogScale ? kMaxLogScale : delta), side);
}

GID_HD Box decode(const BoxCoder& coder, const float* deltas, Box anchor) {
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = div(deltas[i], coder.weights[i]);
  const float width = sub(anchor.x2, anchor.x1), height = sub(anchor.y2, anchor.y1);
  if (coder.distances) {
    const float x = mul(0.5f, add(anchor.x1, anchor.x2)), y = mul(0.5f, add(anchor.y1, anchor.y2));
    return {sub(x, mul(d[0], width)), sub(y, mul(d[1], height)), add(x, mul(d[2], width)), add(y, mul(d[3], height))};
  }
  const float x = add(mul(d[0], width), add(anchor.x1, mul(0.5f, width)));
  const float y = add(mul(d[1], height), add(anchor.y1, mul(0.5f, height)));
  const float half_width = mul(0.5f, decoded_side(d[2], width)), half_height = mul(0.5f, decoded_side(d[3], height));
  return {sub(x, half_width), sub(y, half_height), add(x, half_width), add(y, half_height)};
}

// R-CNN's deltas of a box against an anchor, times the coder's weights.
GID_HD void encode(const BoxCoder& coder, Box box, Box anchor, float* deltas) {
  const float width = sub(anchor.x2, anchor.x1), height = sub(anchor.y2, anchor.y1);
  const float box_width = sub(box.x2, box.x1), box_height = sub(box.y2, box.y1);
  const float x = add(anchor.x1, mul(0.5f, width)), y = add(anchor.y1, mul(0.5f, height));
  const float box_x = add(box.x1, mul(0.5f, box_width)), box_y = add(box.y1, mul(0.5f, box_height));
  deltas[0] = div(mul(coder.weights[0], sub(box_x, x)), width);
  deltas[1] = div(mul(coder.weights[1], sub(box_y, y)), height);
  deltas[2] = mul(coder.weights[2], logf(div(box_width, width)));
  deltas[3] = mul(coder.weights[3], logf(div(box_height, height)));
}

}  // namespace gid
