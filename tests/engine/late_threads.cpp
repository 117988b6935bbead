// Loaded before torch, it lets a program say when gloo's threads, which have told that the work is done, let go of their
// tensors: in one of many runs they do so while the interpreter ends, and the program wants to be that one.
#include <dlfcn.h>
#include <pthread.h>
#include <sys/prctl.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>

using Clock = std::chrono::steady_clock;

// 0: at once; 1: when it is no longer 1; 2: after 50 ms, or at 3 where that is sooner
extern "C" {
volatile int lateness = 0;
}

static void wait_while(int value, Clock::duration longest) {
  const auto end = Clock::now() + longest;
  while (lateness == value && Clock::now() < end) std::this_thread::yield();
}

extern "C" int pthread_cond_broadcast(pthread_cond_t* condition) noexcept {
  using Function = int (*)(pthread_cond_t*);
  // glibc before 2.36 has two of this name on x86-64, and dlsym finds the one of another layout.
  static void* const newer = dlvsym(RTLD_NEXT, "pthread_cond_broadcast", "GLIBC_2.3.2");
  static const auto original =
      reinterpret_cast<Function>(newer ? newer : dlsym(RTLD_NEXT, "pthread_cond_broadcast"));
  const int result = original(condition);
  char name[16] = "";
  prctl(PR_GET_NAME, name);
  if (lateness != 0 && std::strcmp(name, "pt_gloo_runloop") == 0) {
    wait_while(1, std::chrono::seconds(10));
    wait_while(2, std::chrono::milliseconds(50));
    std::fputs("late\n", stderr);
  }
  return result;
}
