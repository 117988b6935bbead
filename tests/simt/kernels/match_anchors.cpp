#include "cuda/match_anchors.cuh"

#include "entry.h"

SIMT_ENTRY(match_anchors)(
    uint64_t seed, const void* boxes, const int64_t* counts, const void* anchors, unsigned* best, int64_t* matched,
    int64_t images, int64_t count, int64_t slots, float high, float low) {
  return simt::guarded([&] {
    gid::MatchAnchorsArgs args = {};
    args.boxes = static_cast<const gid::Box*>(boxes);
    args.counts = counts;
    args.anchors = static_cast<const gid::Box*>(anchors);
    args.best = best;
    args.matched = matched;
    args.images = images;
    args.count = count;
    args.slots = int(slots);
    args.high = high;
    args.low = low;
    gid::launch_match_anchors(simt::Launch{seed}, args);
  });
}
