#include "rmoe/kernels/cpu/scratch.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "rmoe/base/arena.h"
#include "rmoe/base/process.h"

namespace rmoe::kernels {
namespace {

// Never destroyed: threads may end after everything else. Under AddressSanitizer every block is malloc's, so that it
// sees who writes where.
Arena& arena() {
#if defined(__SANITIZE_ADDRESS__)
  constexpr bool kUse = false;
#else
  constexpr bool kUse = true;
#endif
  static auto* all = new Arena(kUse ? static_cast<size_t>(std::max<int64_t>(memory_total_bytes(), 0)) : 0, 0);
  return *all;
}

void release(std::byte* block) {
  if (!block) return;
  arena().owns(block) ? arena().free(block) : std::free(block);
}

}  // namespace

Scratch::~Scratch() { release(data_); }

std::byte* Scratch::grow(size_t bytes) {
  constexpr size_t kUnit = 4096;
  release(data_);
  data_ = nullptr, size_ = 0;
  bytes = (bytes + kUnit - 1) / kUnit * kUnit;
  void* block = arena().allocate(bytes);
  if (!block) block = std::aligned_alloc(kUnit, bytes);
  if (!block) throw std::bad_alloc();
  data_ = static_cast<std::byte*>(block);
  size_ = bytes;
  return data_;
}

}  // namespace rmoe::kernels
