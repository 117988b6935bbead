// The emulator itself: blocks, fibers, barriers and warp operations. Who may touch what memory is memory.cpp's.
// Compile without -fsanitize=thread.
#include "entry.h"
#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <stdexcept>

namespace simt {

Machine machine;

namespace {

constexpr unsigned kMaxThreads = 1024;

// One mapping for all stacks, kept for the life of the process; pages that no thread reaches cost nothing.
char* stacks() {
  static char* const memory = [] {
    void* mapped = mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::runtime_error("no memory for the threads' stacks");
    return static_cast<char*>(mapped);
  }();
  return memory;
}

std::string site(const Thread& thread) {
  const std::string path = thread.file;
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(thread.line);
}

void make_ready(Thread& thread) {
  thread.state = State::kReady;
  machine.ready.push_back(thread.rank);
}

// Gives the processor back to the scheduler until this thread is drawn again.
void pause() {
  Thread* self = machine.current;
  self->context.switch_to(machine.scheduler);
}

void thread_main() {
  machine.run(machine.body);
  machine.current->state = State::kDone;
  ++machine.done;
  pause();
}

void release_barrier() {
  const Thread& first = machine.threads[0];
  for (const Thread& thread : machine.threads) {
    if (thread.line != first.line || site(thread) != site(first)) {
      fail("threads of one block wait at different barriers: " + site(first) + " and " + site(thread));
    }
  }
  machine.at_barrier = 0;
  ++machine.barrier;
  for (Thread& thread : machine.threads) make_ready(thread);
}

// The threads of the caller's warp that a mask names; null where one of them has not come to a warp operation yet.
std::vector<Thread*> gather_lanes(const Thread& self) {
  std::vector<Thread*> lanes;
  const unsigned first = self.rank / kWarp * kWarp;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(self.mask >> lane & 1)) continue;
    if (first + lane >= machine.threads.size()) {
      fail("the mask at " + site(self) + " names lane " + std::to_string(lane) + ", which the block does not have");
    }
    Thread& thread = machine.threads[first + lane];
    if (thread.state != State::kAtWarp) return {};
    if (thread.mask != self.mask || thread.op != self.op) {
      fail("lanes of one warp disagree: the operations or masks at " + site(self) + " and " + site(thread) + " differ");
    }
    lanes.push_back(&thread);
  }
  return lanes;
}

void release_warp(const std::vector<Thread*>& lanes) {
  uint64_t values[kWarp] = {};
  uint64_t ballot = 0;
  uint32_t clock[kWarp] = {};
  for (const Thread* thread : lanes) {
    values[thread->rank % kWarp] = thread->value;
    ballot |= (thread->value & 1) << thread->rank % kWarp;
    for (unsigned lane = 0; lane < kWarp; ++lane) clock[lane] = std::max(clock[lane], thread->clock[lane]);
  }
  for (Thread* thread : lanes) {
    if (thread->op == WarpOp::kShuffle) {
      if (!(thread->mask >> thread->source & 1)) {
        const std::string lane = std::to_string(thread->source);
        fail("a shuffle at " + site(*thread) + " reads lane " + lane + ", which takes no part");
      }
      thread->value = values[thread->source];
    } else if (thread->op == WarpOp::kBallot) {
      thread->value = ballot;
    } else {  // of the warp operations only this one orders memory
      std::copy(clock, clock + kWarp, thread->clock);
      ++thread->clock[thread->rank % kWarp];
    }
    make_ready(*thread);
  }
}

// Nobody can go on: says who waits for whom.
void report_deadlock() {
  unsigned barrier = 0, warp = 0;
  std::string barrier_site, warp_site;
  for (const Thread& thread : machine.threads) {
    if (thread.state == State::kAtBarrier) ++barrier, barrier_site = site(thread);
    if (thread.state == State::kAtWarp) ++warp, warp_site = site(thread);
  }
  std::string text = "deadlock in block " + std::to_string(machine.block_index.x) + ":";
  if (barrier) text += " " + std::to_string(barrier) + " threads wait at the barrier of " + barrier_site + ",";
  if (warp) text += " " + std::to_string(warp) + " threads wait for lanes of their warp at " + warp_site + ",";
  text += " " + std::to_string(machine.done) + " of " + std::to_string(machine.threads.size()) + " have returned";
  throw std::runtime_error(text);
}

void start_threads(dim3 block) {
  const unsigned count = block.x * block.y * block.z;
  machine.threads.resize(count);
  machine.ready.clear();
  for (unsigned rank = 0; rank < count; ++rank) {
    Thread& thread = machine.threads[rank];
    thread.rank = rank;
    thread.index = {rank % block.x, rank / block.x % block.y, rank / block.x / block.y};
    thread.stack = stacks() + rank * kStackBytes;
    thread.context.prepare(thread.stack, kStackBytes, thread_main);
    std::fill(thread.clock, thread.clock + kWarp, 0);
    thread.clock[rank % kWarp] = 1;
    make_ready(thread);
  }
  machine.done = machine.at_barrier = machine.barrier = 0;
}

void run_block(dim3 block) {
  start_threads(block);
  while (machine.done < machine.threads.size()) {
    if (machine.ready.empty()) report_deadlock();
    std::swap(machine.ready[machine.random() % machine.ready.size()], machine.ready.back());
    machine.current = &machine.threads[machine.ready.back()];
    machine.ready.pop_back();
    machine.scheduler.switch_to(machine.current->context);
    machine.current = nullptr;
    if (!machine.error.empty()) throw std::runtime_error(machine.error);
  }
}

void check_shape(dim3 grid, dim3 block) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads) throw std::runtime_error("a block must have 1 to 1024 threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) throw std::runtime_error("a grid must have at least one block");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    throw std::runtime_error("a grid may have 2^31 - 1, 65535 and 65535 blocks along x, y and z");
  }
}

}  // namespace

void fail(const std::string& sentence) {
  machine.error = sentence;
  pause();
}

void let_others_run() {
  make_ready(*machine.current);
  pause();
}

const char* keep_message(const char* text) {
  static std::string message;
  message = text;
  return message.c_str();
}

dim3 thread_index() { return machine.current->index; }
dim3 block_index() { return machine.block_index; }
dim3 block_size() { return machine.block; }
dim3 grid_size() { return machine.grid; }
unsigned lane_index() { return machine.current->rank % kWarp; }

void launch(dim3 grid, dim3 block, uint64_t seed, void (*run)(const void* body), const void* body) {
  check_shape(grid, block);
  machine.grid = grid;
  machine.block = block;
  machine.run = run;
  machine.body = body;
  machine.error.clear();
  machine.random.seed(seed);
  forget_accesses();
  std::vector<unsigned> order(size_t(grid.x) * grid.y * grid.z);
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), machine.random);
  for (const unsigned i : order) {
    machine.block_index = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    start_shared_memory();
    run_block(block);
  }
}

void block_barrier(const char* file, int line) {
  Thread& self = *machine.current;
  self.state = State::kAtBarrier;
  self.file = file;
  self.line = line;
  if (++machine.at_barrier == machine.threads.size()) release_barrier();
  pause();
}

uint64_t warp_operation(WarpOp op, unsigned mask, uint64_t value, unsigned source, const char* file, int line) {
  Thread& self = *machine.current;
  self.state = State::kAtWarp;
  self.op = op;
  self.mask = mask;
  self.value = value;
  self.source = source;
  self.file = file;
  self.line = line;
  if (!(mask >> self.rank % kWarp & 1)) fail("the mask at " + site(self) + " leaves out the lane that calls");
  if (const std::vector<Thread*> lanes = gather_lanes(self); !lanes.empty()) release_warp(lanes);
  pause();
  return self.value;
}

}  // namespace simt
