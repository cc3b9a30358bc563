// Each expert takes its best tokens, all experts equally many (Zhou et al. 2022). Whether a token is taken depends on
// all the others, later ones included: for encoders and for studies of training, not for generation.
#include <cmath>

#include "rmoe/base/error.h"
#include "rmoe/routing/selections/order.h"

namespace rmoe::routing {
namespace {

class ExpertChoice : public Selection {
 public:
  struct Options {
    double capacity = 1;
    static constexpr auto fields() {
      return std::tuple{Field{
          "capacity", &Options::capacity, "tokens that each expert takes, over the even share T K / N", {.above = 0}}};
    }
  };

  ExpertChoice(const Options& options, const RouterShape& s, const ParamScope&)
      : capacity_(options.capacity), top_k_(static_cast<double>(s.top_k)), experts_(static_cast<double>(s.experts)) {}

  Choice select(const SelectionInput& in) const override {
    if (in.context.generating) {
      throw Error(Exit::kBadInput,
                  "expert_choice: a token's experts depend on the tokens after it, so it cannot generate",
                  "evaluate whole texts, or train with another selection");
    }
    const int64_t tokens = in.ranking_TN.size(0);
    const Tensor& valid_T = in.context.valid_T;
    Tensor ranking_NT = in.ranking_TN.t();
    if (valid_T.defined()) ranking_NT = ranking_NT.masked_fill(valid_T.logical_not(), -INFINITY);

    // Room for all tokens' share, of which the share of the tokens that count is used: no size hangs on their number.
    const int64_t room = std::min(tokens, static_cast<int64_t>(std::ceil(share(static_cast<double>(tokens)))));
    const Tensor best_NC = by_rank(ranking_NT).narrow(1, 0, room);
    Tensor takes_NC = at::ones_like(best_NC, at::kBool);
    if (valid_T.defined()) {
      const Tensor count = valid_T.sum().to(at::kDouble);
      takes_NC = at::arange(room, best_NC.options()).lt(share(count).ceil().minimum(count)).expand_as(best_NC);
    }
    const Tensor taken_TN = at::zeros_like(ranking_NT, at::kBool).scatter(1, best_NC, takes_NC).t();
    const Tensor order_TN = by_rank(in.ranking_TN);
    return only(taken_TN.gather(1, order_TN), order_TN);
  }

  bool per_token() const override { return false; }
  bool causal() const override { return false; }

 private:
  // An expert's share of so many tokens; a number or a tensor.
  template <class T>
  T share(const T& tokens) const {
    return tokens * capacity_ * top_k_ / experts_;
  }

  double capacity_, top_k_, experts_;
};

}  // namespace

RMOE_REGISTER(SelectionRegistry, "expert_choice", ExpertChoice,
              "each expert takes its best tokens; not causal, refused for generation (Zhou et al. 2022)");

}  // namespace rmoe::routing
