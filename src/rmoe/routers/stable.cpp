// StableMoE (Dai et al. 2022). Phase 1: the linear head routes, and a small router that knows the token only, scores
// d_n = e_token . c_n, is distilled from it: the loss is the cross-entropy of its distribution against the linear
// head's first choice. Phase 2: the distilled router chooses, frozen, so that a token keeps its experts to the end; the
// weights are still the linear head's.
#include "rmoe/base/error.h"
#include "rmoe/routers/parts.h"

namespace rmoe::routing {
namespace {

class StableRouter : public Router {
 public:
  struct Options {
    double first_phase = 0.1;
    int64_t width = 50;
    double distill_weight = 1;
    bool bias = false;

    static constexpr auto fields() {
      using C = Options;
      return std::tuple{
          Field{"first_phase",
                &C::first_phase,
                "share of the training steps after which the choice is frozen",
                {.above = 0, .below = 1}},
          Field{"width", &C::width, "width of the distilled router's embeddings", {.min = 1, .max = 1e6}},
          Field{"distill_weight", &C::distill_weight, "weight of the distillation loss of each layer", {.min = 0}},
          Field{"bias", &C::bias, "add a bias to the linear head's logits"}};
    }
  };

  StableRouter(const Options& options, const RouterShape& s, const ParamScope& scope)
      : options_(options), gate_(add_gate(s, scope, options.bias, {.uses = static_cast<double>(s.uses)})) {
    const int64_t V = s.vocab_size, E = options.width;
    embedding_VE_ = scope.add("distilled.embedding", {V, E}, Init::normal(s.init_deviation > 0 ? s.init_deviation : 1),
                              {.active = 1 / static_cast<double>(V), .matmul = false});
    centroids_NE_ = scope.add("distilled.centroids", {s.experts, E}, matrix_init(E, s.init_deviation),
                              {.uses = static_cast<double>(s.uses)});
    frozen_1_ = scope.add_buffer("distilled.frozen", {1}, at::kLong);
  }

  Tensor score(const RouterInput& in) const override { return gate_(in.feature_TR); }

  RouterOutput route(const RouterInput& in) const override {
    RouterOutput out{.logits_TN = score(in)};
    if (frozen_1_.item<int64_t>() != 0) {
      const at::NoGradGuard no_grad;
      out.ranking_TN = distilled(in);
    } else if (in.context.training) {
      const Tensor first_T = out.logits_TN.detach().argmax(-1);
      const Tensor loss_T = at::cross_entropy_loss(distilled(in), first_T, {}, at::Reduction::None);
      out.loss = mean_over_tokens(loss_T, in.context.valid_T) * options_.distill_weight;
    }
    return out;
  }

  void update(int64_t /*layer*/, const Tensor& /*statistic*/, const StepInfo& info) override {
    // Never back: a run may be extended, which makes its progress smaller.
    if (info.progress() >= options_.first_phase) frozen_1_.fill_(1);
  }

  bool own_ranking() const override { return true; }

  void check(const Combination& c) const override {
    RMOE_CHECK(c.ranks, "router 'stable' chooses by a ranking of its own in its second phase and needs a selection of ",
               "each token's best scores, such as 'top_k', got '", c.selection, "'");
  }

 private:
  Tensor distilled(const RouterInput& in) const {
    const Tensor& tokens_T = in.context.tokens_T;
    RMOE_CHECK(tokens_T.defined(), "router 'stable': the distilled router reads token ids, but the call has none ",
               "(tokens_T)");
    return affine(embedding_VE_.index_select(0, tokens_T).to(in.feature_TR.scalar_type()), centroids_NE_);
  }

  Options options_;
  Linear gate_;
  Tensor embedding_VE_, centroids_NE_;
  Tensor frozen_1_;  // 1 in phase 2
};

}  // namespace

RMOE_REGISTER(RouterRegistry, "stable", StableRouter,
              "linear, then frozen to a router by token id distilled from it (StableMoE, Dai et al. 2022)");

}  // namespace rmoe::routing
