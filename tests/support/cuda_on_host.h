// What CUDA gives to the .cu files, for a test program that compiles them for the host: a kernel's blocks run one after
// the other, the threads of a block as fibers that change places where they wait for each other.
#pragma once

#define RMOE_CUDA_ON_HOST

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

namespace rmoe::testing {

struct Index {
  unsigned x = 0;
};

// In which order the threads of a block take their turns. What kernels give must not depend on it.
enum class Turns { kForward, kBackward };
void set_turns(Turns turns);

// Of the running fiber.
struct CudaThread {
  Index thread, block, block_size, grid;
};
extern CudaThread cuda_thread;

void run_kernel(int64_t blocks, int64_t threads, const std::function<void()>& kernel);
void wait_for_block();
// The words of the warp's threads, as each handed one over.
uint64_t exchange_in_warp(uint64_t word, int lane_mask);

}  // namespace rmoe::testing

#define __global__
#define __device__
#define __shared__ static
#define threadIdx (::rmoe::testing::cuda_thread.thread)
#define blockIdx (::rmoe::testing::cuda_thread.block)
#define blockDim (::rmoe::testing::cuda_thread.block_size)
#define gridDim (::rmoe::testing::cuda_thread.grid)
#define RMOE_LAUNCH(kernel, blocks, threads, stream, ...) \
  (static_cast<void>(stream), ::rmoe::testing::run_kernel(blocks, threads, [&] { kernel(__VA_ARGS__); }))

inline void __syncthreads() { ::rmoe::testing::wait_for_block(); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int lane_mask) {
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  word = ::rmoe::testing::exchange_in_warp(word, lane_mask);
  std::memcpy(&value, &word, sizeof value);
  return value;
}
template <class T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}
inline float __uint_as_float(unsigned bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
inline unsigned __float_as_uint(float f) {
  unsigned bits;
  std::memcpy(&bits, &f, sizeof bits);
  return bits;
}
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
using std::min;
