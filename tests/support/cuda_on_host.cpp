#include "tests/support/cuda_on_host.h"

#include <setjmp.h>
#include <ucontext.h>

#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "rmoe/base/error.h"
#include "tests/support/far_device.h"

namespace rmoe::testing {

CudaThread cuda_thread;

namespace {

constexpr size_t kStack = 64 << 10;
constexpr int kWarp = 32;

Turns turns = Turns::kForward;

// Threads that wait until all of them do.
struct Barrier {
  int64_t members = 0, waiting = 0, generation = 0;

  void open_if_full() {
    if (waiting == 0 || waiting < members) return;
    waiting = 0;
    ++generation;
  }
};

// Entered once by its context; from then on by jumps, which cost no system call.
struct Fiber {
  ucontext_t context;
  jmp_buf place;
  std::unique_ptr<std::byte[]> stack;
  bool entered = false, done = false;
};

// The threads of a block, which run the blocks of all launches one after the other.
class Block {
 public:
  explicit Block(int64_t threads) : fibers_(threads), words_(threads), warps_((threads + kWarp - 1) / kWarp) {
    for (Fiber& fiber : fibers_) {
      fiber.stack = std::make_unique<std::byte[]>(kStack);
      ::getcontext(&fiber.context);
      fiber.context.uc_stack = {.ss_sp = fiber.stack.get(), .ss_flags = 0, .ss_size = kStack};
      fiber.context.uc_link = nullptr;
      ::makecontext(&fiber.context, &Block::work, 0);
    }
  }

  void run(int64_t block, int64_t blocks, const std::function<void()>& kernel);
  void wait_for_all() { wait(all_); }
  uint64_t exchange(uint64_t word, int lane_mask) {
    Barrier& warp = warps_[running_ / kWarp];
    words_[running_] = word;
    wait(warp);
    const uint64_t other = words_[running_ ^ static_cast<size_t>(lane_mask)];
    wait(warp);  // before anybody hands over the next
    return other;
  }

 private:
  static void work();
  void yield() {
    if (_setjmp(fibers_[running_].place) == 0) _longjmp(scheduler_, 1);
  }
  void resume(Fiber& fiber) {
    if (_setjmp(scheduler_) != 0) return;
    if (std::exchange(fiber.entered, true)) _longjmp(fiber.place, 1);
    ::setcontext(&fiber.context);
  }
  void wait(Barrier& barrier) {
    const int64_t generation = barrier.generation;
    ++barrier.waiting;
    barrier.open_if_full();
    ++steps_;
    while (barrier.generation == generation) yield();
  }

  std::vector<Fiber> fibers_;
  std::vector<uint64_t> words_;
  Barrier all_;
  std::vector<Barrier> warps_;
  jmp_buf scheduler_;
  size_t running_ = 0;
  int64_t steps_ = 0;  // waits begun and fibers ended: what says that the block gets on
  const std::function<void()>* kernel_ = nullptr;
};

Block* current = nullptr;

void Block::work() {
  for (;;) {
    (*current->kernel_)();
    current->fibers_[current->running_].done = true;
    current->yield();
  }
}

void Block::run(int64_t block, int64_t blocks, const std::function<void()>& kernel) {
  kernel_ = &kernel;
  all_ = {.members = std::ssize(fibers_)};
  for (size_t w = 0; w < warps_.size(); ++w) {
    warps_[w] = {.members = std::min<int64_t>(kWarp, std::ssize(fibers_) - static_cast<int64_t>(w) * kWarp)};
  }
  for (Fiber& fiber : fibers_) fiber.done = false;
  for (size_t left = fibers_.size(); left > 0;) {
    const int64_t before = steps_;
    for (size_t i = 0; i < fibers_.size(); ++i) {
      running_ = turns == Turns::kForward ? i : fibers_.size() - 1 - i;
      Fiber& fiber = fibers_[running_];
      if (fiber.done) continue;
      cuda_thread = {.thread = {static_cast<unsigned>(running_)},
                     .block = {static_cast<unsigned>(block)},
                     .block_size = {static_cast<unsigned>(fibers_.size())},
                     .grid = {static_cast<unsigned>(blocks)}};
      resume(fiber);
      if (!fiber.done) continue;
      --left;
      ++steps_;
      for (Barrier* barrier : {&all_, &warps_[running_ / kWarp]}) {
        --barrier->members;
        barrier->open_if_full();
      }
    }
    RMOE_ASSERT(steps_ > before || left == 0, "the threads of a block wait for each other in different places");
  }
}

}  // namespace

void set_turns(Turns t) { turns = t; }

void wait_for_block() { current->wait_for_all(); }
uint64_t exchange_in_warp(uint64_t word, int lane_mask) { return current->exchange(word, lane_mask); }

void run_kernel(int64_t blocks, int64_t threads, const std::function<void()>& kernel) {
  static std::mutex one_at_a_time;  // as on one stream
  const std::lock_guard lock(one_at_a_time);
  static std::map<int64_t, std::unique_ptr<Block>> of_size;
  std::unique_ptr<Block>& block = of_size[threads];
  if (!block) block = std::make_unique<Block>(threads);
  current = block.get();
  const DeviceAtWork at_work;
  for (int64_t i = 0; i < blocks; ++i) block->run(i, blocks, kernel);
}

}  // namespace rmoe::testing
