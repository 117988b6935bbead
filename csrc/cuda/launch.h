// The host side that the .cu files share: how a kernel is started on torch's current stream. Nothing of torch but its
// stable ABI.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <optional>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/shim_utils.h>

#include "common/checks.h"

namespace gid {

// Makes a tensor's device the current one while it lives, and starts kernels on that device's current stream.
class CudaLaunch {
 public:
  explicit CudaLaunch(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) const {
    kernel<<<grid, block, 0, stream_>>>(arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

inline int as_int(int64_t value, const char* name) {
  STD_TORCH_CHECK(value <= INT_MAX, name, " must be less than 2^31, got ", value);
  return int(value);
}

}  // namespace gid
