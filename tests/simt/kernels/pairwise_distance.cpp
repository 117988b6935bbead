#include "cuda/pairwise_distance.cuh"

#include "entry.h"

SIMT_ENTRY(pairwise_distance)(
    uint64_t seed, int type, const void* x, const int64_t* counts, float* partial, float* distances, int64_t images,
    int64_t slots, int64_t length) {
  return simt::guarded([&] {
    simt::for_type(type, [&](auto value) {
      using T = decltype(value);
      gid::launch_pairwise_distance(
          simt::Launch{seed}, gid::PairwiseArgs<T>{static_cast<const T*>(x), counts, partial, distances, int(images),
                                                   int(slots), length});
    });
  });
}

SIMT_ENTRY(pairwise_distance_backward)(
    uint64_t seed, int type, const float* grad, const void* x, const float* distances, void* x_grad, int64_t images,
    int64_t slots, int64_t length) {
  return simt::guarded([&] {
    simt::for_type(type, [&](auto value) {
      using T = decltype(value);
      gid::launch_pairwise_distance_backward(
          simt::Launch{seed}, gid::PairwiseBackwardArgs<T>{grad, static_cast<const T*>(x), distances,
                                                           static_cast<T*>(x_grad), int(images), int(slots), length});
    });
  });
}
