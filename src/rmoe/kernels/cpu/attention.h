// Attention by tiles, forward and backward: over a fixed span before each token (the paper's small-scale models) and
// causal with rotary positions and grouped queries (llama).
#pragma once

#include <cstdint>

#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/kernels/cpu/linear.h"

namespace rmoe::kernels {

// One row of C contiguous elements for every sequence, head and position; the rows lie anywhere.
template <class T>
struct HeadRows {
  T* data = nullptr;
  int64_t sequence = 0, head = 0, position = 0;  // from one to the next, in elements
  T* operator()(int64_t b, int64_t h, int64_t i) const { return data + b * sequence + h * head + i * position; }
};

// ops/span_attention.h has the formula. Sizes of at least 1.
template <class T>
struct SpanAttention {
  int64_t B, H, M, S, C;
  HeadRows<const T> q, k, v;  // of M, S + M and S + M positions
  Weight<T> key_pe;           // [C, S]
  double dropout;             // in [0, 1)
  uint64_t dropout_key;       // weight l of query m of head h of sequence b is element ((b H + h) M + m) S + l
};

template <class T>
struct SpanAttentionKernels {
  // lse [B, H, M]: the natural logarithm of the sum of the exponentials of each query's scores.
  void (*forward)(const SpanAttention<T>&, HeadRows<T> out, float* lse);
  void (*backward)(const SpanAttention<T>&, HeadRows<const T> grad, HeadRows<const T> out, const float* lse,
                   HeadRows<T> dq, HeadRows<T> dk, HeadRows<T> dv, float* dkey_pe);
};

// ops/causal_attention.h has the formula. Sizes of at least 1.
template <class T>
struct CausalAttention {
  int64_t B, Sq, Sk, H, Hkv, C;  // Sk >= Sq, Hkv divides H
  HeadRows<const T> q, k, v;     // k and v of Hkv heads and Sk positions
  const float *cos, *sin;        // [Sq, C/2], or null: no rotation. Not null only if Sk = Sq.
};

template <class T>
struct CausalAttentionKernels {
  // lse [B, H, Sq], as above.
  void (*forward)(const CausalAttention<T>&, HeadRows<T> out, float* lse);
  void (*backward)(const CausalAttention<T>&, HeadRows<const T> grad, HeadRows<const T> out, const float* lse,
                   HeadRows<T> dq, HeadRows<T> dk, HeadRows<T> dv);
  // Turns rows of B sequences, H heads and S positions: channels c and c + C/2 of the position i by the angle whose
  // cosine and sine stand at [i, c]; backwards if `inverse`.
  void (*rotate)(HeadRows<T> out, HeadRows<const T> x, const float* cos, const float* sin, int64_t B, int64_t S,
                 int64_t H, int64_t C, bool inverse);
};

RMOE_KERNELS(span_attention, SpanAttentionKernels)
RMOE_KERNELS(causal_attention, CausalAttentionKernels)

}  // namespace rmoe::kernels
