// As many experts as a token needs: the smallest set, best first, whose probability reaches p (Huang et al. 2024).
#include "rmoe/base/error.h"
#include "rmoe/routing/selections/order.h"

namespace rmoe::routing {
namespace {

class TopP : public Selection {
 public:
  struct Options {
    double p = 0.4;
    int64_t max_experts = 0;
    static constexpr auto fields() {
      using C = Options;
      return std::tuple{Field{"p", &C::p, "probability that the chosen experts hold together", {.max = 1, .above = 0}},
                        Field{"max_experts", &C::max_experts, "at most so many per token; 0: all", {.min = 0}}};
    }
  };

  TopP(const Options& options, const RouterShape& s, const ParamScope&)
      : p_(options.p), slots_(options.max_experts > 0 ? options.max_experts : s.experts) {
    RMOE_CHECK(slots_ <= s.experts, "top_p: max_experts is ", slots_, ", expected at most N = ", s.experts);
  }

  Choice select(const SelectionInput& in) const override {
    const Tensor order_TK = by_rank(in.ranking_TN).narrow(1, 0, slots_);
    const Tensor mass_TK = in.scores_TN.gather(1, order_TK).cumsum(1);
    // An expert is taken while those before it fall short of p: the first one always.
    const Tensor before_TK = at::constant_pad_nd(mass_TK.narrow(1, 0, slots_ - 1), {1, 0});
    return only(before_TK < p_, order_TK);
  }

  void check(const Combination& c) const override {
    RMOE_CHECK(c.distribution, "top_p: needs probabilities that sum to 1, which score '", c.score, "' does not give");
  }

 private:
  double p_;
  int64_t slots_;
};

}  // namespace

RMOE_REGISTER(SelectionRegistry, "top_p", TopP,
              "each token's smallest set of experts whose probability reaches p (Huang et al. 2024)");

}  // namespace rmoe::routing
