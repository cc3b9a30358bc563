// The K best experts of each token. With growth (SMoE-Dropout, Chen et al. 2023), K rises linearly over training.
#include "rmoe/base/error.h"
#include "rmoe/routing/selections/order.h"

namespace rmoe::routing {
namespace {

class TopK : public Selection {
 public:
  struct Options {
    int64_t grow_to = 0;
    double grow_until = 1;
    static constexpr auto fields() {
      using C = Options;
      return std::tuple{
          Field{"grow_to", &C::grow_to, "experts per token in the end (SMoE-Dropout); 0: always K", {.min = 0}},
          Field{"grow_until",
                &C::grow_until,
                "share of the training after which they are reached",
                {.max = 1, .above = 0}}};
    }
  };

  TopK(const Options& options, const RouterShape& s, const ParamScope& scope) : options_(options), top_k_(s.top_k) {
    RMOE_CHECK(s.top_k >= 1 && s.top_k <= s.experts, "top_k: K is ", s.top_k, ", expected 1 to ", s.experts);
    if (options.grow_to == 0) return;
    RMOE_CHECK(options.grow_to >= s.top_k && options.grow_to <= s.experts, "top_k: grow_to is ", options.grow_to,
               ", expected K = ", s.top_k, " to N = ", s.experts);
    grown_1_ = scope.add_buffer("selection.grown", {1}, at::kLong);
  }

  Choice select(const SelectionInput& in) const override {
    const Tensor order_TN = by_rank(in.ranking_TN);
    if (options_.grow_to == 0) return {.ids_TK = order_TN.narrow(1, 0, top_k_).contiguous()};
    // Slots for all that will ever be used: their number must not depend on what only the device knows.
    const Tensor slots_K = at::arange(options_.grow_to, grown_1_.options());
    return only(slots_K < grown_1_ + top_k_, order_TN.narrow(1, 0, options_.grow_to));
  }

  void update(int64_t, const Tensor&, const StepInfo& info) override {
    if (options_.grow_to == 0) return;
    const double way = std::min(1.0, info.progress() / options_.grow_until);
    // Never back: a run may be extended, which makes its progress smaller.
    grown_1_.clamp_min_(static_cast<int64_t>(static_cast<double>(options_.grow_to - top_k_) * way));
  }

  int64_t best() const override { return options_.grow_to == 0 ? top_k_ : 0; }
  bool ranks() const override { return true; }
  bool fixed_k() const override { return options_.grow_to == 0; }

 private:
  Options options_;
  int64_t top_k_;
  Tensor grown_1_;  // what has come on top of K so far
};

}  // namespace

RMOE_REGISTER(SelectionRegistry, "top_k", TopK,
              "the K best of each token; K may grow over training (Shazeer et al. 2017; SMoE-Dropout)");

}  // namespace rmoe::routing
