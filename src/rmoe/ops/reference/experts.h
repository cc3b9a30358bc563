// The formulas of experts in ATen: every device and dtype, and the oracle of the tests.
#pragma once

#include <array>

#include "rmoe/ops/torch.h"

namespace rmoe::reference {

// -> y [T, D]; the pre-activations of the rows (used slots sorted by expert, then by slot), [T*K, F], with w3 [T*K,
// 2F]: those of w1, then those of w3. Rows beyond the used ones are unspecified. Without `keep` they are empty.
std::tuple<Tensor, Tensor> experts(const Tensor& x_TD, const Tensor& ids_TK, const Tensor& weights_TK,
                                   const Tensor& w1_NFD, const std::optional<Tensor>& b1_NF, const Tensor& w2_NDF,
                                   const std::optional<Tensor>& b2_ND, const std::optional<Tensor>& w3_NFD,
                                   double dropout_p, int64_t dropout_key, bool keep);

// -> gradients of x, weights, w1, b1, w2, b2, w3. needed: x; weights; all parameters. The others are undefined, and so
// is that of what is absent.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> experts_backward(
    const Tensor& grad_TD, const Tensor& before_MP, const Tensor& x_TD, const Tensor& ids_TK, const Tensor& weights_TK,
    const Tensor& w1_NFD, const std::optional<Tensor>& b1_NF, const Tensor& w2_NDF, const std::optional<Tensor>& b2_ND,
    const std::optional<Tensor>& w3_NFD, double dropout_p, int64_t dropout_key, std::array<bool, 3> needed);

}  // namespace rmoe::reference
