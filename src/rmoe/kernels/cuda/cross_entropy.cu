// Losses of rows of logits and, in place, their gradients: a block for each row, which passes over it twice.
#include "rmoe/kernels/cuda/kernels.h"

namespace rmoe::kernels::cuda {
namespace {

template <class T>
__global__ void rows_kernel(CrossEntropyRows<T> p) {
  const int64_t row = blockIdx.x, target = p.targets[row];
  T* logits = p.logits + row * p.V;
  const auto value = [&](int64_t v) { return to_float(logits[v]); };
  // The largest so far and the sum of e^(x - largest), in one pass.
  float largest = -INFINITY, sum = 0;
  for (int64_t v = threadIdx.x; v < p.V; v += kThreads) {
    const float x = value(v);
    if (x > largest) {
      sum = sum * expf(largest - x) + 1;
      largest = x;
    } else {
      sum += expf(x - largest);
    }
  }
  __shared__ float maxima[kThreads / kWarp];
  const float of_warp = warp_max(largest);
  if (threadIdx.x % kWarp == 0) maxima[threadIdx.x / kWarp] = of_warp;
  __syncthreads();
  float all = maxima[0];
  for (int w = 1; w < kThreads / kWarp; ++w) all = fmaxf(all, maxima[w]);
  // A thread without a column has no largest.
  const float lse = all + logf(block_sum(largest == -INFINITY ? sum : sum * expf(largest - all)));
  const bool counts = target != p.ignore;
  assert(!counts || (target >= 0 && target < p.V));
  // Whoever reads the target's logit does so before it is overwritten.
  const float at_target = counts ? value(target) : 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    p.lse[row] = lse;
    p.losses[row] = counts ? lse - at_target : 0;
  }
  if (!p.share) return;
  const float share = counts ? *p.share : 0, slope = share * (1 + 2 * static_cast<float>(p.z_loss) * lse);
  for (int64_t v = threadIdx.x; v < p.V; v += kThreads) {
    const float d = counts ? expf(value(v) - lse) * slope - (v == target ? share : 0) : 0;
    logits[v] = from_float<T>(d);
  }
}

}  // namespace

template <class T>
void cross_entropy(const CrossEntropyRows<T>& p, Stream stream) {
  if (p.rows > 0) RMOE_LAUNCH(rows_kernel<T>, p.rows, kThreads, stream, p);
}

template void cross_entropy(const CrossEntropyRows<float>&, Stream);
template void cross_entropy(const CrossEntropyRows<Bf16>&, Stream);

}  // namespace rmoe::kernels::cuda
