// The linear head of SMoE: logits = W feature (+ b). Behind a recurrent stage it is the gate G_i of RMoE.
#include "rmoe/routers/parts.h"

namespace rmoe::routing {
namespace {

class LinearRouter : public Router {
 public:
  struct Options {
    bool bias = false;
    static constexpr auto fields() { return std::tuple{Field{"bias", &Options::bias, "add a bias to the logits"}}; }
  };

  LinearRouter(const Options& options, const RouterShape& s, const ParamScope& scope)
      : gate_(add_gate(s, scope, options.bias, {.uses = static_cast<double>(s.uses)})) {}

  Tensor score(const RouterInput& in) const override { return gate_(in.feature_TR); }
  std::optional<LinearGate> linear_gate(const RouterInput& in) const override {
    return LinearGate{in.feature_TR, gate_.weight_OI, gate_.bias_O};
  }

 private:
  Linear gate_;
};

}  // namespace

RMOE_REGISTER(RouterRegistry, "linear", LinearRouter, "one matrix per layer (SMoE; with the gru stage, RMoE)");

}  // namespace rmoe::routing
