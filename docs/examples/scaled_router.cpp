// A head that reads the direction of the feature only: logits = scale * W (f / rms(f)). How sharp the gate is does not
// depend on the norm of f, but on one learned number.
#include "rmoe/ops/affine.h"
#include "rmoe/routing/router.h"

namespace rmoe::routing {
namespace {

constexpr double kEps = 1e-6;  // keeps f / rms(f) finite where f is zero

class ScaledRouter : public Router {
 public:
  struct Options {
    double init_scale = 1.0;
    bool learned = true;

    static constexpr auto fields() {
      using C = Options;
      return std::tuple{Field{"init_scale", &C::init_scale, "the scale at the start", {.above = 0}},
                        Field{"learned", &C::learned, "train the scale; otherwise it keeps its start value"}};
    }
  };

  ScaledRouter(const Options& options, const RouterShape& s, const ParamScope& scope)
      : constant_(options.init_scale),
        weight_NR_(
            scope.add("gate.weight", {s.experts, s.feature_width}, matrix_init(s.feature_width, s.init_deviation))) {
    // Not a matrix of the forward pass, so it does not count in the FLOPs.
    if (options.learned) scale_1_ = scope.add("gate.scale", {1}, Init::constant(constant_), {.matmul = false});
  }

  Tensor score(const RouterInput& in) const override {
    const Tensor& f_TR = in.feature_TR;
    const Tensor logits_TN = affine(at::rms_norm(f_TR, {f_TR.size(-1)}, {}, kEps), weight_NR_);
    // Parameters are read in the feature's dtype: fp32 as a rule, fp64 in tests of gradients.
    return scale_1_.defined() ? logits_TN * scale_1_.to(f_TR.scalar_type()) : logits_TN * constant_;
  }

 private:
  double constant_;
  Tensor weight_NR_;
  Tensor scale_1_;  // undefined where the scale is constant
};

}  // namespace

RMOE_REGISTER(RouterRegistry, "scaled", ScaledRouter, "linear on the feature's direction, times a learned scale");

}  // namespace rmoe::routing
