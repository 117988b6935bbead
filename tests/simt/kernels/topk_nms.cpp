#include "cuda/topk_nms.cuh"

#include "entry.h"

SIMT_ENTRY(topk_nms)(
    uint64_t seed, const void* boxes, const float* scores, const int64_t* groups, int64_t* indices, int64_t* counts,
    int* histogram, int* listed, int64_t* list, void* kept_boxes, int64_t* kept_groups, int64_t images, int64_t count,
    int64_t list_size, int64_t k, int64_t kept_pitch, float iou_threshold, float min_size) {
  return simt::guarded([&] {
    gid::TopkNmsArgs args = {};
    args.boxes = static_cast<const gid::Box*>(boxes);
    args.scores = scores;
    args.groups = groups;
    args.indices = indices;
    args.counts = counts;
    args.histogram = histogram;
    args.listed = listed;
    args.list = reinterpret_cast<uint64_t*>(list);
    args.kept_boxes = static_cast<gid::Box*>(kept_boxes);
    args.kept_groups = kept_groups;
    args.images = int(images);
    args.count = int(count);
    args.list_size = int(list_size);
    args.k = int(k);
    args.kept_pitch = int(kept_pitch);
    args.iou_threshold = iou_threshold;
    args.min_size = min_size;
    gid::launch_topk_nms(simt::Launch{seed}, args);
  });
}
