// The recurrent stage of a router, h = Cell(Proj(x), h_{i-1}) (reference, section 1), over tiles of tokens: projection,
// gates and cell of a tile stay in the cache, and backward computes them again instead of reading them.
#pragma once

#include <cstdint>

#include "rmoe/kernels/cpu/isa.h"

namespace rmoe::kernels {

// rnn: one gate n; gru: r, z, n; lstm: i, f, g, o. The packed weights hold the gates one below the other in this order.
enum class Cell { kRnn, kGru, kLstm };
constexpr int64_t gate_count(Cell cell) { return cell == Cell::kRnn ? 1 : cell == Cell::kGru ? 3 : 4; }

// G gates; the cell reads I columns: P with a projection, D without.
struct RecurrentStage {
  Cell cell = Cell::kGru;
  int64_t T = 0, D = 0, P = 0;
  const float* x = nullptr;  // [T, D], one of the two is null
  const Bf16* narrow_x = nullptr;
  const float* projection = nullptr;             // [P, D], null: none
  const float* state = nullptr;                  // [T, P], null: zeros, here and below
  const float* cell_state = nullptr;             // [T, P], of the lstm
  const float *w_ih = nullptr, *w_hh = nullptr;  // [GP, I], [GP, P]
  const float *b_ih = nullptr, *b_hh = nullptr;  // [GP]

  int64_t gates() const { return gate_count(cell); }
  int64_t input_width() const { return projection ? P : D; }
};

struct RecurrentStageGradients {
  const float *state = nullptr, *cell_state = nullptr;  // [T, P], of what forward returned; null: zeros
  float* d_x = nullptr;                                 // [T, D] in x's type, one of the two is null
  Bf16* d_narrow_x = nullptr;
  float* d_projection = nullptr;                      // [P, D]; null where there is none
  float *d_state = nullptr, *d_cell_state = nullptr;  // [T, P]; null where there is none
  float *d_w_ih = nullptr, *d_w_hh = nullptr;         // [GP, I], [GP, P]
  float *d_b_ih = nullptr, *d_b_hh = nullptr;         // [GP]
};

// T is what the products are computed with (per_isa/fp32_product.h); everything is as exact as fp32.
template <class T>
struct RecurrentStageKernels {
  // -> h [T, P] and, for the lstm, c [T, P].
  void (*forward)(const RecurrentStage& stage, float* h, float* c);
  void (*backward)(const RecurrentStage& stage, const RecurrentStageGradients& gradients);
};
RMOE_KERNELS(recurrent_stage, RecurrentStageKernels)

}  // namespace rmoe::kernels
