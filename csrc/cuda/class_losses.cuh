// class_losses and its gradient: one pass over the logits in pieces of 16 bytes, whatever the number of classes. A block
// takes some rows of an image. It looks up first what is to be done with each row, so that a thread sees at once what a
// pack of logits needs: nothing; or, nearly always, what is quick to do for numbers of confident background; or else
// a closer look at each number.
#pragma once

#include "common/losses.h"
#include "cuda/device.cuh"
#include "cuda/image_sums.cuh"

namespace gid {

constexpr int kClassThreads = 256;
constexpr int kClassWarps = kClassThreads / kWarpSize;
constexpr int kPacksAhead = 2;   // that a thread has loaded before it computes
constexpr int kRowsAThread = 4;  // that it looks up
constexpr int kMaxClassRows = kClassThreads * kRowsAThread;  // of a block
// About so many logits a block where every row counts. Where few rows do, more, for a block costs more than a look at
// its rows: as many as leave so many blocks.
constexpr int kLogitsABlock = 16384;
constexpr int kSparseLogitsABlock = 1 << 20;
constexpr int kSparseBlocks = 4096;

template <typename T>
struct ClassLossesArgs {
  const T* logits;           // (B, R, C), 16-byte aligned
  const int64_t* matched;    // (B, R); null: no focal part
  const int64_t* labels;     // (B, N)
  AnyFloats teacher_logits;  // (B, R, C)
  const bool* mask;          // (B, R); null: no response part
  int64_t images, count, slots;
  int classes;
  bool soft_focal;
  int rows;         // of a block; set by the launch
  unsigned blocks;  // of an image; set by the launch
  // forward
  float* focal_partial;     // workspace (B, blocks of an image)
  float* response_partial;  // workspace (B, blocks of an image)
  // backward
  const float* grad_focal;     // (B,)
  const float* grad_response;  // (B,)
  T* gradient;                 // (B, R, C), 16-byte aligned
};

// What is to be done with a row: kMasked where it learns from the teacher, and besides it
constexpr unsigned kMasked = 1u << 31;
constexpr unsigned kNoFocal = 0;        // left out of the task's loss,
constexpr unsigned kBackgroundRow = 1;  // without an object,
constexpr unsigned kFirstClass = 2;     // or this plus the class of the row's object.

// match: where the row is matched to; -2 where nothing is.
template <typename T>
__device__ __forceinline__ unsigned row_code(const ClassLossesArgs<T>& args, int64_t image, int64_t match) {
  if (match < -1) return kNoFocal;
  if (match < 0 || match >= args.slots) return kBackgroundRow;
  const int64_t label = args.labels[image * args.slots + match];
  return label >= 0 && label < args.classes ? kFirstClass + unsigned(label) : kBackgroundRow;
}

struct ClassShared {
  unsigned codes[kMaxClassRows];
  int busy[kClassWarps];
  float focal[kClassWarps], response[kClassWarps];
};

// A block's rows, one after another, as one stretch of numbers.
struct ClassBlock {
  int64_t image;
  int64_t start;  // the number of the first logit
  int size;       // so many logits
  bool is_busy;   // some row has something to do
};

// Looks up the rows' codes. Ends with a barrier.
template <typename T>
__device__ __forceinline__ ClassBlock open_block(const ClassLossesArgs<T>& args, ClassShared& shared) {
  const unsigned image = blockIdx.x / args.blocks, block = blockIdx.x % args.blocks;
  const int64_t start = image * args.count + int64_t(block) * args.rows, left = (image + 1) * args.count - start;
  const int rows = int(left < args.rows ? left : args.rows);
  int64_t matches[kRowsAThread];
  bool masked[kRowsAThread];
#pragma unroll
  for (int i = 0; i < kRowsAThread; ++i) {  // all loads first: none waits for another
    const int row = int(threadIdx.x) + i * kClassThreads;
    matches[i] = args.matched && row < rows ? args.matched[start + row] : -2;
    masked[i] = args.mask && row < rows && args.mask[start + row];
  }
  bool busy = false;
#pragma unroll
  for (int i = 0; i < kRowsAThread; ++i) {
    const unsigned code = row_code(args, image, matches[i]) | (masked[i] ? kMasked : 0);
    shared.codes[threadIdx.x + i * kClassThreads] = code;
    busy |= code != kNoFocal;
  }
  const bool warp_is_busy = __any_sync(kAllLanes, busy);
  if (threadIdx.x % kWarpSize == 0) shared.busy[threadIdx.x / kWarpSize] = warp_is_busy;
  __syncthreads();
  bool is_busy = false;
  for (int warp = 0; warp < kClassWarps; ++warp) is_busy |= shared.busy[warp] != 0;
  return {image, start * args.classes, rows * args.classes, is_busy};
}

enum class PackTask { kNothing, kBackground, kMixed };

// What a pack needs that begins at `column` of a row. It may reach into the next rows.
template <int kSize>
__device__ __forceinline__ PackTask pack_task(const unsigned* codes, int row, int column, int classes) {
  if (codes[row] == kBackgroundRow && column + kSize <= classes) return PackTask::kBackground;  // as nearly always
  unsigned all = 0;
  bool background = true;
  for (int begin = -column; begin < kSize; begin += classes, ++row) {  // the row's first number, seen from the pack's
    const unsigned code = codes[row];
    const bool is_elsewhere = code >= kFirstClass && code < kMasked && unsigned(begin) + code - kFirstClass >= kSize;
    background &= code == kBackgroundRow || is_elsewhere;
    all |= code;
  }
  return all == 0 ? PackTask::kNothing : background ? PackTask::kBackground : PackTask::kMixed;
}

// Are all numbers at most -2 (or a NaN with a sign)? Then their sign and the highest bit of the exponent are set.
template <typename T>
__device__ __forceinline__ bool is_confident_background(const uint4& pack) {
  const unsigned both = sizeof(T) == 2 ? 0xc000c000u : 0xc0000000u;
  return (pack.x & pack.y & pack.z & pack.w & both) == both;
}

// Goes through a block's numbers in packs that lie on 16-byte boundaries; the first and the last may be cut off.
// Calls of these for each of a thread's packs, numbers counted from the block's first:
//   nothing(at)            nothing is to be done
//   background(at, pack)   all are background and at most -2
//   mixed(begin, end)      anything else, also the cut ones
template <typename T, typename Nothing, typename Background, typename Mixed>
__device__ __forceinline__ void for_each_pack(
    const ClassLossesArgs<T>& args, const ClassShared& shared, const ClassBlock& block, const Nothing& nothing,
    const Background& background, const Mixed& mixed) {
  constexpr int kSize = Pack<T>::kSize, kStride = kClassThreads * kSize;
  const T* logits = args.logits + block.start;
  int at = int(threadIdx.x) * kSize - int(block.start & (kSize - 1));
  // Counted on and not divided again: at = row * classes + column, 0 <= column < classes. Rounded down: the first
  // thread's first pack may begin before the block, and so in a row before it.
  int row = at < 0 ? -ceil_div(-at, args.classes) : at / args.classes, column = at - row * args.classes;
  const int step_rows = kStride / args.classes, step_columns = kStride % args.classes;
  for (; at < block.size; at += kPacksAhead * kStride) {
    uint4 packs[kPacksAhead];  // not Pack<T>: the compiler would take it apart, and so wait for it, at once
    PackTask tasks[kPacksAhead];
#pragma unroll
    for (int p = 0; p < kPacksAhead; ++p) {
      const int begin = at + p * kStride;
      tasks[p] = PackTask::kMixed;
      if (begin >= 0 && begin + kSize <= block.size) {
        tasks[p] = pack_task<kSize>(shared.codes, row, column, args.classes);
        if (tasks[p] == PackTask::kBackground) packs[p] = bits_of(load_pack(logits + begin));
      }
      row += step_rows;
      column += step_columns;
      if (column >= args.classes) {
        column -= args.classes;
        ++row;
      }
    }
    unsigned slow = 0;  // which packs need a closer look: later, so that its code is there once
#pragma unroll
    for (int p = 0; p < kPacksAhead; ++p) {
      if (tasks[p] == PackTask::kNothing) {
        nothing(at + p * kStride);
      } else if (tasks[p] == PackTask::kBackground && is_confident_background<T>(packs[p])) {
        background(at + p * kStride, packs[p]);
      } else {
        slow |= 1u << p;
      }
    }
    for (; slow; slow &= slow - 1) {
      const int begin = at + (__ffs(slow) - 1) * kStride, end = begin + kSize;
      mixed(begin > 0 ? begin : 0, end < block.size ? end : block.size);
    }
  }
}

// Calls body(at, code, column) for numbers with something to do, and nothing(at) for the others.
template <typename Nothing, typename Body>
__device__ __forceinline__ void for_each_number(
    const unsigned* codes, int classes, int begin, int end, const Nothing& nothing, const Body& body) {
  int row = begin / classes, column = begin % classes;
#pragma unroll 1
  for (int at = begin; at < end; ++at) {
    if (codes[row] == kNoFocal) {
      nothing(at);
    } else {
      body(at, codes[row], column);
    }
    if (++column == classes) {
      column = 0;
      ++row;
    }
  }
}

template <typename T>
__device__ __forceinline__ Response response_of(const ClassLossesArgs<T>& args, float logit, int64_t number) {
  const float taught = args.teacher_logits[number];
  return {logit, taught, exp_of_minus(fabsf(logit)), exp_of_minus(fabsf(taught)), args.soft_focal};
}

template <typename T>
__global__ void __launch_bounds__(kClassThreads)
    class_losses_kernel(const __grid_constant__ ClassLossesArgs<T> args) {
  GID_SHARED(ClassShared, shared);
  const ClassBlock block = open_block(args, shared);
  float of_background = 0.0f, of_objects = 0.0f, response = 0.0f;
  const auto nothing = [](int) {};
  const auto background = [&](int, const uint4& bits) {
    float logits[Pack<T>::kSize];
    unpack(pack_of<T>(bits), logits);
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; ++i) {
      const FocalTail<float> focal(exp_of_minus(-logits[i]));
      of_background = fmaf(focal.cube, focal.loss, of_background);
    }
  };
  const auto number = [&](int at, unsigned code, int column) {
    const float logit = to_float(args.logits[block.start + at]);
    const unsigned focal_code = code & ~kMasked;
    if (focal_code != kNoFocal) {
      const bool is_object = unsigned(column) + kFirstClass == focal_code;
      const float loss = Focal<float>(is_object ? -logit : logit, exp_of_minus(fabsf(logit))).loss;
      (is_object ? of_objects : of_background) += loss;
    }
    if (code & kMasked) response += response_of(args, logit, block.start + at).loss;
  };
  const auto mixed = [&](int begin, int end) {
    for_each_number(shared.codes, args.classes, begin, end, nothing, number);
  };
  if (block.is_busy) for_each_pack(args, shared, block, nothing, background, mixed);
  const float focal = (1.0f - kFocalAlpha) * of_background + kFocalAlpha * of_objects;
  const float focal_sum = block_sum(focal, shared.focal), response_sum = block_sum(response, shared.response);
  if (threadIdx.x != 0) return;
  args.focal_partial[blockIdx.x] = focal_sum;
  args.response_partial[blockIdx.x] = response_sum;
}

template <typename T>
__global__ void __launch_bounds__(kClassThreads)
    class_losses_backward_kernel(const __grid_constant__ ClassLossesArgs<T> args) {
  GID_SHARED(ClassShared, shared);
  const ClassBlock block = open_block(args, shared);
  const float of_focal = args.matched ? args.grad_focal[block.image] : 0.0f;
  const float of_response = args.mask ? args.grad_response[block.image] : 0.0f;
  const float of_background = of_focal * (1.0f - kFocalAlpha), of_objects = of_focal * -kFocalAlpha;
  T* gradient = args.gradient + block.start;
  const auto nothing = [&](int at) { store_pack(gradient + at, Pack<T>{}); };
  const auto background = [&](int at, const uint4& bits) {
    float logits[Pack<T>::kSize];
    Pack<T> pack = pack_of<T>(bits);
    unpack(pack, logits);
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; ++i) {
      const FocalTail<float> focal(exp_of_minus(-logits[i]));
      pack.value[i] = from_float<T>(of_background * focal.cube * focal.derivative);
    }
    store_pack(gradient + at, pack);
  };
  const auto number = [&](int at, unsigned code, int column) {
    const float logit = to_float(args.logits[block.start + at]);
    const unsigned focal_code = code & ~kMasked;
    float value = 0.0f;
    if (focal_code != kNoFocal) {
      const bool is_object = unsigned(column) + kFirstClass == focal_code;
      const Focal<float> focal(is_object ? -logit : logit, exp_of_minus(fabsf(logit)));
      value = (is_object ? of_objects : of_background) * focal.derivative;
    }
    if (code & kMasked) value += of_response * response_of(args, logit, block.start + at).derivative;
    gradient[at] = from_float<T>(value);
  };
  const auto zero = [&](int at) { gradient[at] = T{}; };
  const auto mixed = [&](int begin, int end) {
    for_each_number(shared.codes, args.classes, begin, end, zero, number);
  };
  for_each_pack(args, shared, block, nothing, background, mixed);
}

// Rows of a block: a multiple of 8 where there are as many, so that blocks begin on 16-byte boundaries.
inline int class_rows(int64_t rows) {
  if (rows < 8) return rows > 0 ? int(rows) : 1;
  return int(rows < kMaxClassRows ? rows / 8 * 8 : kMaxClassRows);
}

template <typename T>
int class_losses_rows(const ClassLossesArgs<T>& args) {
  const int64_t dense = kLogitsABlock / args.classes, most = kSparseLogitsABlock / args.classes;
  const int64_t sparse = args.images * args.count / kSparseBlocks;
  return class_rows(args.matched || sparse < dense ? dense : (sparse < most ? sparse : most));
}

// Blocks of an image in the forward pass, which leave a partial sum each.
template <typename T>
int64_t class_losses_parts(const ClassLossesArgs<T>& args) {
  return args.classes > 0 ? ceil_div<int64_t>(args.count, class_losses_rows(args)) : 0;
}

template <typename T, typename Launch>
void launch_class_losses(const Launch& launch, ClassLossesArgs<T> args, const ImageSumsArgs& sums) {
  const int64_t blocks = class_losses_parts(args);
  if (args.images * blocks > 0) {
    args.rows = class_losses_rows(args);
    args.blocks = unsigned(blocks);
    launch(class_losses_kernel<T>, grid_of(args.images * blocks), dim3(kClassThreads), args);
  }
  launch_image_sums(launch, sums);
}

template <typename T, typename Launch>
void launch_class_losses_backward(const Launch& launch, ClassLossesArgs<T> args) {
  if (args.images == 0 || args.count == 0 || args.classes == 0) return;
  args.rows = class_rows(kLogitsABlock / args.classes);
  const int64_t blocks = ceil_div<int64_t>(args.count, args.rows);
  args.blocks = unsigned(blocks);
  launch(class_losses_backward_kernel<T>, grid_of(args.images * blocks), dim3(kClassThreads), args);
}

}  // namespace gid
