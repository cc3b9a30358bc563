// A linear head that stays as it was drawn: RandomMoE, and with a selection whose k grows SMoE-Dropout (Chen et al.
// 2023). The gradient passes through it to the feature.
#include "rmoe/routers/parts.h"

namespace rmoe::routing {
namespace {

class RandomRouter : public Router {
 public:
  struct Options {
    bool bias = false;
    static constexpr auto fields() { return std::tuple{Field{"bias", &Options::bias, "add a bias to the logits"}}; }
  };

  RandomRouter(const Options& options, const RouterShape& s, const ParamScope& scope)
      : gate_(add_gate(s, scope, options.bias, {.uses = static_cast<double>(s.uses), .trainable = false})) {}

  Tensor score(const RouterInput& in) const override { return gate_(in.feature_TR); }
  std::optional<LinearGate> linear_gate(const RouterInput& in) const override {
    return LinearGate{in.feature_TR, gate_.weight_OI, gate_.bias_O};
  }

 private:
  Linear gate_;
};

}  // namespace

RMOE_REGISTER(RouterRegistry, "random", RandomRouter,
              "a frozen random matrix (RandomMoE; with a growing k, SMoE-Dropout, Chen et al. 2023)");

}  // namespace rmoe::routing
