// What the heads are made of: linear maps under the names of checkpoints, and directions.
#pragma once

#include <string>

#include "rmoe/ops/linear.h"
#include "rmoe/routing/router.h"

namespace rmoe::routing {

// A layer of a torch.nn.Sequential: name.weight and name.bias.
inline Linear add_layer(const ParamScope& scope, const std::string& name, int64_t out, int64_t in, double deviation,
                        const ParamTraits& traits) {
  return add_linear(scope, name + ".weight", name + ".bias", out, in, deviation, traits);
}

// The name of a head's [N, R] matrix: the public layout calls the gate behind a stage weight2 and a plain one
// gate.weight.
inline std::string gate_name(const RouterShape& s) { return s.recurrent ? "weight2" : "gate.weight"; }

// The gate of SMoE, R -> N.
inline Linear add_gate(const RouterShape& s, const ParamScope& scope, bool bias, const ParamTraits& traits) {
  const char* bias_name = !bias ? "" : s.recurrent ? "bias2" : "gate.bias";
  return add_linear(scope, gate_name(s), bias_name, s.experts, s.feature_width, s.init_deviation, traits);
}

// A gate that nothing reads. The small-scale baselines keep one where a head replaces it, and the paper counts it.
inline void add_unused_gate(const RouterShape& s, const ParamScope& scope) {
  add_gate(s, scope, /*bias=*/true, {.active = 0, .uses = 0, .matmul = false, .trainable = false});
}

// x / |x| along the last dimension. Below norms of about 1e-3 it shrinks towards zero instead, so that the gradient
// stays finite (at most 1e4 times the incoming one).
inline Tensor direction(const Tensor& x) { return x * at::rsqrt(x.square().sum(-1, /*keepdim=*/true) + 1e-8); }

}  // namespace rmoe::routing
