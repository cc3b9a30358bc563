// Working memory of the kernels, on huge pages where the system has them: products walk megabytes row by row, and on
// small pages wait for the page tables.
#pragma once

#include <cstddef>

namespace rmoe::kernels {

// A block that grows and is never given back before its thread ends, so that a steady state asks for none.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // At least so many bytes, aligned to cache lines; what it held is lost when it grows. Throws std::bad_alloc.
  std::byte* at_least(size_t bytes) { return bytes <= size_ ? data_ : grow(bytes); }

 private:
  std::byte* grow(size_t bytes);

  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace rmoe::kernels
