// Each expert takes the tokens whose score exceeds a running estimate of its (1 - K/N) quantile: on average K experts
// per token and T K / N tokens per expert, decided for each token alone (dynamic activation by quantiles, Su 2026; the
// causal relative of expert choice).
#include <limits>

#include "rmoe/base/error.h"
#include "rmoe/routing/quantile.h"
#include "rmoe/routing/selections/order.h"

namespace rmoe::routing {
namespace {

class Threshold : public Selection {
 public:
  struct Options {
    double decay = 0.99;
    int64_t at_least = 1;
    static constexpr auto fields() {
      using C = Options;
      return std::tuple{
          Field{"decay", &C::decay, "what a step keeps of the running quantile", {.min = 0, .below = 1}},
          Field{"at_least", &C::at_least, "experts that a token gets below all thresholds, too", {.min = 0}}};
    }
  };

  Threshold(const Options& options, const RouterShape& s, const ParamScope& scope)
      : at_least_(options.at_least),
        top_k_(s.top_k),
        quantile_(scope, "selection.threshold", s.experts,
                  1 - static_cast<double>(s.top_k) / static_cast<double>(s.experts), options.decay) {
    RMOE_CHECK(at_least_ <= s.experts, "threshold: at_least is ", at_least_, ", expected at most N = ", s.experts);
  }

  Choice select(const SelectionInput& in) const override {
    const Tensor& estimate_N = quantile_.values_N();
    const Tensor known_N = estimate_N > 0;
    const Tensor threshold_N = estimate_N.masked_fill(known_N.logical_not(), std::numeric_limits<double>::infinity());
    // Without any estimate, at the start and for K = N: the K best.
    const Tensor least = at::where(known_N.any(), at_least_, top_k_);
    const Tensor order_TN = by_rank(in.ranking_TN);
    const Tensor above_TN = (in.scores_TN > threshold_N).gather(1, order_TN);
    const Tensor first_N = at::arange(order_TN.size(1), order_TN.options()) < least;
    return only(above_TN.logical_or(first_N), order_TN);
  }

  Tensor statistic(int64_t, const Routing& routing) const override { return score_histogram(routing); }
  void update(int64_t, const Tensor& histogram_NB, const StepInfo&) override { quantile_.update(histogram_NB); }

 private:
  int64_t at_least_, top_k_;
  RunningQuantile quantile_;
};

}  // namespace

RMOE_REGISTER(SelectionRegistry, "threshold", Threshold,
              "experts whose score exceeds their running (1 - K/N) quantile, token by token (Su 2026)");

}  // namespace rmoe::routing
