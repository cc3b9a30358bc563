// A linear layer per expert on rows sorted by expert.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe {

// A linear layer per expert on rows sorted by expert: out[m] = x[m] W_e^T + b_e for the rows m of expert e.
// x_MI [M, I]; w_NOI [N, O, I]; b_NO [N, O] or undefined; counts_N rows per expert, summing to M. Weights are read in
// x's dtype. Returns [M, O]. Differentiable in x, w and b; an expert without rows gets a zero gradient.
Tensor grouped_linear(const Tensor& x_MI, const Tensor& w_NOI, const Tensor& b_NO,
                      const std::vector<int64_t>& counts_N);

}  // namespace rmoe
