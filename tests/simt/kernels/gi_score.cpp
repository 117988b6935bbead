#include "cuda/gi_score.cuh"

#include "entry.h"

namespace {

template <typename Boxes>
const char* run(
    uint64_t seed, int type, const void* teacher_logits, const void* student_logits, const Boxes& source,
    const int64_t* image_sizes, float* scores, void* boxes, int64_t images, int64_t count, int64_t classes) {
  return simt::guarded([&] {
    simt::for_type(type, [&](auto value) {
      using T = decltype(value);
      gid::GiScoreArgs<T, Boxes> args = {};
      args.teacher_logits = static_cast<const T*>(teacher_logits);
      args.student_logits = static_cast<const T*>(student_logits);
      args.source = source;
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

}  // namespace

SIMT_ENTRY(gi_score)(
    uint64_t seed, int type, const void* teacher_logits, const void* student_logits, const void* teacher_boxes,
    const void* student_boxes, const int64_t* image_sizes, float* scores, void* boxes, int64_t images, int64_t count,
    int64_t classes) {
  const gid::GivenBoxes source{static_cast<const gid::Box*>(teacher_boxes), static_cast<const gid::Box*>(student_boxes)};
  return run(seed, type, teacher_logits, student_logits, source, image_sizes, scores, boxes, images, count, classes);
}

SIMT_ENTRY(decoded_gi_score)(
    uint64_t seed, int type, const void* teacher_logits, const void* student_logits, int teacher_type,
    const void* teacher_deltas, int student_type, const void* student_deltas, const void* anchors,
    const int64_t* image_sizes, const float* weights, int distances, float* scores, void* boxes, int64_t images,
    int64_t count, int64_t classes) {
  const gid::EncodedBoxes source{
      {teacher_deltas, gid::FloatType(teacher_type)},
      {student_deltas, gid::FloatType(student_type)},
      static_cast<const gid::Box*>(anchors),
      {{weights[0], weights[1], weights[2], weights[3]}, distances != 0},
  };
  return run(seed, type, teacher_logits, student_logits, source, image_sizes, scores, boxes, images, count, classes);
}
