// The formulas of recurrent_stage in ATen. Shapes as in ops/recurrent_stage.h; in fp32 at least.
#pragma once

#include <array>
#include <string_view>

#include "rmoe/ops/torch.h"

namespace rmoe::reference {

using OptionalTensor = std::optional<Tensor>;

// -> h, and c of the lstm (an empty tensor for the others).
std::tuple<Tensor, Tensor> recurrent_stage(std::string_view cell, const Tensor& x, const OptionalTensor& h,
                                           const OptionalTensor& c, const OptionalTensor& projection,
                                           const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                                           const Tensor& b_hh);

// -> gradients of x, h, c, projection, w_ih, w_hh, b_ih, b_hh; empty tensors for what was not given. `grad_h`,
// `grad_c`: absent means zeros.
using RecurrentGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
RecurrentGradients recurrent_stage_backward(const OptionalTensor& grad_h, const OptionalTensor& grad_c,
                                            std::string_view cell, const Tensor& x, const OptionalTensor& h,
                                            const OptionalTensor& c, const OptionalTensor& projection,
                                            const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                                            const Tensor& b_hh);

}  // namespace rmoe::reference
