// Watches every access to shared and global memory: out of bounds, misaligned, read before written, and races, that is
// two threads at one place, one of them writing, with no barrier between them and not both atomic.
//
// -fsanitize=thread makes the compiler call the __tsan_ functions at the end. Compile this file without it.
#include "machine.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <unordered_map>

namespace simt {
namespace {

enum class Kind { kRead, kWrite, kAtomic };

// One access: by which thread, and when by the clocks that order it among others.
struct Event {
  uint32_t block;  // serial number; 0: no access
  uint16_t thread;
  uint16_t atomic;
  uint32_t barrier, clock;
};

// What is remembered of two neighbouring bytes. Two accesses of a kind suffice: whoever comes next is another thread
// than at least one of them.
struct Cell {
  Event writes[2], reads[2];
};

constexpr size_t kGranule = 2;  // bytes a cell
constexpr size_t kPage = 1024;  // bytes of global memory whose cells are made together
constexpr unsigned kTurn = 16;  // about one access in so many lets another thread go on
constexpr size_t kHostFrames = 256 * 1024;

struct Range {
  uintptr_t begin, end;
  bool holds(uintptr_t address, size_t bytes) const { return address >= begin && address + bytes <= end; }
};

struct Variable {
  const void* site;
  Range range;
};

struct Memory {
  std::vector<Range> buffers;
  std::unordered_map<uintptr_t, std::unique_ptr<Cell[]>> pages;
  alignas(64) char shared[kSharedBytes];
  std::vector<Cell> shared_cells{kSharedBytes / kGranule};
  std::vector<Variable> variables;
  uint32_t block = 0;  // serial number over all launches
  uintptr_t host;      // a place in the frames of the host code that launched
};

Memory memory;

// The innermost code outside this file that touched memory, as an offset that addr2line understands.
std::string place(const void* code) {
  Dl_info info;
  if (!dladdr(code, &info)) return "";
  const size_t offset = size_t(static_cast<const char*>(code) - static_cast<char*>(info.dli_fbase)) - 1;
  char text[32];
  std::snprintf(text, sizeof text, " [+0x%zx]", offset);
  return text;
}

std::string name(const Thread& thread) {
  return "thread " + std::to_string(thread.rank) + " of block " + std::to_string(machine.block_index.x);
}

bool happened_before(const Event& event, const Thread& self) {
  if (event.block != memory.block) return false;
  if (event.thread == self.rank || event.barrier < machine.barrier) return true;
  return event.thread / kWarp == self.rank / kWarp && event.clock <= self.clock[event.thread % kWarp];
}

bool races(const Event& event, const Thread& self, Kind kind) {
  return event.block && !(event.atomic && kind == Kind::kAtomic) && !happened_before(event, self);
}

// Remembers an access in place of one of the same thread, or of one that no longer matters.
void remember(Event (&events)[2], const Event& event, const Thread& self) {
  Event& slot = events[0].thread == event.thread && events[0].block == event.block ? events[0]
                : events[1].thread == event.thread && events[1].block == event.block ? events[1]
                : !events[0].block || happened_before(events[0], self)               ? events[0]
                                                                                     : events[1];
  slot = event;
}

void check_cell(Cell& cell, bool is_shared, Kind kind, const Thread& self, const void* code) {
  const char* const where = is_shared ? "shared" : "global";
  if (is_shared && cell.writes[0].block != memory.block) {
    cell = {};  // what an earlier block did is gone
    if (kind != Kind::kWrite) fail(name(self) + " reads shared memory that nothing has written" + place(code));
  }
  const char* const verb = kind == Kind::kRead ? "reads" : kind == Kind::kWrite ? "writes" : "atomically changes";
  for (const Event& event : cell.writes) {
    if (!races(event, self, kind)) continue;
    fail(std::string("race: ") + name(self) + " " + verb + " " + where + " memory that thread " +
         std::to_string(event.thread) + (event.block == memory.block ? "" : " of another block") +
         " has written, with no barrier in between" + place(code));
  }
  const uint32_t time = self.clock[self.rank % kWarp];
  const Event event{memory.block, uint16_t(self.rank), kind == Kind::kAtomic, machine.barrier, time};
  if (kind == Kind::kRead) return remember(cell.reads, event, self);
  for (const Event& read : cell.reads) {
    if (!races(read, self, kind)) continue;
    fail(std::string("race: ") + name(self) + " " + verb + " " + where + " memory that thread " +
         std::to_string(read.thread) + (read.block == memory.block ? "" : " of another block") +
         " has read, with no barrier in between" + place(code));
  }
  if (kind == Kind::kAtomic) return remember(cell.writes, event, self);
  cell = {};
  cell.writes[0] = event;
}

const Range* find_shared(uintptr_t address, size_t bytes) {
  for (const Variable& variable : memory.variables) {
    if (variable.range.holds(address, bytes)) return &variable.range;
  }
  return nullptr;
}

bool in_buffers(uintptr_t address, size_t bytes) {
  for (size_t i = 0; i < memory.buffers.size(); ++i) {
    if (!memory.buffers[i].holds(address, bytes)) continue;
    if (i) std::swap(memory.buffers[i], memory.buffers[i - 1]);  // soon the busiest is found first
    return true;
  }
  return false;
}

Cell* global_cells(uintptr_t address) {
  std::unique_ptr<Cell[]>& page = memory.pages[address / kPage];
  if (!page) page.reset(new Cell[kPage / kGranule]());
  return &page[address % kPage / kGranule];
}

void access(const void* pointer, size_t bytes, Kind kind, const void* code) {
  if (!machine.current) return;
  const Thread& self = *machine.current;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const auto stack = reinterpret_cast<uintptr_t>(self.stack);
  if (address - stack < kStackBytes || address - memory.host < kHostFrames) return;  // its own
  const auto arena = reinterpret_cast<uintptr_t>(memory.shared);
  const bool is_shared = address - arena < kSharedBytes;
  if (is_shared ? !find_shared(address, bytes) : !in_buffers(address, bytes)) {
    fail(name(self) + (kind == Kind::kRead ? " reads " : " writes ") + std::to_string(bytes) +
         " bytes outside of every buffer" + place(code));
  }
  for (uintptr_t at = address; at < address + bytes; at += kGranule) {
    Cell& cell = is_shared ? memory.shared_cells[(at - arena) / kGranule] : *global_cells(at);
    check_cell(cell, is_shared, kind, self, code);
  }
  if (machine.random() % kTurn == 0) let_others_run();
}

void aligned_access(const void* pointer, size_t bytes, Kind kind, const void* code) {
  if (machine.current && reinterpret_cast<uintptr_t>(pointer) % bytes) {
    const std::string size = std::to_string(bytes);
    fail(name(*machine.current) + " touches " + size + " bytes at an address that is not a multiple of " + size +
         place(code));
  }
  access(pointer, bytes, kind, code);
}

template <typename T>
T atomic_add(T* address, T value, const void* code) {
  aligned_access(address, sizeof(T), Kind::kAtomic, code);
  const T old = *address;
  *address = old + value;
  return old;
}

}  // namespace

void add_buffer(const void* data, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  memory.buffers.push_back({begin, begin + bytes});
}

void clear_buffers() { memory.buffers.clear(); }

void forget_accesses() {
  memory.pages.clear();
  memory.host = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
}

void start_shared_memory() {
  ++memory.block;
  memory.variables.clear();
  std::memset(memory.shared, 0xff, sizeof memory.shared);  // NaN, -1
}

void* shared_variable(const void* site, size_t bytes, size_t alignment) {
  for (const Variable& variable : memory.variables) {
    if (variable.site == site) return reinterpret_cast<void*>(variable.range.begin);
  }
  const auto arena = reinterpret_cast<uintptr_t>(memory.shared);
  const uintptr_t free = memory.variables.empty() ? arena : memory.variables.back().range.end;
  const uintptr_t begin = (free + alignment - 1) / alignment * alignment;
  if (begin + bytes > arena + kSharedBytes) fail("the block's shared variables take more than 48 KB");
  memory.variables.push_back({site, {begin, begin + bytes}});
  return reinterpret_cast<void*>(begin);
}

}  // namespace simt

int atomicAdd(int* address, int value) { return simt::atomic_add(address, value, __builtin_return_address(0)); }
unsigned atomicAdd(unsigned* address, unsigned value) {
  return simt::atomic_add(address, value, __builtin_return_address(0));
}
float atomicAdd(float* address, float value) { return simt::atomic_add(address, value, __builtin_return_address(0)); }
unsigned atomicMax(unsigned* address, unsigned value) {
  simt::aligned_access(address, sizeof *address, simt::Kind::kAtomic, __builtin_return_address(0));
  const unsigned old = *address;
  *address = std::max(old, value);
  return old;
}

// What the compiler calls.
#define SIMT_HOOKS(bytes)                                                                       \
  void __tsan_read##bytes(void* p) {                                                            \
    simt::aligned_access(p, bytes, simt::Kind::kRead, __builtin_return_address(0));             \
  }                                                                                             \
  void __tsan_write##bytes(void* p) {                                                           \
    simt::aligned_access(p, bytes, simt::Kind::kWrite, __builtin_return_address(0));            \
  }                                                                                             \
  void __tsan_unaligned_read##bytes(void* p) {                                                  \
    simt::access(p, bytes, simt::Kind::kRead, __builtin_return_address(0));                     \
  }                                                                                             \
  void __tsan_unaligned_write##bytes(void* p) {                                                 \
    simt::access(p, bytes, simt::Kind::kWrite, __builtin_return_address(0));                    \
  }

extern "C" {
SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) {
  simt::access(p, bytes, simt::Kind::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  simt::access(p, bytes, simt::Kind::kWrite, __builtin_return_address(0));
}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  simt::access(from, bytes, simt::Kind::kRead, __builtin_return_address(0));
  simt::access(to, bytes, simt::Kind::kWrite, __builtin_return_address(0));
  return std::memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  simt::access(to, bytes, simt::Kind::kWrite, __builtin_return_address(0));
  return std::memset(to, value, bytes);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// For whoever loads a library of kernels.
SIMT_EXPORT void simt_add_buffer(const void* data, size_t bytes) { simt::add_buffer(data, bytes); }
SIMT_EXPORT void simt_clear_buffers() { simt::clear_buffers(); }
}
