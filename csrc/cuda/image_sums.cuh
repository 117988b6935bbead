// The end of two losses: the partial sums that blocks have left for each image are added up, in a fixed order.
#pragma once

#include "cuda/device.cuh"

namespace gid {

constexpr int kImageSumThreads = 256;

struct ImageSumsArgs {
  const float* partial[2];  // (B, P) each
  const float* given;       // (B,), taken in place of the first sums; or null
  float* sums[2];           // (B,) each
  int64_t images, parts;
};

struct ImageSumsShared {
  float warp_sums[kImageSumThreads / kWarpSize];
};

// A block: one of the two sums of one image.
static __global__ void __launch_bounds__(kImageSumThreads)
    image_sums_kernel(const __grid_constant__ ImageSumsArgs args) {  // static: two .cu files read this
  GID_SHARED(ImageSumsShared, shared);
  const int which = int(blockIdx.x % 2);
  const int64_t image = blockIdx.x / 2;
  const float* partial = which ? args.partial[1] : args.partial[0];
  float sum = 0.0f;
  for (int64_t p = threadIdx.x; p < args.parts; p += kImageSumThreads) sum += partial[image * args.parts + p];
  sum = block_sum(sum, shared.warp_sums);
  if (threadIdx.x != 0) return;
  if (which == 0 && args.given) sum = args.given[image];
  (which ? args.sums[1] : args.sums[0])[image] = sum;
}

template <typename Launch>
void launch_image_sums(const Launch& launch, const ImageSumsArgs& args) {
  if (args.images > 0) launch(image_sums_kernel, grid_of(args.images * 2), dim3(kImageSumThreads), args);
}

}  // namespace gid
