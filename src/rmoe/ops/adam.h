// The update of Adam and AdamW over all parameters at once.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe {

// One parameter: its value and moments change, its gradient does not. All of one shape, dtype and device; only the
// gradient need not be contiguous.
struct AdamParam {
  Tensor value, grad, exp_avg, exp_avg_sq;
  bool decays = true;
};

struct AdamOptions {
  bool decoupled = true;  // AdamW; false: Adam, weight decay as part of the gradient
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0;
  double grad_scale = 1;  // every gradient counts as this much of itself (clipping)
  // Known to the device alone, fp32 scalars: what gradients are divided by, in place of grad_scale; and where 1, that
  // nothing changes. Undefined: neither.
  Tensor grad_divisor = {}, skip = {};
};

// The 2-norm of all gradients together, an fp64 scalar on their device. Summed in fp64 on a CPU with kernels, and by
// at::_foreach_norm elsewhere.
Tensor gradient_norm(const std::vector<Tensor>& grads);

// Update number `step` (from 1), the formula of torch.optim.Adam and AdamW with bias correction. fp32 on a CPU with
// kernels takes one pass over everything, the rest at::_fused_adamw_. Same bits for any number of threads.
void adam_step(const std::vector<AdamParam>& params, const AdamOptions& options, int64_t step);

}  // namespace rmoe
