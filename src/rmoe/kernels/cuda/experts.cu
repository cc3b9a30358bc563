// Between and behind the experts' grouped products: activations, dropout, the weighted sum of a token's answers.
#include "rmoe/kernels/cuda/kernels.h"

namespace rmoe::kernels::cuda {
namespace {

template <class T>
__global__ void dropout_kernel(T* out, const T* in, int64_t n, DropStream drop, uint64_t first_index) {
  RMOE_FOR_EACH(i, n) out[i] = from_float<T>(to_float(in[i]) * drop.factor(first_index + static_cast<uint64_t>(i)));
}

template <class T>
__global__ void activate_kernel(Activation<T> p, DropStream drop) {
  RMOE_FOR_EACH(i, p.M * p.F) {
    const int64_t m = i / p.F, f = i % p.F;
    const T* before = p.before + m * (p.gated ? 2 * p.F : p.F) + f;
    const float g = to_float(before[0]);
    // nan stays nan.
    const float value = p.gated ? g * sigmoid(g) * to_float(before[p.F]) : g <= 0 ? 0 : g;
    p.inner[i] = from_float<T>(value * drop.factor(static_cast<uint64_t>(i)));
  }
}

// A block for each row.
template <class T>
__global__ void activate_backward_kernel(ActivationGradients<T> p, DropStream drop) {
  const int64_t m = blockIdx.x, P = p.gated ? 2 * p.F : p.F;
  const float weight = p.weight_M[m];
  float along = 0;
  for (int64_t f = threadIdx.x; f < p.F; f += kThreads) {
    const T* before = p.before + m * P + f;
    T* d_before = p.d_before + m * P + f;
    const float factor = drop.factor(static_cast<uint64_t>(m * p.F + f)), g = to_float(before[0]);
    const float d = to_float(p.d_unweighted[m * p.F + f]), d_value = d * weight * factor;
    float value;
    if (p.gated) {
      const float s = sigmoid(g), up = to_float(before[p.F]);
      value = g * s * up;
      d_before[0] = from_float<T>(d_value * up * s * (1 + g * (1 - s)));
      d_before[p.F] = from_float<T>(d_value * g * s);
    } else {
      value = g <= 0 ? 0 : g;
      d_before[0] = from_float<T>(g > 0 ? d_value : 0);
    }
    const T inner = from_float<T>(value * factor);
    p.inner[m * p.F + f] = inner;
    along += d * to_float(inner);
  }
  along = block_sum(along);
  if (threadIdx.x == 0) p.d_weight_M[m] = along;
}

template <class T>
__global__ void combine_kernel(Combination<T> p) {
  RMOE_FOR_EACH(i, p.T_ * p.D) {
    const int64_t t = i / p.D, d = i % p.D;
    float sum = 0;
    for (int64_t k = 0; k < p.K; ++k) {
      const int64_t row = p.row_TK[t * p.K + k];
      if (p.expert_M[row] >= p.N) continue;
      sum += (p.weights ? p.weights[t * p.K + k] : 1) * to_float(p.rows[row * p.D + d]);
    }
    p.y[i] = from_float<T>(sum);
  }
}

}  // namespace

template <class T>
void dropout(T* out, const T* in, int64_t n, Drop drop, uint64_t first_index, Stream stream) {
  if (n > 0)
    RMOE_LAUNCH(dropout_kernel<T>, blocks_for(n), kThreads, stream, out, in, n, DropStream::of(drop), first_index);
}

template <class T>
void activate(const Activation<T>& p, Stream stream) {
  const int64_t n = p.M * p.F;
  if (n > 0) RMOE_LAUNCH(activate_kernel<T>, blocks_for(n), kThreads, stream, p, DropStream::of(p.dropout));
}

template <class T>
void activate_backward(const ActivationGradients<T>& p, Stream stream) {
  if (p.M > 0) RMOE_LAUNCH(activate_backward_kernel<T>, p.M, kThreads, stream, p, DropStream::of(p.dropout));
}

template <class T>
void combine(const Combination<T>& p, Stream stream) {
  const int64_t n = p.T_ * p.D;
  if (n > 0) RMOE_LAUNCH(combine_kernel<T>, blocks_for(n), kThreads, stream, p);
}

#define RMOE_INSTANTIATE(T)                                               \
  template void dropout(T*, const T*, int64_t, Drop, uint64_t, Stream);   \
  template void activate(const Activation<T>&, Stream);                   \
  template void activate_backward(const ActivationGradients<T>&, Stream); \
  template void combine(const Combination<T>&, Stream);
RMOE_INSTANTIATE(float)
RMOE_INSTANTIATE(Bf16)
#undef RMOE_INSTANTIATE

}  // namespace rmoe::kernels::cuda
