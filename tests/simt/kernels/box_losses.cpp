#include "cuda/box_losses.cuh"

#include "entry.h"

namespace {

gid::BoxLossesArgs make_args(
    int type, const void* deltas, const int64_t* matched, const void* boxes, const void* anchors, int teacher_type,
    const void* teacher_deltas, const bool* mask, const float* weights, float beta, int64_t images, int64_t count,
    int64_t slots) {
  gid::BoxLossesArgs args = {};
  args.deltas = {deltas, gid::FloatType(type)};
  args.matched = matched;
  args.boxes = static_cast<const gid::Box*>(boxes);
  args.anchors = static_cast<const gid::Box*>(anchors);
  args.teacher_deltas = {teacher_deltas, gid::FloatType(teacher_type)};
  args.mask = mask;
  args.coder = {{weights[0], weights[1], weights[2], weights[3]}, false};
  args.beta = beta;
  args.images = images;
  args.count = count;
  args.slots = slots;
  return args;
}

}  // namespace

// partial: at least 2 * images * count numbers.
SIMT_ENTRY(box_losses)(
    uint64_t seed, int type, const void* deltas, const int64_t* matched, const void* boxes, const void* anchors,
    int teacher_type, const void* teacher_deltas, const bool* mask, const float* weights, float beta, int64_t images,
    int64_t count, int64_t slots, float* partial, float* l1, float* response) {
  return simt::guarded([&] {
    auto args = make_args(
        type, deltas, matched, boxes, anchors, teacher_type, teacher_deltas, mask, weights, beta, images, count, slots);
    const int64_t parts = gid::box_losses_parts(args);
    args.l1_partial = partial;
    args.response_partial = partial + images * parts;
    const gid::ImageSumsArgs sums = {{args.l1_partial, args.response_partial}, nullptr, {l1, response}, images, parts};
    gid::launch_box_losses(simt::Launch{seed}, args, sums);
  });
}

SIMT_ENTRY(box_losses_backward)(
    uint64_t seed, int type, const void* deltas, const int64_t* matched, const void* boxes, const void* anchors,
    int teacher_type, const void* teacher_deltas, const bool* mask, const float* weights, float beta, int64_t images,
    int64_t count, int64_t slots, const float* grad_l1, const float* grad_response, void* gradient) {
  return simt::guarded([&] {
    auto args = make_args(
        type, deltas, matched, boxes, anchors, teacher_type, teacher_deltas, mask, weights, beta, images, count, slots);
    args.grad_l1 = grad_l1;
    args.grad_response = grad_response;
    simt::for_type(type, [&](auto value) {
      using T = decltype(value);
      gid::BoxLossesBackwardArgs<T> all = {args, static_cast<T*>(gradient)};
      gid::launch_box_losses_backward(simt::Launch{seed}, all);
    });
  });
}
