#include "cuda/pairwise_distance.cuh"

#include "cuda/launch.h"

namespace gid {
namespace {

Tensor pairwise_distance(const Tensor& x, std::optional<Tensor> counts) {
  check_pairwise_distance(x, counts);
  const CudaLaunch launch(x);
  const Tensor vectors = prepared(x);
  const std::optional<Tensor> count = prepared(counts);
  const int images = as_int(x.size(0), "the number of images"), slots = as_int(x.size(1), "the number of vectors");
  const int64_t length = x.size(2);
  Tensor distances = torch::stable::new_empty(vectors, {images, slots, slots}, ScalarType::Float);
  const Tensor partial =
      torch::stable::new_empty(vectors, {images, pair_count(slots), chunk_count(length)}, ScalarType::Float);
  for_float_type(vectors, [&](auto type) {
    using T = decltype(type);
    launch_pairwise_distance(
        launch, PairwiseArgs<T>{pointer<T>(vectors), pointer<int64_t>(count), mutable_pointer<float>(partial),
                                mutable_pointer<float>(distances), images, slots, length});
  });
  return distances;
}

Tensor pairwise_distance_backward(
    const Tensor& grad, const Tensor& x, const Tensor& distances, std::optional<Tensor> counts) {
  check_pairwise_distance_backward(grad, x, distances, counts);
  const CudaLaunch launch(x);
  const Tensor vectors = prepared(x), g = prepared(grad), d = prepared(distances);
  const int images = as_int(x.size(0), "the number of images"), slots = as_int(x.size(1), "the number of vectors");
  Tensor gradient = torch::stable::new_empty(vectors, {images, slots, x.size(2)});
  for_float_type(vectors, [&](auto type) {
    using T = decltype(type);
    launch_pairwise_distance_backward(
        launch, PairwiseBackwardArgs<T>{pointer<float>(g), pointer<T>(vectors), pointer<float>(d),
                                        mutable_pointer<T>(gradient), images, slots, x.size(2)});
  });
  return gradient;
}

}  // namespace
}  // namespace gid

STABLE_TORCH_LIBRARY_IMPL(gid, CUDA, m) {
  m.impl("pairwise_distance", TORCH_BOX(&gid::pairwise_distance));
  m.impl("pairwise_distance_backward", TORCH_BOX(&gid::pairwise_distance_backward));
}
