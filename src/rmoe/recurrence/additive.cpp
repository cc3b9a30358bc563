// The additive stage of ZAYA1 ("exponential depth averaging", Zyphra 2025):
//   r_i = down_i(x_i) + scale_i * r_{i-1},   feature_i = MLP_i(RMSNorm_i(r_i))
// where scale_i is a vector [P] that starts at 1, as in its public code, and the MLP ends in a GELU: with a linear head
// behind two of its layers it is ZAYA1's three-layer router. The tensors carry that code's names.
#include "rmoe/ops/linear.h"
#include "rmoe/recurrence/state.h"
#include "rmoe/routing/router.h"

namespace rmoe::routing {
namespace {

constexpr double kEps = 1e-5;  // of the norm

class AdditiveStage : public Stage {
 public:
  struct Options {
    StateOptions state;
    int64_t mlp_layers = 2;
    double init_scale = 1;

    static constexpr auto fields() {
      using C = Options;
      return std::tuple{Field{"", &C::state, ""},
                        Field{"mlp_layers",
                              &C::mlp_layers,
                              "layers of the MLP after the norm; 0: the feature is the normalized state",
                              {.min = 0, .max = 100}},
                        Field{"init_scale", &C::init_scale, "start of each layer's learned scale of the state"}};
    }
  };

  AdditiveStage(const Options& options, const StageShape& s, const ParamScope&, const std::vector<ParamScope>& layers)
      : options_(options) {
    const int64_t P = options.state.width;
    const auto linear = [&](const ParamScope& scope, int64_t in) {
      return add_linear(scope, "weight", "bias", P, in, s.init_deviation);
    };
    for (const ParamScope& layer : layers) {
      const ParamScope scope = layer / "router";
      Layer& l = layers_.emplace_back();
      l.down = linear(scope / "down_proj", s.model_width);
      if (layers_.size() > 1) {
        l.scale_P = scope.add("router_states_scale", {P}, Init::constant(options.init_scale), {.matmul = false});
      }
      l.norm_P = scope.add("rmsnorm_eda.weight", {P}, Init::ones(), {.matmul = false});
      // Numbered as the public code's sequence of linear layers and GELUs.
      for (int64_t j = 0; j < options.mlp_layers; ++j) {
        l.mlp.push_back(linear(scope / ("router_mlp." + std::to_string(2 * j)), P));
      }
    }
  }

  int64_t feature_width() const override { return options_.state.width; }
  bool recurrent() const override { return true; }

  StageStep step(int64_t layer, const Tensor& x_TD, RouterCarry carry) const override {
    const Layer& l = layers_.at(layer);
    Tensor r_TP = l.down(at_least_fp32(x_TD));
    const auto dtype = r_TP.scalar_type();
    if (const Tensor before_TP = options_.state.arriving(carry.state_TP, layer); before_TP.defined()) {
      RMOE_CHECK(l.scale_P.defined(), "additive: the carry must be empty at the first MoE layer");
      r_TP = at::addcmul(r_TP, before_TP, l.scale_P.to(dtype));
    }
    Tensor feature_TP = at::rms_norm(r_TP, {r_TP.size(1)}, l.norm_P.to(dtype), kEps);
    for (const Linear& m : l.mlp) feature_TP = at::gelu(m(feature_TP));
    carry.state_TP = options_.state.leaving(r_TP);
    return {std::move(feature_TP), std::move(carry), std::move(r_TP)};
  }

 private:
  struct Layer {
    Linear down;     // [P, D]
    Tensor scale_P;  // undefined in the first layer, which nothing arrives at
    Tensor norm_P;
    std::vector<Linear> mlp;  // [P, P]
  };

  Options options_;
  std::vector<Layer> layers_;
};

}  // namespace

RMOE_REGISTER(StageRegistry, "additive", AdditiveStage,
              "r_i = down_i(x_i) + scale_i r_{i-1}, feature MLP_i(norm(r_i)) (ZAYA1, Zyphra 2025)");

}  // namespace rmoe::routing
