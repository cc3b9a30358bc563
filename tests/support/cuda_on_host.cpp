#include "tests/support/cuda_on_host.h"

#include <setjmp.h>
#include <ucontext.h>

#include <array>
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
  explicit Block(int64_t threads)
      : fibers_(threads), words_(threads), operands_(threads), warps_((threads + kWarp - 1) / kWarp) {
    for (Fiber& fiber : fibers_) {
      fiber.stack = std::make_unique<std::byte[]>(kStack);
      ::getcontext(&fiber.context);
      fiber.context.uc_stack = {.ss_sp = fiber.stack.get(), .ss_flags = 0, .ss_size = kStack};
      fiber.context.uc_link = nullptr;
      ::makecontext(&fiber.context, &Block::work, 0);
    }
  }

  void run(int64_t block, int64_t blocks, size_t shared, const std::function<void()>& kernel);
  unsigned char* shared() { return shared_.data(); }
  void wait_for_all() { wait(all_); }
  void wait_for_warp() { wait(warps_[running_ / kWarp]); }
  uint64_t exchange(uint64_t word, int lane_mask) {
    Barrier& warp = warps_[running_ / kWarp];
    words_[running_] = word;
    wait(warp);
    const uint64_t other = words_[running_ ^ static_cast<size_t>(lane_mask)];
    wait(warp);  // before anybody hands over the next
    return other;
  }
  void multiply(float* d, const uint32_t* a, const uint32_t* b);

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
  std::vector<std::array<uint32_t, 6>> operands_;  // of each thread: a and b of its product
  std::vector<unsigned char> shared_;
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

// The lower or the higher one of two.
float bf16_of(uint32_t pair, size_t which) { return __uint_as_float(pair >> 16 * which << 16); }

void Block::multiply(float* d, const uint32_t* a, const uint32_t* b) {
  const size_t own = running_, warp = own / kWarp * kWarp, lane = own % kWarp;
  operands_[own] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  wait_for_warp();
  for (size_t i = 0; i < 4; ++i) {
    const size_t row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
    float sum = 0;
    for (size_t k = 0; k < 16; ++k) {
      const size_t pair = k % 8 / 2, high = k / 8;
      const uint32_t left = operands_[warp + row % 8 * 4 + pair][row / 8 + 2 * high];
      const uint32_t right = operands_[warp + column * 4 + pair][4 + high];
      sum += bf16_of(left, k % 2) * bf16_of(right, k % 2);
    }
    d[i] += sum;
  }
  wait_for_warp();  // before anybody hands over the next
}

void Block::run(int64_t block, int64_t blocks, size_t shared, const std::function<void()>& kernel) {
  kernel_ = &kernel;
  shared_.assign(shared, 0xff);
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
void wait_for_warp() { current->wait_for_warp(); }
uint64_t exchange_in_warp(uint64_t word, int lane_mask) { return current->exchange(word, lane_mask); }
void multiply_in_warp(float* d, const uint32_t* a, const uint32_t* b) { current->multiply(d, a, b); }
unsigned char* dynamic_shared_memory() { return current->shared(); }

void run_kernel(int64_t blocks, int64_t threads, size_t shared, const std::function<void()>& kernel) {
  static std::mutex one_at_a_time;  // as on one stream
  const std::lock_guard lock(one_at_a_time);
  static std::map<int64_t, std::unique_ptr<Block>> of_size;
  std::unique_ptr<Block>& block = of_size[threads];
  if (!block) block = std::make_unique<Block>(threads);
  current = block.get();
  const DeviceAtWork at_work;
  for (int64_t i = 0; i < blocks; ++i) block->run(i, blocks, shared, kernel);
}

}  // namespace rmoe::testing
