// The cell of the layer recurrence (reference, section 1.2).
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe {

// One step of the layer recurrence, h_i = GRU(x'_i, h_{i-1}): every token advances its own state by one layer
// (reference, section 1.2; the equations of torch.nn.GRUCell).
// x_TP: Proj_i(x_i), width I. state_TP: h_{i-1}, undefined means zero. w_ih [3P, I], w_hh [3P, P], biases [3P]; gate
// order reset, update, candidate. Returns h_i [T, P]. Differentiable in all arguments; backward recomputes the gates.
Tensor gru_cell(const Tensor& x_TP, const Tensor& state_TP, const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                const Tensor& b_hh);

}  // namespace rmoe
