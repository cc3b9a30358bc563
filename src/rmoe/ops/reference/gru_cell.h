// The formulas of gru_cell in ATen: every device and dtype, and the oracle of the tests.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe::reference {

Tensor gru_cell(const Tensor& x_TP, const std::optional<Tensor>& state_TP, const Tensor& w_ih, const Tensor& w_hh,
                const Tensor& b_ih, const Tensor& b_hh);

// -> gradients of x, state, w_ih, w_hh, b_ih, b_hh (that of an absent state is as for a state of zeros).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gru_cell_backward(const Tensor& grad_TP, const Tensor& x_TP,
                                                                             const std::optional<Tensor>& state_TP,
                                                                             const Tensor& w_ih, const Tensor& w_hh,
                                                                             const Tensor& b_ih, const Tensor& b_hh);

}  // namespace rmoe::reference
