// Noisy gating (Shazeer et al. 2017): in training, logits + normal * (softplus(W_noise f) + epsilon). W_noise [N, R]
// starts at zero, and epsilon is that of the public code.
#include "rmoe/base/error.h"
#include "rmoe/base/rng.h"
#include "rmoe/ops/affine.h"
#include "rmoe/routing/noise.h"
#include "rmoe/routing/router.h"

namespace rmoe::routing {
namespace {

class NoisyTransform : public Transform {
 public:
  struct Options {
    double epsilon = 1e-2;
    static constexpr auto fields() {
      return std::tuple{Field{"epsilon", &Options::epsilon, "added to the noise's standard deviation", {.min = 0}}};
    }
  };

  NoisyTransform(const Options& options, const RouterShape& s, const ParamScope& scope)
      : epsilon_(options.epsilon),
        weight_NR_(scope.add("w_noise.weight", {s.experts, s.feature_width}, Init::zeros())) {}

  Step logits(const Tensor& logits_TN, const Tensor& feature_TR, const Tensor&,
              const RouteContext& context) const override {
    if (!context.training) return {.logits_TN = logits_TN};
    const Tensor normal_TN = normal_noise(logits_TN, context.key.at(hash_text("noisy")));
    return {.logits_TN = at::addcmul(logits_TN, normal_TN, at::softplus(affine(feature_TR, weight_NR_)) + epsilon_)};
  }

  void check(const Combination& c) const override {
    RMOE_CHECK(c.reads_feature, "transform 'noisy' learns its noise from the feature, but router '", c.router,
               "' reads none");
  }

 private:
  double epsilon_;
  Tensor weight_NR_;
};

}  // namespace

RMOE_REGISTER(TransformRegistry, "noisy", NoisyTransform,
              "in training, logits + normal * (softplus(W_noise f) + epsilon) (Shazeer et al. 2017)");

}  // namespace rmoe::routing
