// Residual scores, r-alpha (reference, section 1 and Table 5): logits_i + alpha g_{i-1}, where g_{i-1} are the previous
// MoE layer's own logits, without the residual that it got itself.
#include "rmoe/base/error.h"
#include "rmoe/routing/router.h"

namespace rmoe::routing {
namespace {

class ResidualTransform : public Transform {
 public:
  struct Options {
    double alpha = 0.5;
    bool detach = false;
    static constexpr auto fields() {
      using C = Options;
      return std::tuple{Field{"alpha", &C::alpha, "what the previous layer's logits are multiplied by", {.min = 0}},
                        Field{"detach", &C::detach, "no gradient through the previous layer's logits (detach-r)"}};
    }
  };

  ResidualTransform(const Options& options, const RouterShape&, const ParamScope&) : options_(options) {}

  Step logits(const Tensor& logits_TN, const Tensor&, const Tensor& carried_TN, const RouteContext&) const override {
    return {.logits_TN = carried_TN.defined() ? at::add(logits_TN, carried_TN, options_.alpha) : logits_TN,
            .carried_TN = options_.detach ? logits_TN.detach() : logits_TN};
  }

  void check(const Combination& c) const override {
    RMOE_CHECK(c.reads_feature, "transform 'residual' adds what the previous layer's head computed from its feature, ",
               "but router '", c.router, "' reads none");
  }

 private:
  Options options_;
};

}  // namespace

RMOE_REGISTER(TransformRegistry, "residual", ResidualTransform,
              "logits_i + alpha times the previous layer's own (RMoE, Table 5: r-alpha, detach-r)");

}  // namespace rmoe::routing
