// gi_score and decoded_gi_score: one pass over the logits. A row (one box's C classes) is read by 1 to 32 neighbouring
// lanes of a warp in pieces of 16 bytes, so that short and long rows both keep all lanes busy.
#pragma once

#include "common/coder.h"
#include "cuda/device.cuh"

namespace gid {

// Where the boxes come from: they are given,
struct GivenBoxes {
  const Box* teacher;  // (B, R)
  const Box* student;  // (B, R)

  __device__ __forceinline__ Box choose(bool teacher_is_surer, int64_t box, int64_t) const {
    return teacher_is_surer ? teacher[box] : student[box];
  }
};

// or still encoded: then only the chosen one is read and decoded.
struct EncodedBoxes {
  AnyFloats teacher;   // (B, R, 4), 16-byte aligned
  AnyFloats student;   // (B, R, 4), 16-byte aligned
  const Box* anchors;  // (R,)
  BoxCoder coder;

  __device__ __forceinline__ Box choose(bool teacher_is_surer, int64_t box, int64_t r) const {
    float deltas[4];
    load_four(teacher_is_surer ? teacher : student, box, deltas);
    return decode(coder, deltas, anchors[r]);
  }
};

template <typename T, typename Boxes>
struct GiScoreArgs {
  const T* teacher_logits;     // (B, R, C), 16-byte aligned
  const T* student_logits;     // (B, R, C), 16-byte aligned
  Boxes source;
  const int64_t* image_sizes;  // (B, 2) height, width; or null
  float* scores;               // (B, R)
  Box* boxes;                  // (B, R)
  int64_t images, count;
  int classes;
  int log2_lanes;  // of a row; set by the launch
};

constexpr int kGiScoreThreads = 256;

// What a lane knows of its part of a row.
struct GiScoreRow {
  float teacher = -INFINITY, student = -INFINITY;  // the largest logits
  float gap = 0.0f, scale = 1.0f;                  // the largest |sigmoid(t) - sigmoid(s)| is gap / scale
  bool has_nan = false;

  // With a = e^-t and b = e^-s the difference of the sigmoids is |b - a| / ((1 + a) (1 + b)). Fractions are compared by
  // cross-multiplication: no division, two exponentials a class. There is no branch that spares classes their
  // exponentials, because a warp only gains where all its lanes agree; no GPU has been asked yet which is faster.
  __device__ __forceinline__ void add(float t, float s) {
    has_nan = has_nan | ((t != t) | (s != s));  // one comparison
    teacher = fmaxf(teacher, t);
    student = fmaxf(student, s);
    // sigmoid(-20) is 2e-9: nothing that counts is lost, and no product below can overflow.
    const float a = exp_of_minus(fmaxf(t, -20.0f)), b = exp_of_minus(fmaxf(s, -20.0f));
    const float top = fabsf(b - a), bottom = fmaf(a, 1.0f + b, 1.0f + b);
    if (top * scale > gap * bottom) {
      gap = top;
      scale = bottom;
    }
  }
};

// Reads a row that starts `offset` elements behind the two aligned pointers: single elements up to the first 16-byte
// boundary, packs, single elements. Both models' rows are aligned alike.
template <typename T>
__device__ __forceinline__ GiScoreRow scan_row(
    const T* teacher, const T* student, int64_t offset, int classes, int lane, int lanes) {
  constexpr int kSize = Pack<T>::kSize;
  teacher += offset;
  student += offset;
  const int misaligned = int(-offset & (kSize - 1));
  const int head = misaligned < classes ? misaligned : classes;
  const int packs = (classes - head) / kSize, tail = head + packs * kSize;
  GiScoreRow row;
  for (int c = lane; c < head; c += lanes) row.add(to_float(teacher[c]), to_float(student[c]));
#pragma unroll 4
  for (int p = lane; p < packs; p += lanes) {
    const Pack<T> t = load_pack(teacher + head + p * kSize), s = load_pack(student + head + p * kSize);
#pragma unroll
    for (int i = 0; i < kSize; ++i) row.add(to_float(t.value[i]), to_float(s.value[i]));
  }
  for (int c = tail + lane; c < classes; c += lanes) row.add(to_float(teacher[c]), to_float(student[c]));
  return row;
}

template <typename T, typename Boxes>
__global__ void __launch_bounds__(kGiScoreThreads) gi_score_kernel(const __grid_constant__ GiScoreArgs<T, Boxes> args) {
  const int lanes = 1 << args.log2_lanes, lane = threadIdx.x & (lanes - 1);
  const int64_t r = int64_t(blockIdx.x) * (kGiScoreThreads >> args.log2_lanes) + (threadIdx.x >> args.log2_lanes);
  for (int64_t b = blockIdx.y; b < args.images; b += gridDim.y) {
    const int64_t box = b * args.count + r;
    GiScoreRow row;
    if (r < args.count) {
      row = scan_row(args.teacher_logits, args.student_logits, box * args.classes, args.classes, lane, lanes);
    }
    // NaN travels as infinity, which no score reaches, because fmaxf would lose it.
    float score = row.has_nan ? INFINITY : row.gap / row.scale;
    for (int bit = lanes / 2; bit > 0; bit /= 2) {
      score = fmaxf(score, __shfl_xor_sync(kAllLanes, score, bit));
      row.teacher = fmaxf(row.teacher, __shfl_xor_sync(kAllLanes, row.teacher, bit));
      row.student = fmaxf(row.student, __shfl_xor_sync(kAllLanes, row.student, bit));
    }
    if (r >= args.count || lane != 0) continue;
    const bool has_nan = score == INFINITY;
    const bool teacher_is_surer = !has_nan && row.teacher > row.student;
    Box chosen = args.source.choose(teacher_is_surer, box, r);
    if (args.image_sizes) chosen = clip(chosen, float(args.image_sizes[b * 2]), float(args.image_sizes[b * 2 + 1]));
    args.scores[box] = has_nan ? NAN : score;
    args.boxes[box] = chosen;
  }
}

// So many lanes a row that each reads about four packs of either model.
inline int gi_score_log2_lanes(int64_t row_bytes) {
  const int64_t packs = ceil_div<int64_t>(row_bytes, 16);
  int log2 = 0;
  while (log2 < 5 && (packs >> log2) > 5) ++log2;
  return log2;
}

template <typename T, typename Boxes, typename Launch>
void launch_gi_score(const Launch& launch, GiScoreArgs<T, Boxes> args) {
  if (args.images == 0 || args.count == 0) return;
  args.log2_lanes = gi_score_log2_lanes(args.classes * int64_t(sizeof(T)));
  const int64_t rows = kGiScoreThreads >> args.log2_lanes;
  dim3 grid = grid_of(ceil_div(args.count, rows));
  grid.y = unsigned(args.images < kMaxGridY ? args.images : kMaxGridY);
  launch(gi_score_kernel<T, Boxes>, grid, dim3(kGiScoreThreads), args);
}

}  // namespace gid
