// The gating residual of MoE++ (Jin et al. 2024): logits'_i = logits_i + W_i logits'_{i-1}, with the previous MoE
// layer's logits as its own residual left them. W_i [N, N] has no bias and is called gate_map as in the public code; it
// starts at zero, and the first MoE layer has none.
#include "rmoe/base/error.h"
#include "rmoe/ops/affine.h"
#include "rmoe/routing/router.h"

namespace rmoe::routing {
namespace {

class LearnedResidualTransform : public Transform {
 public:
  LearnedResidualTransform(const RouterShape& s, const ParamScope& scope) {
    if (s.layer > 0) weight_NN_ = scope.add("gate_map.weight", {s.experts, s.experts}, Init::zeros());
  }

  Step logits(const Tensor& logits_TN, const Tensor&, const Tensor& carried_TN, const RouteContext&) const override {
    if (!carried_TN.defined()) return {.logits_TN = logits_TN, .carried_TN = logits_TN};
    RMOE_CHECK(weight_NN_.defined(), "learned_residual: the carry must be empty at the first MoE layer");
    const Tensor sum_TN = logits_TN + affine(carried_TN, weight_NN_);
    return {.logits_TN = sum_TN, .carried_TN = sum_TN};
  }

  void check(const Combination& c) const override {
    RMOE_CHECK(c.reads_feature, "transform 'learned_residual' maps what the previous layer's head computed from its ",
               "feature, but router '", c.router, "' reads none");
  }

 private:
  Tensor weight_NN_;  // undefined in the first MoE layer
};

}  // namespace

RMOE_REGISTER(TransformRegistry, "learned_residual", LearnedResidualTransform,
              "logits_i + W_i times the previous layer's final ones (MoE++, Jin et al. 2024)");

}  // namespace rmoe::routing
