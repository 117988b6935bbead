// RoIAlign's geometry: the level of a box, and where it samples along one axis. The weights of a bilinear sample are
// products of one factor for its row and one for its column, so each axis is worked out by itself.
#pragma once

#include "boxes.h"
#include "types.h"

namespace gid {

constexpr int kMaxLevels = 8;
constexpr int kMaxAdaptiveGrid = 1024;  // samples a bin and axis; so that an absurd box ends

// The area from which on a box belongs to the level with this stride (a power of two) rather than to a finer one.
inline float level_threshold(int64_t stride, double canonical_size, int64_t canonical_level) {
  int level = 0;
  while ((int64_t(1) << (level + 1)) <= stride) ++level;
  return float(canonical_size * canonical_size * std::pow(4.0, double(level - canonical_level)));
}

// The highest level whose threshold the area reaches; the first where none is (or the area is NaN).
GID_HD int roi_level(Box box, const float* thresholds, int levels) {
  const float box_area = area(box);
  int level = 0;
  for (int l = 1; l < levels; ++l) level += box_area >= thresholds[l];
  return level;
}

// One axis of a box in cells of its feature map: `grid` samples in each bin, bins `step` cells wide.
struct RoiAxis {
  float start, step;
  int grid;
};

GID_HD RoiAxis roi_axis(float low, float high, float stride, int bins, int sampling_ratio, bool aligned) {
  const float offset = aligned ? 0.5f : 0.0f;
  const float start = sub(div(low, stride), offset);
  float size = sub(sub(div(high, stride), offset), start);
  if (!aligned && size < 1.0f) size = 1.0f;
  const float step = div(size, float(bins));
  if (!is_finite(size)) return {start, step, 0};
  if (sampling_ratio > 0) return {start, step, sampling_ratio};
  const float cells = ceilf(step);
  const float limit = float(kMaxAdaptiveGrid);
  return {start, step, cells > 0.0f ? int(cells < limit ? cells : limit) : 0};
}

// The two neighbours of a sample along one axis, and their weights, which include the mean over the bin's samples.
struct RoiTap {
  int low, high;
  float weight_low, weight_high;
};

// False where the sample lies more than a cell outside (or at NaN): it counts as zero and nothing is read. The weights
// are then 0 and the indices valid.
GID_HD bool roi_tap(const RoiAxis& axis, int bin, int sample, int length, RoiTap& tap) {
  const float within = div(mul(float(sample) + 0.5f, axis.step), float(axis.grid));
  float position = add(add(axis.start, mul(float(bin), axis.step)), within);
  tap = {0, 0, 0.0f, 0.0f};
  if (!(position >= -1.0f && position <= float(length))) return false;
  position = position < 0.0f ? 0.0f : (position > float(length - 1) ? float(length - 1) : position);
  tap.low = int(position);
  tap.high = tap.low + 1 < length ? tap.low + 1 : tap.low;
  const float fraction = position - float(tap.low);
  tap.weight_low = div(1.0f - fraction, float(axis.grid));
  tap.weight_high = div(fraction, float(axis.grid));
  return true;
}

}  // namespace gid
