#include "cuda/class_losses.cuh"

#include "entry.h"

namespace {

template <typename T>
gid::ClassLossesArgs<T> make_args(
    const void* logits, const int64_t* matched, const int64_t* labels, int teacher_type, const void* teacher_logits,
    const bool* mask, int64_t images, int64_t count, int64_t classes, int64_t slots, int soft_focal) {
  gid::ClassLossesArgs<T> args = {};
  args.logits = static_cast<const T*>(logits);
  args.matched = matched;
  args.labels = labels;
  args.teacher_logits = {teacher_logits, gid::FloatType(teacher_type)};
  args.mask = mask;
  args.images = images;
  args.count = count;
  args.slots = slots;
  args.classes = int(classes);
  args.soft_focal = soft_focal != 0;
  return args;
}

}  // namespace

// partial: at least 2 * images * count numbers.
SIMT_ENTRY(class_losses)(
    uint64_t seed, int type, const void* logits, const int64_t* matched, const int64_t* labels, int teacher_type,
    const void* teacher_logits, const bool* mask, int64_t images, int64_t count, int64_t classes, int64_t slots,
    int soft_focal, const float* given, float* partial, float* focal, float* response) {
  return simt::guarded([&] {
    simt::for_type(type, [&](auto value) {
      auto args = make_args<decltype(value)>(
          logits, matched, labels, teacher_type, teacher_logits, mask, images, count, classes, slots, soft_focal);
      const int64_t parts = gid::class_losses_parts(args);
      args.focal_partial = partial;
      args.response_partial = partial + images * parts;
      const gid::ImageSumsArgs sums = {
          {args.focal_partial, args.response_partial}, given, {focal, response}, images, parts};
      gid::launch_class_losses(simt::Launch{seed}, args, sums);
    });
  });
}

SIMT_ENTRY(class_losses_backward)(
    uint64_t seed, int type, const void* logits, const int64_t* matched, const int64_t* labels, int teacher_type,
    const void* teacher_logits, const bool* mask, int64_t images, int64_t count, int64_t classes, int64_t slots,
    int soft_focal, const float* grad_focal, const float* grad_response, void* gradient) {
  return simt::guarded([&] {
    simt::for_type(type, [&](auto value) {
      using T = decltype(value);
      auto args = make_args<T>(
          logits, matched, labels, teacher_type, teacher_logits, mask, images, count, classes, slots, soft_focal);
      args.grad_focal = grad_focal;
      args.grad_response = grad_response;
      args.gradient = static_cast<T*>(gradient);
      gid::launch_class_losses_backward(simt::Launch{seed}, args);
    });
  });
}
