// Balance without a loss by quantiles (Su 2026): each expert's scores are ranked relative to their own running (1 -
// K/N) quantile, which a share K/N of the tokens exceeds, whatever the level or spread of the expert's scores.
#include "rmoe/routing/quantile.h"

#include "rmoe/base/error.h"
#include "rmoe/routing/balance.h"

namespace rmoe::routing {
namespace {

class Quantile : public Balance {
 public:
  struct Options {
    double decay = 0.9;
    static constexpr auto fields() {
      return std::tuple{
          Field{"decay", &Options::decay, "what a step keeps of the running quantile", {.min = 0, .below = 1}}};
    }
  };

  Quantile(const Options& options, const BalanceShape& shape, const std::vector<ParamScope>& layers) {
    const double level = 1 - static_cast<double>(shape.top_k) / static_cast<double>(shape.experts);
    for (const ParamScope& layer : layers) {
      quantiles_.emplace_back(layer, "balance.quantile", shape.experts, level, options.decay);
    }
  }

  Tensor rank(int64_t layer, const Tensor& ranking_TN, const Tensor&, const RouteContext&) const override {
    return ranking_TN - quantiles_.at(static_cast<size_t>(layer)).values_N().to(ranking_TN.scalar_type());
  }

  Tensor statistic(int64_t, const Routing& routing) const override { return score_histogram(routing); }
  void update(int64_t layer, const Tensor& histogram_NB, const StepInfo&) override {
    quantiles_.at(static_cast<size_t>(layer)).update(histogram_NB);
  }

  bool steers() const override { return true; }

  void check(const Combination& c) const override {
    RMOE_CHECK(c.ranks, "quantile: shifts what is ranked, but selection '", c.selection, "' does not go by rank");
  }

 private:
  std::vector<RunningQuantile> quantiles_;
};

}  // namespace

RMOE_REGISTER(BalanceRegistry, "quantile", Quantile,
              "no loss: scores ranked relative to each expert's running (1 - K/N) quantile (Su 2026)");

}  // namespace rmoe::routing
