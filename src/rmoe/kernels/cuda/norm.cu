// RMSNorm and LayerNorm, a block for each row; gradients of the weights from partial sums over stretches of rows.
#include "rmoe/kernels/cuda/kernels.h"

namespace rmoe::kernels::cuda {
namespace {

template <class T>
__global__ void forward(NormForward<T> p, DropStream drop) {
  const int64_t row = blockIdx.x, at = row * p.D;
  const auto value = [&](int64_t d) {
    float v = to_float(p.x[at + d]);
    if (p.branch) {
      // Rounded as the tensors between the steps would be.
      v = to_float(from_float<T>(v + to_float(from_float<T>(to_float(p.branch[at + d]) * drop.factor(at + d)))));
    }
    return v;
  };
  float sum = 0;
  for (int64_t d = threadIdx.x; d < p.D; d += kThreads) {
    const float v = value(d);
    if (p.sum) p.sum[at + d] = from_float<T>(v);
    sum += v;
  }
  const float mean = p.bias ? block_sum(sum) / static_cast<float>(p.D) : 0;
  float squares = 0;
  for (int64_t d = threadIdx.x; d < p.D; d += kThreads) {
    const float v = (p.sum ? to_float(p.sum[at + d]) : to_float(p.x[at + d])) - mean;
    squares += v * v;
  }
  const float rstd = rsqrtf(block_sum(squares) / static_cast<float>(p.D) + p.eps);
  for (int64_t d = threadIdx.x; d < p.D; d += kThreads) {
    const float v = (p.sum ? to_float(p.sum[at + d]) : to_float(p.x[at + d])) - mean;
    p.normed[at + d] = from_float<T>(v * rstd * p.weight[d] + (p.bias ? p.bias[d] : 0));
  }
  if (threadIdx.x != 0) return;
  p.rstd[row] = rstd;
  if (p.mean) p.mean[row] = mean;
}

template <class T>
__global__ void backward_rows(NormBackward<T> p, DropStream drop) {
  const int64_t row = blockIdx.x, at = row * p.D;
  const float mean = p.mean ? p.mean[row] : 0, rstd = p.rstd[row];
  float along = 0, total = 0;
  for (int64_t d = threadIdx.x; d < p.D; d += kThreads) {
    const float weighted = to_float(p.grad[at + d]) * p.weight[d];
    along += weighted * (to_float(p.sum[at + d]) - mean) * rstd;
    total += weighted;
  }
  along = block_sum(along) / static_cast<float>(p.D);
  total = p.mean ? block_sum(total) / static_cast<float>(p.D) : 0;
  for (int64_t d = threadIdx.x; d < p.D; d += kThreads) {
    const float normed = (to_float(p.sum[at + d]) - mean) * rstd;
    float dx = (to_float(p.grad[at + d]) * p.weight[d] - normed * along - total) * rstd;
    if (p.grad_sum) dx += to_float(p.grad_sum[at + d]);
    const T rounded = from_float<T>(dx);
    p.dx[at + d] = rounded;
    if (p.dbranch) p.dbranch[at + d] = from_float<T>(to_float(rounded) * drop.factor(at + d));
  }
}

// Column d of the stretch's rows, summed.
template <class T>
__global__ void sum_stretches(NormBackward<T> p, float* dw, float* db) {
  const int64_t begin = blockIdx.x * kNormStretch, end = min(begin + kNormStretch, p.M);
  for (int64_t d = threadIdx.x; d < p.D; d += kThreads) {
    float of_weight = 0, of_bias = 0;
    for (int64_t row = begin; row < end; ++row) {
      const float g = to_float(p.grad[row * p.D + d]), mean = p.mean ? p.mean[row] : 0;
      of_weight += g * (to_float(p.sum[row * p.D + d]) - mean) * p.rstd[row];
      of_bias += g;
    }
    dw[blockIdx.x * p.D + d] = of_weight;
    db[blockIdx.x * p.D + d] = of_bias;
  }
}

// out[d] = sum over stretches of partials[stretch][d], in sums of 32.
__global__ void add_stretches(float* out, const float* partials, int64_t stretches, int64_t D) {
  RMOE_FOR_EACH(d, D) {
    float total = 0;
    for (int64_t s = 0; s < stretches; s += 32) {
      float part = 0;
      for (int64_t i = s; i < min(s + 32, stretches); ++i) part += partials[i * D + d];
      total += part;
    }
    out[d] = total;
  }
}

}  // namespace

template <class T>
void norm(const NormForward<T>& p, Stream stream) {
  const DropStream drop = DropStream::of(Drop{p.dropout.key, p.dropout.probability});
  if (p.M * p.D > 0) RMOE_LAUNCH(forward<T>, p.M, kThreads, stream, p, drop);
}

template <class T>
void norm_backward(const NormBackward<T>& p, float* partials, Stream stream) {
  if (p.D == 0) return;
  const int64_t stretches = norm_stretches(p.M);
  float* of_bias = partials + stretches * p.D;
  if (p.M > 0) {
    const DropStream drop = DropStream::of(Drop{p.dropout.key, p.dropout.probability});
    RMOE_LAUNCH(backward_rows<T>, p.M, kThreads, stream, p, drop);
    RMOE_LAUNCH(sum_stretches<T>, stretches, kThreads, stream, p, partials, of_bias);
  }
  RMOE_LAUNCH(add_stretches, blocks_for(p.D), kThreads, stream, p.dw, partials, stretches, p.D);
  if (p.db) RMOE_LAUNCH(add_stretches, blocks_for(p.D), kThreads, stream, p.db, of_bias, stretches, p.D);
}

template void norm(const NormForward<float>&, Stream);
template void norm(const NormForward<Bf16>&, Stream);
template void norm_backward(const NormBackward<float>&, float*, Stream);
template void norm_backward(const NormBackward<Bf16>&, float*, Stream);

}  // namespace rmoe::kernels::cuda
