// Dense gradients are tens of megabytes, and the C library asks the system for such blocks anew each time. Its first
// touch of every 4 KB page then costs more than the arithmetic; of every 2 MB page it does not.
#pragma once

#include <cstdint>

#include <torch/csrc/stable/tensor.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace gid {

// Asks the system to back a new tensor, not yet written to, with huge pages where it is large. A wish: where it is not
// granted all works as before.
inline void wish_for_huge_pages(const torch::stable::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096, kLarge = uintptr_t(4) << 20;
  const auto data = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const uintptr_t begin = (data + kPage - 1) / kPage * kPage;
  const uintptr_t end = data + uintptr_t(tensor.numel()) * tensor.element_size();
  if (end > begin && end - begin >= kLarge) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace gid
