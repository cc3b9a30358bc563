// The expert feed-forward networks of one MoE layer.
//   relu:   E(x) = W2 dropout(relu(W1 x + b1)) + b2           (reference, section 2)
//   swiglu: E(x) = W2 (silu(W1 x) * W3 x)                     (reference, section 5)
// and those that compute nothing (MoE++, Jin et al. 2024): null E(x) = 0, copy E(x) = x. Ids count the computing
// experts first, then the null ones, then the copies.
#pragma once

#include "rmoe/ops/experts.h"
#include "rmoe/ops/param.h"
#include "rmoe/routing/routing.h"

namespace rmoe::nn {

enum class ExpertKind { kRelu, kSwiglu };

struct ExpertsShape {
  ExpertKind kind;
  int64_t experts, null_experts, copy_experts, top_k, model_width, expert_width;
  double init_deviation;
  double dropout;  // relu kind only
};

class Experts {
 public:
  // Parameters experts.E.{w1,w2,w3}.{weight,bias} under `scope`.
  Experts(const ExpertsShape& shape, const ParamScope& scope);

  // y_t = sum_k weights_tk E_{ids_tk}(x_t), [T, D] in x's dtype. Differentiable in x, the weights and the parameters.
  Tensor forward(const Tensor& x_TD, const routing::Routing& routing, bool training, DropoutKey key) const;

  // The norm of every expert's answer to every token, ||E_n(x_t)||, [T, N] in fp32 or fp64, without dropout and outside
  // autograd. It costs what N slots per token cost.
  Tensor response_norms(const Tensor& x_TD) const;

 private:
  ExpertsShape shape_;
  ExpertWeights parameters_;
};

}  // namespace rmoe::nn
