// Dense gradients are tens of megabytes, and the C library asks the system for such blocks anew each time. Its first
// touch of every 4 KB page then costs more than the arithmetic; of every 2 MB page it does not.
#pragma once

#include <cstdint>
#include <cstring>

#include <torch/csrc/stable/tensor.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace gid {

// The whole 4 KB pages of a large tensor; none where it is small or the system is another.
struct Pages {
  char *begin = nullptr, *end = nullptr;

  explicit Pages(const torch::stable::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kPage = 4096, kLarge = uintptr_t(4) << 20;
    const auto data = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    const uintptr_t first = (data + kPage - 1) / kPage * kPage;
    const uintptr_t last = (data + uintptr_t(tensor.numel()) * tensor.element_size()) / kPage * kPage;
    if (last < first + kLarge) return;
    begin = reinterpret_cast<char*>(first);
    end = reinterpret_cast<char*>(last);
#endif
  }

  bool none() const { return begin == end; }
};

// Asks the system to back a new tensor, not yet written to, with huge pages where it is large. A wish: where it is not
// granted all works as before.
inline void wish_for_huge_pages(const torch::stable::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const Pages pages(tensor);
  if (!pages.none()) madvise(pages.begin, pages.end - pages.begin, MADV_HUGEPAGE);
#endif
}

// As wish_for_huge_pages; and the tensor is all zero afterwards, by pages that the system hands out cleared when they
// are first written to. Those that never are take no memory: who reads them reads one page of zeros, from the cache.
// False where the system does not do that: the tensor is then as undefined as before. Not for what is added to in
// place: a page that is read first is a page of zeros shared by all, and costs twice when it is then written to.
inline bool zeros_from_the_system(const torch::stable::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const Pages pages(tensor);
  if (pages.none()) return false;
  // Pages given back are zeros when they come again, but those of a file or of shared memory, which an allocator of the
  // user's might take, keep what was in them. So two are asked.
  volatile char *first = pages.begin, *last = pages.end - 1;
  *first = *last = 1;
  if (madvise(pages.begin, pages.end - pages.begin, MADV_DONTNEED) != 0 || *first != 0 || *last != 0) return false;
  madvise(pages.begin, pages.end - pages.begin, MADV_HUGEPAGE);
  auto* data = static_cast<char*>(const_cast<void*>(tensor.const_data_ptr()));
  char* stop = data + uint64_t(tensor.numel()) * tensor.element_size();
  std::memset(data, 0, pages.begin - data);
  std::memset(pages.end, 0, stop - pages.end);
  return true;
#else
  return false;
#endif
}

}  // namespace gid
