#include "rmoe/ops/runtime.h"

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

#include "rmoe/base/arena.h"
#include "rmoe/base/process.h"

namespace rmoe {
namespace {

// Smaller tensors stay with malloc, which is quicker there.
constexpr size_t kSmall = 16 << 10;

// Under AddressSanitizer every block is malloc's, so that it sees who writes where.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kUseArena = false;
#else
constexpr bool kUseArena = true;
#endif

std::atomic<int64_t> live = 0;

class TensorAllocator : public c10::Allocator {
 public:
  TensorAllocator() : arena_(kUseArena ? 4 * memory() : 0, memory() / 4 * 3) {}

  at::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, c10::Device(c10::kCPU)};
    // The size stands in front of the block: a tensor's data pointer is all that its deleter gets.
    void* block = bytes < kSmall ? nullptr : arena_.allocate(bytes + kHeader);
    if (!block) block = std::aligned_alloc(kHeader, (bytes + 2 * kHeader - 1) / kHeader * kHeader);
    if (!block) throw std::bad_alloc();
    *static_cast<size_t*>(block) = bytes;
    live.fetch_add(static_cast<int64_t>(bytes), std::memory_order_relaxed);
    void* data = static_cast<std::byte*>(block) + kHeader;
    return {data, data, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  // Never destroyed: tensors with static storage may be freed after everything else.
  static TensorAllocator& instance() {
    static auto* allocator = new TensorAllocator;
    return *allocator;
  }

 private:
  static constexpr size_t kHeader = 64;  // a cache line, so that data are aligned to one

  static size_t memory() {
    const int64_t total = memory_total_bytes();
    return static_cast<size_t>(total > 0 ? total : int64_t{16} << 30);
  }
  static void release(void* data) {
    if (!data) return;
    void* block = static_cast<std::byte*>(data) - kHeader;
    live.fetch_sub(static_cast<int64_t>(*static_cast<size_t*>(block)), std::memory_order_relaxed);
    Arena& arena = instance().arena_;
    arena.owns(block) ? arena.free(block) : std::free(block);
  }

  Arena arena_;
};

// torchrun starts LOCAL_WORLD_SIZE processes on this machine.
int64_t default_threads() {
  const char* text = std::getenv("LOCAL_WORLD_SIZE");
  const int64_t processes = text ? std::strtoll(text, nullptr, 10) : 1;
  return std::max<int64_t>(1, usable_cpus() / std::max<int64_t>(1, processes));
}

}  // namespace

void configure_runtime(int64_t threads) {
  at::set_num_threads(static_cast<int>(threads > 0 ? threads : default_threads()));
  // Of what others allocate: large blocks come from the heap, not from mmap, and the heap is not given back.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, INT32_MAX);
  mallopt(M_TOP_PAD, 64 << 20);
  c10::SetCPUAllocator(&TensorAllocator::instance(), /*priority=*/1);
}

int64_t tensor_bytes() { return live.load(std::memory_order_relaxed); }

}  // namespace rmoe
