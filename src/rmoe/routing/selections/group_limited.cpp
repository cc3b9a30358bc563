// The K best experts of the best groups: experts in equal groups of neighbours (one per device, say), of which each
// token reaches only a few (DeepSeek-V2 by the group's best expert, DeepSeek-V3 by the sum of its two best).
#include "rmoe/base/error.h"
#include "rmoe/routing/selections/order.h"

namespace rmoe {
namespace routing {
enum class GroupScore { kTop2, kMax };
}  // namespace routing

template <>
struct EnumNames<routing::GroupScore> {
  static constexpr std::array names{std::pair{routing::GroupScore::kTop2, "top2"},
                                    std::pair{routing::GroupScore::kMax, "max"}};
};
}  // namespace rmoe

namespace rmoe::routing {
namespace {

class GroupLimited : public Selection {
 public:
  struct Options {
    int64_t groups = 1;
    int64_t keep_groups = 1;
    GroupScore group_score = GroupScore::kTop2;
    static constexpr auto fields() {
      using C = Options;
      return std::tuple{
          Field{"groups", &C::groups, "equal groups of experts", {.min = 1}},
          Field{"keep_groups", &C::keep_groups, "groups that a token may choose from", {.min = 1}},
          Field{"group_score", &C::group_score, "top2: the sum of a group's two best scores (V3); max: its best (V2)"}};
    }
  };

  GroupLimited(const Options& options, const RouterShape& s, const ParamScope&)
      : options_(options), top_k_(s.top_k), size_(s.experts / options.groups) {
    RMOE_CHECK(s.experts % options.groups == 0, "group_limited: groups is ", options.groups,
               ", expected a divisor of N = ", s.experts);
    RMOE_CHECK(options.keep_groups <= options.groups, "group_limited: keep_groups is ", options.keep_groups,
               ", expected at most groups = ", options.groups);
    RMOE_CHECK(s.top_k <= options.keep_groups * size_, "group_limited: K is ", s.top_k,
               ", but keep_groups = ", options.keep_groups, " groups have only ", options.keep_groups * size_,
               " experts");
  }

  Choice select(const SelectionInput& in) const override {
    const int64_t tokens = in.ranking_TN.size(0);
    const Tensor ranking_TGS = in.ranking_TN.reshape({tokens, options_.groups, size_});
    const Tensor group_TG = options_.group_score == GroupScore::kMax
                                ? ranking_TGS.amax(-1)
                                : std::get<0>(ranking_TGS.topk(std::min<int64_t>(2, size_))).sum(-1);
    // Sorted by id, so that ties between groups, too, go to the lower expert.
    const Tensor kept_TG = std::get<0>(by_rank(group_TG).narrow(1, 0, options_.keep_groups).sort(1));
    const Tensor experts_TGS = kept_TG.unsqueeze(2) * size_ + at::arange(size_, kept_TG.options());
    const Tensor experts_TE = experts_TGS.view({tokens, options_.keep_groups * size_});
    const Tensor best_TK = by_rank(in.ranking_TN.gather(1, experts_TE)).narrow(1, 0, top_k_);
    return {.ids_TK = experts_TE.gather(1, best_TK)};
  }

  bool ranks() const override { return true; }

 private:
  Options options_;
  int64_t top_k_, size_;
};

}  // namespace

RMOE_REGISTER(SelectionRegistry, "group_limited", GroupLimited,
              "the K best of each token within its best groups of experts (DeepSeek-V2, DeepSeek-V3)");

}  // namespace rmoe::routing
