// box_losses and its gradient: a thread a row. Few rows count; only of these the deltas are read.
#pragma once

#include "common/coder.h"
#include "common/losses.h"
#include "cuda/device.cuh"
#include "cuda/image_sums.cuh"

namespace gid {

constexpr int kBoxThreads = 256;
constexpr int kBoxWarps = kBoxThreads / kWarpSize;
constexpr int kBoxRowsAThread = 4;
constexpr int kBoxRowsABlock = kBoxThreads * kBoxRowsAThread;

struct BoxLossesArgs {
  AnyFloats deltas;          // (B, R, 4), 16-byte aligned
  const int64_t* matched;    // (B, R); null: no L1 part
  const Box* boxes;          // (B, N)
  const Box* anchors;        // (R,)
  AnyFloats teacher_deltas;  // (B, R, 4), 16-byte aligned
  const bool* mask;          // (B, R); null: no response part
  BoxCoder coder;
  float beta;
  int64_t images, count, slots;
  unsigned blocks;  // of an image; set by the launch
  // forward
  float* l1_partial;        // workspace (B, blocks of an image)
  float* response_partial;  // workspace (B, blocks of an image)
  // backward
  const float* grad_l1;        // (B,)
  const float* grad_response;  // (B,)
};

struct BoxShared {
  float l1[kBoxWarps], response[kBoxWarps];
};

// What a row's four deltas are, and what they should be.
struct BoxRow {
  int64_t number;  // among those of all images
  int64_t match;   // the slot of its object; -1: none
  bool is_masked;  // learns from the teacher
  float deltas[4];

  __device__ __forceinline__ BoxRow(const BoxLossesArgs& args, int64_t image, int64_t r) {
    number = image * args.count + r;
    match = args.matched ? args.matched[number] : -1;
    if (match >= args.slots) match = -1;
    is_masked = args.mask && args.mask[number];
    if (match >= 0 || is_masked) load_four(args.deltas, number, deltas);
  }

  // deltas less those of the object's box
  __device__ __forceinline__ void to_object(const BoxLossesArgs& args, int64_t image, int64_t r, float* difference) const {
    encode(args.coder, args.boxes[image * args.slots + match], args.anchors[r], difference);
#pragma unroll
    for (int i = 0; i < 4; ++i) difference[i] = deltas[i] - difference[i];
  }

  __device__ __forceinline__ void to_teacher(const BoxLossesArgs& args, float* difference) const {
    load_four(args.teacher_deltas, number, difference);
#pragma unroll
    for (int i = 0; i < 4; ++i) difference[i] = deltas[i] - difference[i];
  }
};

// Calls body(image, r) for those of the thread's rows that count, nothing(image, r) for the others.
template <typename Nothing, typename Body>
__device__ __forceinline__ void for_each_box_row(const BoxLossesArgs& args, const Nothing& nothing, const Body& body) {
  const int64_t image = blockIdx.x / args.blocks;
  const int64_t first = int64_t(blockIdx.x % args.blocks) * kBoxRowsABlock + threadIdx.x;
  bool counts[kBoxRowsAThread];
#pragma unroll
  for (int i = 0; i < kBoxRowsAThread; ++i) {  // all loads first: none waits for another
    const int64_t r = first + i * kBoxThreads, number = image * args.count + r;
    const bool is_matched = args.matched && r < args.count && args.matched[number] >= 0;
    const bool is_masked = args.mask && r < args.count && args.mask[number];
    counts[i] = is_matched | is_masked;
  }
  unsigned busy = 0;
#pragma unroll
  for (int i = 0; i < kBoxRowsAThread; ++i) {
    const int64_t r = first + i * kBoxThreads;
    if (counts[i]) busy |= 1u << i;
    if (!counts[i] && r < args.count) nothing(image, r);
  }
  for (; busy; busy &= busy - 1) body(image, first + (__ffs(busy) - 1) * kBoxThreads);
}

__global__ void __launch_bounds__(kBoxThreads) box_losses_kernel(const __grid_constant__ BoxLossesArgs args) {
  GID_SHARED(BoxShared, shared);
  float l1 = 0.0f, response = 0.0f, difference[4];
  const auto nothing = [](int64_t, int64_t) {};
  for_each_box_row(args, nothing, [&](int64_t image, int64_t r) {
    const BoxRow row(args, image, r);
    if (row.match >= 0) {
      row.to_object(args, image, r, difference);
#pragma unroll
      for (int i = 0; i < 4; ++i) l1 += fabsf(difference[i]);
    }
    if (row.is_masked) {
      row.to_teacher(args, difference);
#pragma unroll
      for (int i = 0; i < 4; ++i) response += SmoothL1(difference[i], args.beta).loss;
    }
  });
  const float l1_sum = block_sum(l1, shared.l1), response_sum = block_sum(response, shared.response);
  if (threadIdx.x != 0) return;
  args.l1_partial[blockIdx.x] = l1_sum;
  args.response_partial[blockIdx.x] = response_sum;
}

template <typename T>
struct BoxLossesBackwardArgs {
  BoxLossesArgs forward;
  T* gradient;  // (B, R, 4), 16-byte aligned
};

template <typename T>
__global__ void __launch_bounds__(kBoxThreads)
    box_losses_backward_kernel(const __grid_constant__ BoxLossesBackwardArgs<T> all) {
  const BoxLossesArgs& args = all.forward;
  const auto nothing = [&](int64_t image, int64_t r) {
    const float zeros[4] = {};
    store_four(all.gradient, image * args.count + r, zeros);
  };
  for_each_box_row(args, nothing, [&](int64_t image, int64_t r) {
    const BoxRow row(args, image, r);
    float gradient[4] = {}, difference[4];
    if (row.match >= 0) {
      const float of_l1 = args.grad_l1[image];
      row.to_object(args, image, r, difference);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        gradient[i] = difference[i] > 0.0f ? of_l1 : (difference[i] < 0.0f ? -of_l1 : 0.0f);
      }
    }
    if (row.is_masked) {
      const float of_response = args.grad_response[image];
      row.to_teacher(args, difference);
#pragma unroll
      for (int i = 0; i < 4; ++i) gradient[i] += of_response * SmoothL1(difference[i], args.beta).derivative;
    }
    store_four(all.gradient, row.number, gradient);
  });
}

// Blocks of an image, which leave a partial sum each.
inline int64_t box_losses_parts(const BoxLossesArgs& args) {
  return ceil_div<int64_t>(args.count, kBoxRowsABlock);
}

template <typename Launch>
void launch_box_losses(const Launch& launch, BoxLossesArgs args, const ImageSumsArgs& sums) {
  const int64_t blocks = box_losses_parts(args);
  args.blocks = unsigned(blocks);
  if (args.images * blocks > 0) {
    launch(box_losses_kernel, grid_of(args.images * blocks), dim3(kBoxThreads), args);
  }
  launch_image_sums(launch, sums);
}

template <typename T, typename Launch>
void launch_box_losses_backward(const Launch& launch, BoxLossesBackwardArgs<T> args) {
  const int64_t blocks = box_losses_parts(args.forward), images = args.forward.images;
  if (images * blocks == 0) return;
  args.forward.blocks = unsigned(blocks);
  launch(box_losses_backward_kernel<T>, grid_of(images * blocks), dim3(kBoxThreads), args);
}

}  // namespace gid
