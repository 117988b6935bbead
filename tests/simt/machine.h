// The state of the emulated machine, shared by simt.cpp (who runs) and memory.cpp (who touches what).
#pragma once

#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "simt.h"

namespace simt {

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

struct Thread {
  unsigned rank;  // in its block
  dim3 index;
  State state;
  Context context;
  char* stack;

  // Where it waits, and for a warp operation what it brought.
  const char* file;
  int line;
  WarpOp op;
  unsigned mask, source;
  uint64_t value;

  // What this thread knows to have happened: clock[l] is the time of lane l of its warp that it has synchronised with.
  uint32_t clock[kWarp];
};

struct Machine {
  dim3 grid, block, block_index;
  void (*run)(const void* body);
  const void* body;
  std::mt19937_64 random;
  Context scheduler;
  std::vector<Thread> threads;
  std::vector<unsigned> ready;  // ranks
  Thread* current = nullptr;    // null while the scheduler or the host runs
  unsigned done, at_barrier;
  uint32_t barrier;   // barriers that this block has passed
  std::string error;  // what ends the launch
};

extern Machine machine;

constexpr size_t kStackBytes = 64 * 1024;  // of a thread

// Ends the launch with a sentence. To be called from a running thread; does not come back.
void fail(const std::string& sentence);

// A turn for the others.
void let_others_run();

void forget_accesses();      // before a launch
void start_shared_memory();  // before a block: nothing written yet, poisoned

}  // namespace simt
