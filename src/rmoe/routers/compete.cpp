// CompeteSMoE (Pham et al. 2024). With probability lambda a layer's forward pass in training is a competition: all
// experts answer, and s_n = ||E_n(x)|| are the logits, so that the strongest answers win and weigh softmax(s) over the
// winners. The linear head learns to foresee this: its loss is the mean over tokens and experts of
// (softmax(logits)_n - target_n)^2, where target is that softmax over the K winners and 0 elsewhere. Otherwise, and
// always outside training, the linear head routes.
//
// The responses are constants here: in a competition the head learns from this loss only. lambda is constant, 0.03 in
// the authors' runs on Enwik8, or falls as their second schedule, 2 / (2 + sqrt(1 + i)) after i thousands of steps,
// times `rate`. Their loss counts 5 times the balance loss, whose weight is 0.01: 0.05.
#include <algorithm>
#include <cmath>

#include "rmoe/base/error.h"
#include "rmoe/base/rng.h"
#include "rmoe/routers/parts.h"

namespace rmoe {
namespace routing {
enum class CompeteSchedule { kConstant, kFalling };
}  // namespace routing

template <>
struct EnumNames<routing::CompeteSchedule> {
  static constexpr std::array names{std::pair{routing::CompeteSchedule::kConstant, "constant"},
                                    std::pair{routing::CompeteSchedule::kFalling, "falling"}};
};
}  // namespace rmoe

namespace rmoe::routing {
namespace {

class CompeteRouter : public Router {
 public:
  struct Options {
    double rate = 0.03;
    CompeteSchedule schedule = CompeteSchedule::kConstant;
    double router_weight = 0.05;
    bool bias = false;

    static constexpr auto fields() {
      using C = Options;
      return std::tuple{
          Field{"rate", &C::rate, "probability of a competition, per layer and pass", {.min = 0, .max = 1}},
          Field{"schedule", &C::schedule, "constant, or falling: rate * 2 / (2 + sqrt(1 + thousands of steps))"},
          Field{"router_weight", &C::router_weight, "weight of the linear head's loss in a competition", {.min = 0}},
          Field{"bias", &C::bias, "add a bias to the linear head's logits"}};
    }
  };

  CompeteRouter(const Options& options, const RouterShape& s, const ParamScope& scope)
      : options_(options),
        top_k_(std::min(s.top_k, s.experts)),
        gate_(add_gate(s, scope, options.bias, {.uses = static_cast<double>(s.uses)})) {
    if (options.schedule == CompeteSchedule::kFalling) step_1_ = scope.add_buffer("compete.step", {1}, at::kLong);
  }

  Tensor score(const RouterInput& in) const override { return gate_(in.feature_TR); }

  RouterOutput route(const RouterInput& in) const override {
    const Tensor foreseen_TN = score(in);
    if (!competes(in.context)) return {.logits_TN = foreseen_TN};
    RMOE_CHECK(in.context.responses_TN, "router 'compete': the experts' responses are not at hand (responses_TN)");
    const Tensor responses_TN = in.context.responses_TN().detach().to(foreseen_TN.scalar_type());
    RMOE_CHECK(responses_TN.sizes() == foreseen_TN.sizes(), "router 'compete': responses are ", responses_TN.sizes(),
               ", expected ", foreseen_TN.sizes());
    const auto [sorted_TN, ids_TN] = responses_TN.sort(/*stable=*/true, -1, /*descending=*/true);
    const Tensor target_TN =
        at::zeros_like(foreseen_TN).scatter(1, ids_TN.narrow(1, 0, top_k_), sorted_TN.narrow(1, 0, top_k_).softmax(-1));
    const Tensor loss_T = (foreseen_TN.softmax(-1) - target_TN).square().mean(-1);
    return {.logits_TN = responses_TN, .loss = mean_over_tokens(loss_T, in.context.valid_T) * options_.router_weight};
  }

  void update(int64_t /*layer*/, const Tensor& /*statistic*/, const StepInfo& info) override {
    if (step_1_.defined()) step_1_.fill_(info.step);
  }

 private:
  // Drawn once for all tokens of the pass, again the same in a recomputation.
  bool competes(const RouteContext& context) const {
    return context.training && uniform(context.key.at(hash_text("compete")).value) < rate();
  }

  double rate() const {
    if (!step_1_.defined()) return options_.rate;
    const int64_t thousands = step_1_.item<int64_t>() / 1000;
    return options_.rate * 2 / (2 + std::sqrt(static_cast<double>(1 + thousands)));
  }

  Options options_;
  int64_t top_k_;
  Linear gate_;
  Tensor step_1_;  // optimizer steps done; undefined: the rate is constant
};

}  // namespace

RMOE_REGISTER(RouterRegistry, "compete", CompeteRouter,
              "linear, taught by competitions of the experts' response norms (CompeteSMoE, Pham et al. 2024)");

}  // namespace rmoe::routing
