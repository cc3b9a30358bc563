// From the logits of a router's head to its choice, and back: a warp for each token.
#include "rmoe/kernels/cuda/kernels.h"

namespace rmoe::kernels::cuda {
namespace {

constexpr int kTokens = kThreads / kWarp;  // of a block

// The token of this warp; all warps of a block run on, those behind the last token on that one, without writing.
struct Token {
  int64_t t;
  bool own;
};
__device__ inline Token token(int64_t T) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kTokens + threadIdx.x / kWarp;
  return {t < T ? t : T - 1, t < T};
}

__global__ void choose_kernel(Choice p) {
  const auto [t, own] = token(p.T);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const float* logits = p.logits + t * p.N;
  float* probs = p.probs + t * p.N;
  float largest = -INFINITY;
  for (int64_t n = lane; n < p.N; n += kWarp) largest = fmaxf(largest, logits[n]);
  largest = warp_max(largest);
  float sum = 0;
  for (int64_t n = lane; n < p.N; n += kWarp) sum += expf(logits[n] - largest);
  sum = warp_sum(sum);
  for (int64_t n = lane; n < p.N; n += kWarp) {
    if (own) probs[n] = expf(logits[n] - largest) / sum;
  }
  // One after the other, each the best of those behind the last.
  float last = INFINITY;
  int64_t last_id = -1;
  for (int64_t k = 0; k < p.K; ++k) {
    float best = -INFINITY;
    int64_t best_id = p.N;
    for (int64_t n = lane; n < p.N; n += kWarp) {
      const float value = expf(logits[n] - largest) / sum;
      const bool left = value < last || (value == last && n > last_id);
      if (left && value > best) best = value, best_id = n;
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, best, offset);
      const int64_t other_id = __shfl_xor_sync(0xffffffffu, best_id, offset);
      if (other > best || (other == best && other_id < best_id)) best = other, best_id = other_id;
    }
    // Logits that are not finite have no order: any id will do, as long as it is one.
    last = best, last_id = best_id < p.N ? best_id : 0;
    if (!own || lane != 0) continue;
    p.ids[t * p.K + k] = last_id;
    p.weights[t * p.K + k] = best;
    atomicAdd(reinterpret_cast<unsigned long long*>(p.counts + last_id), 1ull);
  }
  if (!p.renormalize || !own || lane != 0) return;
  const int64_t* ids = p.ids + t * p.K;
  float* weights = p.weights + t * p.K;
  float total = 0;
  for (int64_t k = 0; k < p.K; ++k) total += weights[k] = expf(logits[ids[k]] - logits[ids[0]]);
  for (int64_t k = 0; k < p.K; ++k) weights[k] /= total;
}

__global__ void choose_backward_kernel(ChoiceGradients p) {
  const auto [t, own] = token(p.T);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const float *probs = p.probs + t * p.N, *weights = p.weights + t * p.K;
  const float *g_weights = p.g_weights ? p.g_weights + t * p.K : nullptr,
              *g_probs = p.g_probs ? p.g_probs + t * p.N : nullptr;
  const int64_t* ids = p.ids + t * p.K;
  float chosen_mean = 0;
  if (g_weights && p.renormalize) {
    for (int64_t k = 0; k < p.K; ++k) chosen_mean += weights[k] * g_weights[k];
  }
  // Of the probability of expert n.
  const auto of_prob = [&](int64_t n) {
    float g = g_probs ? g_probs[n] : 0;
    if (g_weights && !p.renormalize) {
      for (int64_t k = 0; k < p.K; ++k) g += ids[k] == n ? g_weights[k] : 0;
    }
    return g;
  };
  float mean = 0;
  for (int64_t n = lane; n < p.N; n += kWarp) mean += probs[n] * of_prob(n);
  mean = warp_sum(mean);
  for (int64_t n = lane; n < p.N; n += kWarp) {
    float d = probs[n] * (of_prob(n) - mean);
    if (p.g_logits) d += p.g_logits[t * p.N + n];
    if (g_weights && p.renormalize) {
      for (int64_t k = 0; k < p.K; ++k) d += ids[k] == n ? weights[k] * (g_weights[k] - chosen_mean) : 0;
    }
    if (own) p.d_logits[t * p.N + n] = d;
  }
}

}  // namespace

void choose(const Choice& p, Stream stream) {
  if (p.T > 0) RMOE_LAUNCH(choose_kernel, (p.T + kTokens - 1) / kTokens, kThreads, stream, p);
}

void choose_backward(const ChoiceGradients& p, Stream stream) {
  if (p.T > 0) RMOE_LAUNCH(choose_backward_kernel, (p.T + kTokens - 1) / kTokens, kThreads, stream, p);
}

}  // namespace rmoe::kernels::cuda
