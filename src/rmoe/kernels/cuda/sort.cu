// Slots sorted by expert by counting: each block of slots counts its experts, one block adds the counts up, and each
// block puts its slots in their places. Stable, and the same whatever runs first.
#include "rmoe/kernels/cuda/kernels.h"

namespace rmoe::kernels::cuda {
namespace {

__device__ inline int64_t expert_of(const SlotSort& p, int64_t slot) {
  const int64_t id = p.ids[slot];
  return id >= 0 && id < p.N ? id : p.N;
}

// counts[block][e], in shared memory no more than the block's experts.
__global__ void count_kernel(SlotSort p) {
  int32_t* counts = p.counts + static_cast<int64_t>(blockIdx.x) * (p.N + 1);
  for (int64_t e = threadIdx.x; e <= p.N; e += kThreads) counts[e] = 0;
  __syncthreads();
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kSortBlock + threadIdx.x;
  if (slot < p.slots) atomicAdd(counts + expert_of(p, slot), 1);
}

// counts[block][e] becomes the first row of the block's slots of expert e.
__global__ void place_kernel(SlotSort p, int64_t blocks) {
  for (int64_t e = threadIdx.x; e <= p.N; e += kThreads) {
    int32_t sum = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      int32_t& count = p.counts[b * (p.N + 1) + e];
      const int32_t own = count;
      count = sum;
      sum += own;
    }
    if (e < p.N) p.end_N[e] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int64_t e = 1; e < p.N; ++e) p.end_N[e] += p.end_N[e - 1];
  }
  __syncthreads();
  for (int64_t e = threadIdx.x + 1; e <= p.N; e += kThreads) {
    const int32_t begin = p.end_N[e - 1];
    for (int64_t b = 0; b < blocks; ++b) p.counts[b * (p.N + 1) + e] += begin;
  }
}

__global__ void scatter_kernel(SlotSort p) {
  __shared__ int64_t experts[kSortBlock];
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kSortBlock + threadIdx.x;
  experts[threadIdx.x] = slot < p.slots ? expert_of(p, slot) : -1;
  __syncthreads();
  if (slot >= p.slots) return;
  const int64_t expert = experts[threadIdx.x];
  int64_t row = p.counts[static_cast<int64_t>(blockIdx.x) * (p.N + 1) + expert];
  for (unsigned before = 0; before < threadIdx.x; ++before) row += experts[before] == expert;
  p.slot_M[row] = slot;
  p.expert_M[row] = expert;
  p.row_M[slot] = row;
}

}  // namespace

void sort_slots(const SlotSort& p, Stream stream) {
  static_assert(kSortBlock == kThreads);
  const int64_t blocks = sort_blocks(p.slots);
  if (blocks > 0) RMOE_LAUNCH(count_kernel, blocks, kThreads, stream, p);
  RMOE_LAUNCH(place_kernel, 1, kThreads, stream, p, blocks);
  if (blocks > 0) RMOE_LAUNCH(scatter_kernel, blocks, kThreads, stream, p);
}

}  // namespace rmoe::kernels::cuda
