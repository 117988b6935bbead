#include "cuda/gi_score.cuh"

#include "entry.h"

SIMT_ENTRY(gi_score)(
    uint64_t seed, int type, const void* teacher_logits, const void* student_logits, const void* teacher_boxes,
    const void* student_boxes, const int64_t* image_sizes, float* scores, void* boxes, int64_t images, int64_t count,
    int64_t classes) {
  return simt::guarded([&] {
    simt::for_type(type, [&](auto value) {
      using T = decltype(value);
      gid::GiScoreArgs<T> args = {};
      args.teacher_logits = static_cast<const T*>(teacher_logits);
      args.student_logits = static_cast<const T*>(student_logits);
      args.teacher_boxes = static_cast<const gid::Box*>(teacher_boxes);
      args.student_boxes = static_cast<const gid::Box*>(student_boxes);
      args.image_sizes = image_sizes;
      args.scores = scores;
      args.boxes = static_cast<gid::Box*>(boxes);
      args.images = images;
      args.count = count;
      args.classes = int(classes);
      gid::launch_gi_score(simt::Launch{seed}, args);
    });
  });
}
