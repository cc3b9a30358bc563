// The recurrent stage of a router in one op (reference, section 1).
#pragma once

#include <string>

#include "rmoe/ops/torch.h"

namespace rmoe {

// The parameters of a stage of width P, fp32 (bf16 is taken, too), gates one below the other as torch.nn's cells have
// them: rnn one, gru 3 (r, z, n), lstm 4 (i, f, g, o).
struct RecurrentWeights {
  Tensor projection_PD = {};  // undefined: the cell reads x itself
  Tensor ih, hh;              // [GP, P], or [GP, D] without a projection; [GP, P]
  Tensor b_ih, b_hh;          // [GP]
};

struct RecurrentState {
  Tensor h_TP = {};
  Tensor c_TP = {};  // of the lstm
};

// One step of the layer recurrence, (h_i, c_i) = Cell(Proj_i(x_i), (h_{i-1}, c_{i-1})), with the equations of
// torch.nn's cells; `cell` is "rnn", "gru" or "lstm". x_TD in any float type is read as it is; all else is computed in
// fp32, or fp64 for an fp64 x. What is undefined in `before` means zero. Differentiable in all; backward computes
// projection and gates again.
RecurrentState recurrent_stage(const std::string& cell, const Tensor& x_TD, const RecurrentState& before,
                               const RecurrentWeights& weights);

}  // namespace rmoe
