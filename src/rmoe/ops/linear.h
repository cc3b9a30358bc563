// A linear layer as a part: its parameters, declared where it is made, and its product.
#pragma once

#include "rmoe/ops/affine.h"
#include "rmoe/ops/param.h"

namespace rmoe {

// x W^T + b.
struct Linear {
  Tensor weight_OI, bias_O;  // no bias: undefined
  Tensor operator()(const Tensor& x) const { return affine(x, weight_OI, bias_O); }
};

// Parameters `weight` [out, in] and `bias` [out] below `scope`. An empty name: no bias.
inline Linear add_linear(const ParamScope& scope, const std::string& weight, const std::string& bias, int64_t out,
                         int64_t in, double deviation, const ParamTraits& traits = {}) {
  Linear map{.weight_OI = scope.add(weight, {out, in}, matrix_init(in, deviation), traits), .bias_O = {}};
  if (!bias.empty()) map.bias_O = scope.add(bias, {out}, bias_init(in, deviation), traits);
  return map;
}

}  // namespace rmoe
