// What the kernels share. Included by .cu files only; tests compile them for the host, too, with what CUDA gives them
// replaced (tests/support/cuda_on_host.h).
#pragma once

#if !defined(RMOE_CUDA_ON_HOST)
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace rmoe::kernels::cuda {
// A kernel that cannot be started is an error here; what goes wrong while it runs is one of whoever waits for it.
inline void check_start(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
}
}  // namespace rmoe::kernels::cuda

// blocks of `threads` threads.
#define RMOE_LAUNCH(kernel, blocks, threads, stream, ...)                                                             \
  (kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, (cudaStream_t)(stream)>>>(__VA_ARGS__), \
   ::rmoe::kernels::cuda::check_start(#kernel))
// With `bytes` of shared memory, which RMOE_DYNAMIC_SHARED(name) gives to the kernel as `unsigned char* name`.
#define RMOE_LAUNCH_SHARED(kernel, blocks, threads, bytes, stream, ...)                                      \
  (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),                         \
   kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), bytes, (cudaStream_t)(stream)>>>( \
       __VA_ARGS__),                                                                                         \
   ::rmoe::kernels::cuda::check_start(#kernel))
#define RMOE_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#include <cassert>
#include <cstdint>

#include "rmoe/kernels/device.h"

namespace rmoe::kernels::cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(Bf16 v) { return __uint_as_float(static_cast<unsigned>(v.bits) << 16); }
template <class T>
__device__ inline T from_float(float f);
template <>
__device__ inline float from_float<float>(float f) {
  return f;
}
template <>
__device__ inline Bf16 from_float<Bf16>(float f) {
  const unsigned bits = __float_as_uint(f), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded)};
}

__device__ inline float sigmoid(float x) { return 1 / (1 + expf(-x)); }

// The same sum in every lane.
__device__ inline float warp_sum(float v) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}
__device__ inline float warp_max(float v) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

// Over a block of kThreads, all of which call it: the same sum in every thread.
__device__ inline float block_sum(float v) {
  __shared__ float sums[kThreads / kWarp];
  v = warp_sum(v);
  __syncthreads();  // the last call's are read
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = v;
  __syncthreads();
  float total = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) total += sums[w];
  return total;
}

// kernels/cpu/dropout.h on the device.
struct DropStream {
  uint64_t key;
  unsigned threshold;  // 0: nothing is dropped
  float scale;

  static DropStream of(Drop drop) {
    const double bound = drop.probability * 4294967296.0;
    return {drop.key, bound >= 4294967295.0 ? 4294967295u : static_cast<unsigned>(bound),
            static_cast<float>(1 / (1 - drop.probability))};
  }
  __device__ static unsigned scramble(unsigned v) {
    v ^= v >> 16;
    v *= 0x7feb352du;
    v ^= v >> 15;
    v *= 0x846ca68bu;
    return v ^ v >> 16;
  }
  // What element `index` is multiplied by.
  __device__ float factor(uint64_t index) const {
    if (threshold == 0) return 1;
    const unsigned low = static_cast<unsigned>(key) ^ scramble(static_cast<unsigned>(index >> 32));
    const unsigned drawn = scramble(scramble(static_cast<unsigned>(index) ^ low) + static_cast<unsigned>(key >> 32));
    return drawn >= threshold ? scale : 0;
  }
};

// Blocks for n threads' worth of work, each thread of which goes on in steps of all of them.
inline int64_t blocks_for(int64_t n) {
  constexpr int64_t kMost = 1 << 16;
  const int64_t blocks = (n + kThreads - 1) / kThreads;
  return blocks < kMost ? blocks : kMost;
}
#define RMOE_FOR_EACH(i, n)                                                     \
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, \
               every = static_cast<int64_t>(gridDim.x) * blockDim.x;            \
       i < (n); i += every)

}  // namespace rmoe::kernels::cuda
