// The GI score of one class (eq. 1), and a cheap bound that spares most classes its exponentials.
#pragma once

#include "types.h"

namespace gid {

GID_HD float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

GID_HD float probability_gap(float a, float b) { return fabsf(sigmoid(a) - sigmoid(b)); }

// 2^(x * log2 e) with a straight line in place of 2^f between whole exponents. The line lies above the curve, so the
// result is never below exp(x), and less than 6.2 % above it. x is taken to [-80, 80] first, NaN to -80.
GID_HD float exp_upper_bound(float x) {
  const float below = x < 80.0f ? x : 80.0f;
  const float inside = x > -80.0f ? below : -80.0f;
  // 64 units of 2^-23 more than exact: they outweigh what the product loses to rounding.
  const int32_t bits = int32_t(inside * 12102203.16f) + 0x3f800000 + 64;
  return bits_to_float(uint32_t(bits));
}

// Never below probability_gap(a, b). With high >= low and g = high - low,
//   sigmoid(high) - sigmoid(low) = (1 - e^-g) / ((1 + e^-high) (1 + e^low)) <= min(1, g) * e^min(high, -low),
// and it is at most 1.
GID_HD float probability_gap_bound(float a, float b) {
  const float high = a > b ? a : b;
  const float low = a > b ? b : a;
  const float gap = high - low < 1.0f ? high - low : 1.0f;
  const float bound = gap * exp_upper_bound(high < -low ? high : -low);
  return bound < 1.0f ? bound : 1.0f;
}

}  // namespace gid
