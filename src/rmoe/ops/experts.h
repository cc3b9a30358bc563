// The experts of a layer as one operator.
#pragma once

#include "rmoe/ops/dropout.h"
#include "rmoe/ops/torch.h"

namespace rmoe {

// The parameters of N experts of width F. Undefined: b1, b2 absent; w3 absent: the experts are not gated.
struct ExpertWeights {
  Tensor w1_NFD, b1_NF, w2_NDF, b2_ND, w3_NFD;
};

// y_t = sum_k weights_tk E_{ids_tk}(x_t) with
//   E(x) = W2 dropout(relu(W1 x + b1)) + b2              (reference, section 2)
//   E(x) = W2 dropout(silu(W1 x + b1) * W3 x) + b2       where there is a W3 (reference, section 5)
// x_TD; ids_TK int64: slots with an id outside [0, N) are left out; weights_TK. Returns [T, D] in x's dtype. Parameters
// are read in x's dtype; fp32 masters may stay as they are, and their gradients are then summed in fp32. Dropout draws
// element (row, f) as number row * F + f of the key's stream, rows being the used slots sorted by expert, then by slot.
// Differentiable in x, the weights and the parameters; an expert that no slot names gets zeros. Saves the
// pre-activations, nothing else of the size of its rows.
Tensor experts(const Tensor& x_TD, const Tensor& ids_TK, const Tensor& weights_TK, const ExpertWeights& parameters,
               double dropout_p = 0, DropoutKey key = {});

}  // namespace rmoe
