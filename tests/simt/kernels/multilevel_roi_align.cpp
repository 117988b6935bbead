#include "cuda/multilevel_roi_align_backward.cuh"
#include "cuda/multilevel_roi_align_scatter.cuh"

#include "entry.h"

namespace {

struct Shape {
  int images, slots, channels, bins, sampling_ratio;
  bool aligned;
};

// data: one pointer a level. layout: for each level height, width, stride in pixels, and the distances in elements
// between images, channels, rows and columns.
template <typename T, typename Cell>
gid::RoiArgs<T, Cell> make_args(
    void* const* data, const int64_t* layout, int64_t levels, const void* boxes, const int64_t* counts, void* pooled,
    const Shape& shape, double canonical_size, int64_t canonical_level) {
  gid::RoiArgs<T, Cell> args = {};
  for (int l = 0; l < levels; ++l, layout += 7) {
    args.maps[l] = {static_cast<Cell*>(data[l]), layout[3], layout[4], layout[5], layout[6],
                    int(layout[0]), int(layout[1]), float(layout[2])};
    args.thresholds[l] = gid::level_threshold(layout[2], canonical_size, canonical_level);
  }
  args.levels = int(levels);
  args.boxes = static_cast<const gid::Box*>(boxes);
  args.counts = counts;
  args.pooled = static_cast<T*>(pooled);
  args.images = shape.images;
  args.slots = shape.slots;
  args.channels = shape.channels;
  args.bins = shape.bins;
  args.sampling_ratio = shape.sampling_ratio;
  args.aligned = shape.aligned;
  return args;
}

}  // namespace

// what: "forward", "gather" or "scatter", the two forms of the backward; scatter's maps are float32 whatever the type.
SIMT_ENTRY(multilevel_roi_align)(
    uint64_t seed, int type, const char* what, void* const* data, const int64_t* layout, int64_t levels,
    const void* boxes, const int64_t* counts, void* pooled, int64_t images, int64_t slots, int64_t channels,
    int64_t bins, int64_t sampling_ratio, double canonical_size, int64_t canonical_level, int aligned) {
  return simt::guarded([&] {
    simt::for_type(type, [&](auto value) {
      using T = decltype(value);
      const Shape shape{int(images), int(slots), int(channels), int(bins), int(sampling_ratio), aligned != 0};
      const simt::Launch launch{seed};
      if (std::string(what) == "scatter") {
        gid::launch_roi_align_scatter(launch, make_args<T, float>(data, layout, levels, boxes, counts, pooled, shape,
                                                                  canonical_size, canonical_level));
        return;
      }
      const auto args =
          make_args<T, T>(data, layout, levels, boxes, counts, pooled, shape, canonical_size, canonical_level);
      if (std::string(what) == "gather") {
        gid::launch_roi_align_backward(launch, args);
      } else {
        gid::launch_roi_align(launch, args);
      }
    });
  });
}

SIMT_ENTRY(roi_round)(
    uint64_t seed, int type, float* const* sums, void* const* maps, const int64_t* sizes, int64_t levels) {
  return simt::guarded([&] {
    simt::for_type(type, [&](auto value) {
      using T = decltype(value);
      gid::RoiRounding<T> args = {};
      for (int l = 0; l < levels; ++l) {
        args.sums[l] = sums[l];
        args.maps[l] = static_cast<T*>(maps[l]);
        args.sizes[l] = sizes[l];
      }
      args.levels = int(levels);
      gid::launch_roi_round(simt::Launch{seed}, args);
    });
  });
}
