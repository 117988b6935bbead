// For the entry points of kernels/*.cpp: plain C functions that Python calls by ctypes.
#pragma once

#include <exception>
#include <stdexcept>

#include "common/types.h"
#include "simt.h"

#define SIMT_ENTRY(name) extern "C" SIMT_EXPORT const char* name

namespace simt {

const char* keep_message(const char* text);  // until the next one

// Null, or what went wrong.
template <typename Body>
const char* guarded(const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& problem) {
    return keep_message(problem.what());
  }
}

// Calls body with a value of the C++ type: 0 float32, 1 float16, 2 bfloat16.
template <typename Body>
void for_type(int type, const Body& body) {
  switch (type) {
    case 0: return body(float());
    case 1: return body(gid::Half());
    case 2: return body(gid::BFloat16());
    default: throw std::invalid_argument("type must be 0, 1 or 2");
  }
}

}  // namespace simt
