// The formula of ops/linear_cross_entropy.h in ATen, in pieces of bounded size.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe::reference {

// loss and losses_T of linear_cross_entropy.
std::tuple<Tensor, Tensor> linear_cross_entropy(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b,
                                                const Tensor& targets, int64_t ignore_index, double z_loss,
                                                double scale);
// And dx, dw, db (empty without b) of the loss.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_gradients(const Tensor& x, const Tensor& w,
                                                                                  const std::optional<Tensor>& b,
                                                                                  const Tensor& targets,
                                                                                  int64_t ignore_index, double z_loss,
                                                                                  double scale);

}  // namespace rmoe::reference
