#include "rmoe/base/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>

#include "rmoe/base/error.h"

namespace rmoe {
namespace {

constexpr size_t kUnit = 1024, kPage = 4096, kHugePage = size_t{2} << 20, kGrowth = size_t{16} << 20;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Gives the whole pages of a free block back. They stay usable, and read as zeros.
void release_pages(std::byte* begin, size_t size, size_t page) {
  const auto first = reinterpret_cast<uintptr_t>(begin);
  const size_t before = round_up(first, page) - first;
  if (size >= before + page) ::madvise(begin + before, (size - before) / page * page, MADV_DONTNEED);
}

}  // namespace

Arena::Arena(size_t capacity, size_t keep) : keep_(keep) {
  capacity = round_up(capacity, kHugePage);
  void* range = ::mmap(nullptr, capacity + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) return;
  const auto start = reinterpret_cast<uintptr_t>(range);
  const size_t before = round_up(start, kHugePage) - start;
  begin_ = top_ = static_cast<std::byte*>(range) + before;
  end_ = begin_ + capacity;
  if (before > 0) ::munmap(range, before);
  if (before < kHugePage) ::munmap(end_, kHugePage - before);
  ::madvise(begin_, capacity, MADV_HUGEPAGE);  // a system without huge pages does without
}

Arena::~Arena() {
  if (begin_) ::munmap(begin_, static_cast<size_t>(end_ - begin_));
}

void* Arena::allocate(size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (bytes > static_cast<size_t>(end_ - begin_)) return nullptr;
  bytes = round_up(std::max<size_t>(bytes, 1), kUnit);
  auto found = free_.lower_bound({bytes, nullptr});
  if (found == free_.end()) {
    if (!extend(bytes)) return nullptr;
    found = free_.lower_bound({bytes, nullptr});
  }
  const auto block = blocks_.find(found->second);
  const size_t size = block->second.size;
  forget_free(block);
  if (size > bytes) {
    block->second.size = bytes;
    add_free(block->first + bytes, size - bytes);
  }
  used_ += bytes;
  return block->first;
}

void Arena::free(void* address) {
  const std::lock_guard lock(mutex_);
  const auto block = blocks_.find(static_cast<std::byte*>(address));
  RMOE_ASSERT(block != blocks_.end() && !block->second.free, "Arena: freed what is not in use");
  used_ -= block->second.size;
  add_free(block->first, block->second.size);
}

// So far that the last block is free and holds `bytes`.
bool Arena::extend(size_t bytes) {
  const auto last = blocks_.empty() ? blocks_.end() : std::prev(blocks_.end());
  const size_t there = last != blocks_.end() && last->second.free ? last->second.size : 0;
  const auto left = static_cast<size_t>(end_ - top_);
  if (bytes - there > left) return false;
  const size_t more = std::min(round_up(bytes - there, kGrowth), left);
  if (static_cast<size_t>(top_ - begin_) + more > keep_) {
    const size_t page = keep_ == 0 ? kHugePage : kPage;
    for (const auto& [size, block] : free_) release_pages(block, size, page);
  }
  if (::mprotect(top_, more, PROT_READ | PROT_WRITE) != 0) return false;
  top_ += more;
  add_free(top_ - more, more);
  return true;
}

void Arena::add_free(std::byte* address, size_t bytes) {
  auto block = blocks_.insert_or_assign(address, Block{bytes, true}).first;
  if (const auto next = std::next(block); next != blocks_.end() && next->second.free) {
    forget_free(next);
    block->second.size += next->second.size;
    blocks_.erase(next);
  }
  if (block != blocks_.begin()) {
    if (const auto previous = std::prev(block); previous->second.free) {
      const size_t size = block->second.size;
      forget_free(previous);
      blocks_.erase(block);
      block = previous;
      block->second.size += size;
    }
  }
  block->second.free = true;
  free_.emplace(block->second.size, block->first);
}

void Arena::forget_free(Blocks::iterator block) {
  free_.erase({block->second.size, block->first});
  block->second.free = false;
}

size_t Arena::used() const {
  const std::lock_guard lock(mutex_);
  return used_;
}

size_t Arena::extent() const {
  const std::lock_guard lock(mutex_);
  return static_cast<size_t>(top_ - begin_);
}

}  // namespace rmoe
