// The feed-forward networks of a layer's experts on the tokens routed to them, and their gradients.
//   plain: E(x) = W2 dropout(relu(W1 x + b1)) + b2          gated: E(x) = W2 dropout(silu(W1 x + b1) * W3 x) + b2
//   y_t = sum_k weights_tk E_{ids_tk}(x_t)
// T tokens, K slots per token, N experts, D model width, F expert width; M rows: the slots that go to an expert, those
// of one expert together, by rising slot. P: pre-activations of a row, F or, gated, 2F (those of W1, then those of W3).
#pragma once

#include <cstdint>
#include <vector>

#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/kernels/cpu/linear.h"

namespace rmoe::kernels {

// Rows [begin, end) of one expert.
struct RowBlock {
  int64_t expert, begin, end;
};

// Which row is which slot, as kernels read it.
struct RoutedRows {
  int64_t tokens, top_k, experts, rows;  // T, K, N, M
  const int64_t* slots_M;                // row -> slot t * K + k
  const int64_t* rows_TK;                // slot -> row, -1: unused
};

// Slots sorted by expert.
class SortedSlots {
 public:
  // ids [T, K]; slots whose id is not in [0, experts) are left out.
  SortedSlots(const int64_t* ids, int64_t tokens, int64_t top_k, int64_t experts);

  RoutedRows rows() const;
  // [N + 1]: expert n has rows [first()[n], first()[n + 1]).
  const std::vector<int64_t>& first() const { return first_; }
  int64_t count(int64_t expert) const { return first_[expert + 1] - first_[expert]; }
  // The rows of every expert in blocks of about equal length, at most `most`, longest first. Experts without rows have
  // none.
  std::vector<RowBlock> blocks(int64_t most) const;

 private:
  int64_t tokens_, top_k_;
  std::vector<int64_t> first_, slots_, rows_;
};

// The weights of all experts; w1, w2 and w3 are stored alike.
template <class T>
struct ExpertWeights {
  int64_t D, F;
  Weight<T> w1, w2, w3;  // [N, F, D], [N, D, F], [N, F, D]; w3 of nulls: plain
  const float *b1, *b2;  // [N, F], [N, D] or null
  double dropout;        // probability; element (row, f) is number row * F + f of the key's stream
  uint64_t dropout_key;

  bool gated() const { return w3.master || w3.narrow; }
  int64_t P() const { return gated() ? 2 * F : F; }
};

template <class T>
struct ExpertsForward {
  RoutedRows routed;
  ExpertWeights<T> experts;
  const RowBlock* blocks;  // every row in exactly one
  int64_t block_count;
  const T* x;            // [T, D]
  const float* weights;  // [T, K]
  T* before;             // [M, P], the pre-activations; null: not kept
  T* outputs;            // [M, D], workspace: the answers, weighted
  T* y;                  // [T, D]
};

// One expert whose rows more than one task shares.
struct SplitExpert {
  int64_t expert, begin, end;
  int64_t offset;  // of its rows in the workspace
};

template <class T>
struct ExpertsBackward {
  RoutedRows routed;
  ExpertWeights<T> experts;  // of masters
  const RowBlock* whole;     // experts that one task does, those without rows included
  int64_t whole_count;
  const SplitExpert* split;  // the others
  int64_t split_count;
  const RowBlock* split_blocks;  // and their rows
  int64_t split_block_count;
  const T* x;                 // [T, D]
  const float* weights;       // [T, K]
  const T* before;            // [M, P]
  const T* dy;                // [T, D]
  T* d_inputs;                // [M, D], workspace; null with dx
  T* d_before;                // [rows of split experts, before_stride(P)], workspace
  T* inner;                   // [rows of split experts, F], workspace
  T* dx;                      // [T, D] or null
  float* d_weights;           // [T, K]
  float *d_w1, *d_w2, *d_w3;  // as the weights; d_w1 of null: none of these, nor of the biases
  float *d_b1, *d_b2;         // null with the bias
};

template <class T>
struct ExpertsKernels {
  // Rows of d_before lie so far apart.
  int64_t (*before_stride)(int64_t P);
  void (*forward)(const ExpertsForward<T>&);
  // Sums over an expert's rows run in one order, whatever is split.
  void (*backward)(const ExpertsBackward<T>&);
};
RMOE_PRODUCT_KERNELS(experts, ExpertsKernels)

}  // namespace rmoe::kernels
