// The linear head of SMoE: logits = W feature (+ b). Behind a recurrent stage it is the gate G_i of RMoE.
#include "rmoe/ops/affine.h"
#include "rmoe/routing/router.h"

namespace rmoe::routing {
namespace {

class LinearRouter : public Router {
 public:
  struct Options {
    bool bias = false;
    static constexpr auto fields() { return std::tuple{Field{"bias", &Options::bias, "add a bias to the logits"}}; }
  };

  LinearRouter(const Options& options, const RouterShape& s, const ParamScope& scope) {
    const Init init = matrix_init(s.feature_width, s.init_deviation);
    // The public layout calls the gate behind a stage weight2 and a plain one gate.weight.
    weight_NR_ = scope.add(s.recurrent ? "weight2" : "gate.weight", {s.experts, s.feature_width}, init);
    if (options.bias) {
      bias_N_ =
          scope.add(s.recurrent ? "bias2" : "gate.bias", {s.experts}, s.init_deviation > 0 ? Init::zeros() : init);
    }
  }

  Tensor score(const RouterInput& in) const override { return affine(in.feature_TR, weight_NR_, bias_N_); }

 private:
  Tensor weight_NR_, bias_N_;
};

}  // namespace

RMOE_REGISTER(RouterRegistry, "linear", LinearRouter, "one matrix per layer (SMoE; with the gru stage, RMoE)");

}  // namespace rmoe::routing
