// XMoE (Chi et al. 2022): logits_n = cos(P f, e_n) / tau, in a space of few dimensions where the experts' embeddings
// spread out. The temperature tau is learned; its logarithm is the parameter, so that it stays positive.
#include <cmath>

#include "rmoe/routers/parts.h"

namespace rmoe::routing {
namespace {

class XmoeRouter : public Router {
 public:
  struct Options {
    int64_t width = 16;
    double temperature = 0.3;
    bool unused_gate = false;

    static constexpr auto fields() {
      using C = Options;
      return std::tuple{
          Field{"width", &C::width, "width that the feature is projected to", {.min = 1, .max = 1e6}},
          Field{"temperature", &C::temperature, "the learned temperature at the start", {.above = 0}},
          Field{"unused_gate", &C::unused_gate, "keep SMoE's gate, which nothing reads, as the paper's counts do"}};
    }
  };

  XmoeRouter(const Options& options, const RouterShape& s, const ParamScope& scope) {
    const int64_t E = options.width, R = s.feature_width;
    const ParamTraits traits{.uses = static_cast<double>(s.uses)};
    projection_ER_ = scope.add("gate.projection", {E, R}, matrix_init(R, s.init_deviation), traits);
    embedding_NE_ = scope.add("gate.embedding", {s.experts, E}, matrix_init(E, s.init_deviation), traits);
    log_temperature_1_ =
        scope.add("gate.log_temperature", {1}, Init::constant(std::log(options.temperature)), {.matmul = false});
    if (options.unused_gate) add_unused_gate(s, scope);
  }

  Tensor score(const RouterInput& in) const override {
    const Tensor cosine_TN = affine(direction(affine(in.feature_TR, projection_ER_)), direction(embedding_NE_));
    return cosine_TN * log_temperature_1_.to(cosine_TN.scalar_type()).neg().exp();
  }
  std::optional<LinearGate> linear_gate(const RouterInput& in) const override {
    return LinearGate{direction(affine(at_least_fp32(in.feature_TR), projection_ER_)),
                      direction(embedding_NE_) * log_temperature_1_.neg().exp()};
  }

 private:
  Tensor projection_ER_, embedding_NE_, log_temperature_1_;
};

}  // namespace

RMOE_REGISTER(RouterRegistry, "xmoe", XmoeRouter,
              "cosine in a narrow space, with a learned temperature (XMoE, Chi et al. 2022)");

}  // namespace rmoe::routing
