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

// shared: bytes of dynamic shared memory, which a block finds full of ones: as floats, not a number.
void run_kernel(int64_t blocks, int64_t threads, size_t shared, const std::function<void()>& kernel);
unsigned char* dynamic_shared_memory();
void wait_for_block();
void wait_for_warp();
// The words of the warp's threads, as each handed one over.
uint64_t exchange_in_warp(uint64_t word, int lane_mask);
// mma.m16n8k16 of bf16: d += a b, spread over the warp as PTX says.
void multiply_in_warp(float* d, const uint32_t* a, const uint32_t* b);

}  // namespace rmoe::testing

#define __global__
#define __host__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)
#define threadIdx (::rmoe::testing::cuda_thread.thread)
#define blockIdx (::rmoe::testing::cuda_thread.block)
#define blockDim (::rmoe::testing::cuda_thread.block_size)
#define gridDim (::rmoe::testing::cuda_thread.grid)
#define RMOE_LAUNCH(kernel, blocks, threads, stream, ...) \
  RMOE_LAUNCH_SHARED(kernel, blocks, threads, 0, stream, __VA_ARGS__)
#define RMOE_LAUNCH_SHARED(kernel, blocks, threads, bytes, stream, ...) \
  (static_cast<void>(stream), ::rmoe::testing::run_kernel(blocks, threads, bytes, [&] { kernel(__VA_ARGS__); }))
#define RMOE_DYNAMIC_SHARED(name) unsigned char* const name = ::rmoe::testing::dynamic_shared_memory()

inline void __syncthreads() { ::rmoe::testing::wait_for_block(); }
inline void __syncwarp() { ::rmoe::testing::wait_for_warp(); }
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

namespace rmoe::kernels::cuda {
inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ::rmoe::testing::multiply_in_warp(d, a, b);
}
}  // namespace rmoe::kernels::cuda
