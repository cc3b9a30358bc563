// The kernels of a device other than the CPU, as the ops call them: pointers into its memory, sizes and a stream; free
// of torch and of the device's own headers. kernels/cuda/*.cu are CUDA's, in a library of their own (librmoe_cuda.so).
// Matrix products are the tensor library's, but those inside attention.
#pragma once

#include <cstdint>

#include "rmoe/kernels/cpu/attention.h"
#include "rmoe/kernels/cpu/bf16.h"
#include "rmoe/kernels/cpu/norm.h"

namespace rmoe::kernels {

using Stream = void*;  // cudaStream_t

// Gradients of a norm's weights are sums over rows: each stretch of rows has a partial sum of its own, and those are
// added in order, so that the result does not depend on how the device schedules them.
constexpr int64_t kNormStretch = 64;
constexpr int64_t norm_stretches(int64_t M) { return (M + kNormStretch - 1) / kNormStretch; }

// From logits [T, N]: probs = softmax; of each token the K likeliest experts, the lower id first among equals; their
// weights, probs or, renormalized, the softmax of their logits; and how often each expert was chosen.
struct Choice {
  const float* logits;  // [T, N]
  int64_t T, N, K;
  bool renormalize;
  int64_t* ids;     // [T, K]
  float* weights;   // [T, K]
  float* probs;     // [T, N]
  int64_t* counts;  // [N], zero at first
};
struct ChoiceGradients {
  const int64_t* ids;      // [T, K]
  const float* weights;    // [T, K]
  const float* probs;      // [T, N]
  const float* g_weights;  // [T, K] or null
  const float* g_probs;    // [T, N] or null
  const float* g_logits;   // [T, N] or null
  int64_t T, N, K;
  bool renormalize;
  float* d_logits;  // [T, N]
};

// What surrounds the matrix products of a recurrent cell. G: gates of the cell, 1 (rnn), 3 (gru), 4 (lstm).
enum class Cell { kRnn, kGru, kLstm };
struct CellStep {
  Cell cell;
  int64_t T, P;
  const float* in;      // [T, G P]: W_ih x + b_ih; rnn and lstm: all that goes into the gates
  const float* hidden;  // gru: [T, 3 P], W_hh h + b_hh, or [3 P], b_hh, without a state
  const float* h;       // [T, P] or null
  const float* c;       // lstm: [T, P] or null
  float* new_h;         // [T, P]
  float* new_c;         // lstm: [T, P]
};
struct CellGradients {
  CellStep step;        // without new_h and new_c
  const float* grad_h;  // [T, P] or null
  const float* grad_c;  // lstm: [T, P] or null
  float* d_gates;       // [T, G P], of `in`
  float* d_hidden;      // gru: [T, 3 P], of `hidden`
  float* d_h;           // gru: [T, P], what does not go through `hidden`; or null
  float* d_c;           // lstm: [T, P] or null
};

// Slots sorted by expert, stable; those without an expert come last.
struct SlotSort {
  const int64_t* ids;  // [slots]; an expert is 0 ... N-1
  int64_t slots, N;
  int64_t* slot_M;    // row -> slot
  int64_t* expert_M;  // row -> expert; N: none
  int64_t* row_M;     // slot -> row
  int32_t* end_N;     // rows of experts 0 ... n
  int32_t* counts;    // workspace: [sort_blocks(slots), N + 1]
};
constexpr int64_t kSortBlock = 256;
constexpr int64_t sort_blocks(int64_t slots) { return (slots + kSortBlock - 1) / kSortBlock; }

struct Drop {  // as kernels/cpu/dropout.h draws
  uint64_t key = 0;
  double probability = 0;
};

// Between an expert's products: before [M, F], or gated [M, 2F], the pre-activations -> inner [M, F].
template <class T>
struct Activation {
  const T* before;
  int64_t M, F;
  bool gated;
  Drop dropout;  // element (m, f) is number m F + f
  T* inner;
};
// d_inner [M, F], of the weighted inner activations -> d_before [M, F] or [M, 2F]. And per row <d_unweighted, inner>,
// the gradient of its weight, where d_inner = weight * d_unweighted is made here.
template <class T>
struct ActivationGradients {
  const T* before;
  const T* d_unweighted;  // [M, F]
  const float* weight_M;
  int64_t M, F;
  bool gated;
  Drop dropout;
  T* d_before;  // [M, F] or [M, 2F]
  T* inner;     // [M, F]
  float* d_weight_M;
};

// y_t = sum_k weights_tk rows[row_tk], over the slots whose row is of an expert.
template <class T>
struct Combination {
  const T* rows;          // [T K, D]
  const int64_t* row_TK;  // slot -> row
  const int64_t* expert_M;
  const float* weights;  // [T, K], or null: 1
  int64_t T_, K, N, D;
  T* y;  // [T, D]
};

// The rows of a piece of the logits: their losses and, in place, their gradients.
template <class T>
struct CrossEntropyRows {
  T* logits;                // [rows, V]; in: logits; out: d_logits, where `share` is given
  const int64_t* targets;   // [rows]
  int64_t rows, V, ignore;  // rows whose target is `ignore` have loss and gradient 0
  double z_loss;
  const float* share;  // scalar: what each counted token counts; null: no gradients
  float* losses;       // [rows]
  float* lse;          // [rows]: log-sum-exp
};

// ops/span_attention.h has the formula; sizes of at least 1.
constexpr int64_t kSpanMostChannels = 96;
struct SpanAttentionCall {
  int64_t B, H, M, S, C;         // C <= kSpanMostChannels
  HeadRows<const Bf16> q, k, v;  // of M, S + M and S + M positions
  const Bf16* key_pe;            // [S, C]
  Drop dropout;                  // weight l of query m of head h of sequence b is element ((b H + h) M + m) S + l
};
// Of `heads` heads, counted through all sequences.
struct SpanAttentionGradients {
  SpanAttentionCall call;
  int64_t first_head, heads;
  HeadRows<const Bf16> grad;
  const float *lse, *inner;  // [B, H, M]; inner: <grad, out> of each query
  HeadRows<Bf16> dq, dk, dv;
  Bf16* d_scores;  // [heads, M, S]: of the products of queries with keys and, the same ones, with key_pe
};

template <class T>
struct DeviceKernelsOf {
  void (*dropout)(T* out, const T* in, int64_t n, Drop drop, uint64_t first_index, Stream);
  void (*norm)(const NormForward<T>&, Stream);
  // partials: workspace, [2, norm_stretches(M), D].
  void (*norm_backward)(const NormBackward<T>&, float* partials, Stream);
  void (*activate)(const Activation<T>&, Stream);
  void (*activate_backward)(const ActivationGradients<T>&, Stream);
  void (*combine)(const Combination<T>&, Stream);
  void (*cross_entropy)(const CrossEntropyRows<T>&, Stream);
};

struct DeviceKernels {
  DeviceKernelsOf<float> fp32;
  DeviceKernelsOf<Bf16> bf16;
  void (*choose)(const Choice&, Stream);
  void (*choose_backward)(const ChoiceGradients&, Stream);
  void (*cell)(const CellStep&, Stream);
  void (*cell_backward)(const CellGradients&, Stream);
  void (*sort_slots)(const SlotSort&, Stream);
  // lse [B, H, M].
  void (*span_attention)(const SpanAttentionCall&, HeadRows<Bf16> out, float* lse, Stream);
  void (*span_attention_backward)(const SpanAttentionGradients&, Stream);

  template <class T>
  const DeviceKernelsOf<T>& of() const {
    if constexpr (std::is_same_v<T, float>) {
      return fp32;
    } else {
      return bf16;
    }
  }
};

}  // namespace rmoe::kernels
