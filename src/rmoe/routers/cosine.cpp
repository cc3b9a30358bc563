// CosineMoE: logits_n = scale cos(f, w_n), the angle between the feature and one learned direction per expert, times a
// learned scale.
#include "rmoe/routers/parts.h"

namespace rmoe::routing {
namespace {

class CosineRouter : public Router {
 public:
  struct Options {
    double init_scale = 10;
    static constexpr auto fields() {
      return std::tuple{Field{"init_scale", &Options::init_scale, "the learned scale at the start", {.above = 0}}};
    }
  };

  CosineRouter(const Options& options, const RouterShape& s, const ParamScope& scope)
      : weight_NR_(scope.add(gate_name(s), {s.experts, s.feature_width}, matrix_init(s.feature_width, s.init_deviation),
                             {.uses = static_cast<double>(s.uses)})),
        scale_1_(scope.add("gate.scale", {1}, Init::constant(options.init_scale), {.matmul = false})) {}

  Tensor score(const RouterInput& in) const override {
    const Tensor& f_TR = in.feature_TR;
    return affine(direction(f_TR), direction(weight_NR_)) * scale_1_.to(f_TR.scalar_type());
  }
  std::optional<LinearGate> linear_gate(const RouterInput& in) const override {
    return LinearGate{direction(at_least_fp32(in.feature_TR)), direction(weight_NR_) * scale_1_};
  }

 private:
  Tensor weight_NR_, scale_1_;
};

}  // namespace

RMOE_REGISTER(RouterRegistry, "cosine", CosineRouter,
              "cosine of feature and expert, times a learned scale (CosineMoE)");

}  // namespace rmoe::routing
