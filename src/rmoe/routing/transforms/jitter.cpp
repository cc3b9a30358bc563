// Input jitter of the Switch Transformer (Fedus et al. 2021): in training, the head reads f * U(1 - eps, 1 + eps),
// every element with a factor of its own. The experts and the next layer's stage see no jitter.
#include "rmoe/base/error.h"
#include "rmoe/base/rng.h"
#include "rmoe/routing/noise.h"
#include "rmoe/routing/router.h"

namespace rmoe::routing {
namespace {

class JitterTransform : public Transform {
 public:
  struct Options {
    double eps = 0.01;
    static constexpr auto fields() {
      return std::tuple{Field{"eps", &Options::eps, "largest deviation of the factor from 1", {.min = 0, .below = 1}}};
    }
  };

  JitterTransform(const Options& options, const RouterShape&, const ParamScope&) : eps_(options.eps) {}

  Tensor feature(const Tensor& feature_TR, const RouteContext& context) const override {
    if (!context.training || eps_ == 0) return feature_TR;
    return feature_TR * uniform_noise(feature_TR, 1 - eps_, 1 + eps_, context.key.at(hash_text("jitter")));
  }

  Step logits(const Tensor& logits_TN, const Tensor&, const Tensor&, const RouteContext&) const override {
    return {.logits_TN = logits_TN};
  }

  void check(const Combination& c) const override {
    RMOE_CHECK(c.reads_feature, "transform 'jitter' changes the feature, but router '", c.router, "' reads none");
  }

 private:
  double eps_;
};

}  // namespace

RMOE_REGISTER(TransformRegistry, "jitter", JitterTransform,
              "in training, the head's feature times U(1 - eps, 1 + eps) (Switch, Fedus et al. 2021)");

}  // namespace rmoe::routing
