// Every expert whose score is positive: the score function itself says which experts a token uses (ReMoE, Wang et al.
// 2024), and how many is what the relu_l1 balance steers.
#include "rmoe/base/error.h"
#include "rmoe/routing/selections/order.h"

namespace rmoe::routing {
namespace {

class Positive : public Selection {
 public:
  Positive(const RouterShape&, const ParamScope&) {}

  Choice select(const SelectionInput& in) const override {
    const Tensor order_TN = by_rank(in.ranking_TN);
    return only((in.scores_TN > 0).gather(1, order_TN), order_TN);
  }

  bool goes_by_zeros() const override { return true; }

  void check(const Combination& c) const override {
    RMOE_CHECK(c.sparse, "positive: chooses by zeros, which score '", c.score, "' does not give; use 'relu'");
  }
};

}  // namespace

RMOE_REGISTER(SelectionRegistry, "positive", Positive,
              "every expert with a positive score; for sparse scores (ReMoE; Wang et al. 2024)");

}  // namespace rmoe::routing
