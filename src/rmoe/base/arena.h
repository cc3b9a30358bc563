// Memory for large blocks that come and go in the same pattern over and over, as a training step's tensors do. One
// contiguous range of addresses, best fit, neighbours merged: what was freed is given out again without a page fault,
// and pages are huge (2 MiB) where the system has them.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace rmoe {

// Thread-safe.
class Arena {
 public:
  // Reserves addresses for `capacity` bytes; memory is taken as blocks need it. Beyond `keep` bytes, free pages go back
  // to the system before more are taken. With keep = 0, where that is routine, only whole huge pages do: what is left of
  // one would be small pages for good.
  Arena(size_t capacity, size_t keep);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Aligned to 1024 bytes; null when it does not fit or the system gives no memory.
  void* allocate(size_t bytes);
  bool owns(const void* block) const { return begin_ && block >= begin_ && block < end_; }
  // A block of this arena, once.
  void free(void* block);

  size_t used() const;    // bytes of blocks given out and not freed
  size_t extent() const;  // bytes of the range that blocks have ever covered: no more memory than this is taken

 private:
  struct Block {
    size_t size;
    bool free;
  };
  using Blocks = std::map<std::byte*, Block>;
  bool extend(size_t bytes);
  // As free blocks, merged with free neighbours.
  void add_free(std::byte* address, size_t bytes);
  void forget_free(Blocks::iterator block);

  mutable std::mutex mutex_;
  std::byte *begin_ = nullptr, *end_ = nullptr;
  std::byte* top_ = nullptr;  // addresses below may be touched
  size_t keep_, used_ = 0;
  Blocks blocks_;                                 // all of [begin_, top_)
  std::set<std::pair<size_t, std::byte*>> free_;  // the smallest first, then the lowest
};

}  // namespace rmoe
