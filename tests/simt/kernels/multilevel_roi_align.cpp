#include "cuda/multilevel_roi_align_backward.cuh"

#include "entry.h"

// data: one pointer a level. layout: for each level height, width, stride in pixels, and the distances in elements
// between images, channels, rows and columns.
SIMT_ENTRY(multilevel_roi_align)(
    uint64_t seed, int type, int backward, void* const* data, const int64_t* layout, int64_t levels, const void* boxes,
    const int64_t* counts, void* pooled, int64_t images, int64_t slots, int64_t channels, int64_t bins,
    int64_t sampling_ratio, double canonical_size, int64_t canonical_level, int aligned) {
  return simt::guarded([&] {
    simt::for_type(type, [&](auto value) {
      using T = decltype(value);
      gid::RoiArgs<T> args = {};
      for (int l = 0; l < levels; ++l, layout += 7) {
        args.maps[l] = {static_cast<T*>(data[l]), layout[3], layout[4], layout[5], layout[6],
                        int(layout[0]), int(layout[1]), float(layout[2])};
        args.thresholds[l] = gid::level_threshold(layout[2], canonical_size, canonical_level);
      }
      args.levels = int(levels);
      args.boxes = static_cast<const gid::Box*>(boxes);
      args.counts = counts;
      args.pooled = static_cast<T*>(pooled);
      args.images = int(images);
      args.slots = int(slots);
      args.channels = int(channels);
      args.bins = int(bins);
      args.sampling_ratio = int(sampling_ratio);
      args.aligned = aligned;
      if (backward) {
        gid::launch_roi_align_backward(simt::Launch{seed}, args);
      } else {
        gid::launch_roi_align(simt::Launch{seed}, args);
      }
    });
  });
}
