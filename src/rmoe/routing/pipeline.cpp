#include "rmoe/routing/pipeline.h"

#include <algorithm>
#include <cmath>

#include "rmoe/base/error.h"
#include "rmoe/ops/added_gate.h"
#include "rmoe/ops/affine.h"
#include "rmoe/ops/gate.h"

namespace rmoe::routing {
namespace {

// Takes away the rows beyond `capacity` per expert, lowest scores first (of equal scores, the later token's). Returns
// the number of rows that went.
Tensor drop_beyond(const Tensor& capacity, int64_t experts, const Tensor& scores_TN, Tensor& ids_TK) {
  const Tensor ids_M = ids_TK.flatten();
  const Tensor key_M = at::where(ids_M < 0, experts, ids_M);
  const Tensor scores_M = scores_TN.gather(1, ids_TK.clamp_min(0)).flatten();
  const Tensor by_score = std::get<1>(scores_M.sort(/*stable=*/true, 0, /*descending=*/true));
  const Tensor order = by_score.index_select(
      0, std::get<1>(key_M.index_select(0, by_score).sort(/*stable=*/true, 0, /*descending=*/false)));
  const Tensor sorted = key_M.index_select(0, order);
  // A row's place among its expert's rows.
  const Tensor counts = count_ids(key_M, experts + 1), begins = counts.cumsum(0) - counts;
  const Tensor place = at::arange(sorted.size(0), sorted.options()) - begins.index_select(0, sorted);
  const Tensor dropped_sorted = (place >= capacity).logical_and(sorted < experts);
  const Tensor dropped = at::empty_like(dropped_sorted).scatter_(0, order, dropped_sorted);
  ids_TK = ids_TK.masked_fill(dropped.view_as(ids_TK), -1);
  return dropped.sum();
}

}  // namespace

void Statistics::add(const Statistics& other) {
  if (values_.empty()) values_.resize(other.values_.size());
  RMOE_ASSERT(values_.size() == other.values_.size());
  for (size_t i = 0; i < values_.size(); ++i) {
    if (!other.values_[i].defined()) continue;
    values_[i] = values_[i].defined() ? values_[i] + other.values_[i] : other.values_[i];
  }
}

Pipeline::Pipeline(const MoeConfig& config, const PipelineShape& shape, const ParamScope& shared,
                   const std::vector<ParamScope>& scopes)
    : experts_(config.all_experts()),
      capacity_(config.capacity),
      stage_(config.stage.create(StageShape{.model_width = shape.model_width, .init_deviation = shape.init_deviation},
                                 shared, scopes)),
      score_(config.score.create()) {
  make_layers(config, shape, shared, scopes);
  for (const BalanceConfig& balance : config.balance) {
    const auto same = [&](const BalanceConfig& other) { return other.loss.kind() == balance.loss.kind(); };
    RMOE_CHECK(std::count_if(config.balance.begin(), config.balance.end(), same) == 1, "balance: '",
               balance.loss.kind(), "' is listed twice; add its weights");
    balances_.push_back(balance.loss.create(BalanceShape{.experts = experts_, .top_k = config.top_k}, scopes));
    balance_weights_.push_back(balance.weight);
  }
  combination_ = {.stage = config.stage.kind(),
                  .router = config.router.kind(),
                  .score = config.score.kind(),
                  .selection = config.selection.kind(),
                  .recurrent = stage_->recurrent(),
                  .distribution = score_->distribution(),
                  .sparse = score_->sparse()};
  if (!layers_.empty()) {
    combination_.reads_feature = layers_[0].head->reads_feature();
    combination_.own_ranking = layers_[0].head->own_ranking();
    combination_.ranks = layers_[0].selection->ranks();
    combination_.fixed_k = layers_[0].selection->fixed_k();
    combination_.per_token = layers_[0].selection->per_token() && capacity_ == 0;
    check();
  }
}

void Pipeline::make_layers(const MoeConfig& config, const PipelineShape& shape, const ParamScope& shared,
                           const std::vector<ParamScope>& scopes) {
  const auto count = static_cast<int64_t>(scopes.size());
  const int64_t group = config.router_group == 0 ? std::max<int64_t>(count, 1) : config.router_group;
  RouterShape s{.experts = experts_,
                .feature_width = config.state_gate ? shape.model_width : stage_->feature_width(),
                .recurrent = stage_->recurrent() && !config.state_gate,
                .init_deviation = shape.init_deviation,
                .top_k = config.top_k,
                .vocab_size = shape.vocab_size};
  RMOE_CHECK(!config.state_gate || stage_->recurrent(), "state_gate adds a gate on the stage's state, but stage '",
             config.stage.kind(), "' has none");
  for (int64_t i = 0; i < count; ++i) {
    const ParamScope& scope = scopes[static_cast<size_t>(i)];
    const size_t first = scope.table().all().size();
    Layer layer;
    s.layer = i;
    s.uses = std::min(group, count - i / group * group);
    if (i % group != 0) {
      layer.head = layers_.back().head;
      layer.head_parameters = layers_[static_cast<size_t>(i / group * group)].head_parameters;
    } else {
      layer.head = config.router.create(s, group == 1 ? scope : shared / ("routers." + std::to_string(i / group)));
    }
    if (config.state_gate) {
      layer.state_gate_NP = scope.add("weight2", {experts_, stage_->feature_width()}, Init::zeros());
    }
    for (size_t j = first; j < scope.table().all().size(); ++j) {
      const Param& param = scope.table().all()[j];
      if (!param.is_buffer()) layer.head_parameters.push_back(param.name);
    }
    s.uses = 1;
    for (size_t j = 0; j < config.transforms.size(); ++j) {
      layer.transforms.push_back(config.transforms[j].transform.create(s, scope / ("transforms." + std::to_string(j))));
    }
    layer.selection = config.selection.create(s, scope);
    layers_.push_back(std::move(layer));
  }
}

template <class F>
void Pipeline::for_each_adaptive(F&& f) const {
  for (int64_t i = 0; i < layers(); ++i) {
    const Layer& layer = layers_[static_cast<size_t>(i)];
    f(*layer.head, i);
    for (const auto& transform : layer.transforms) f(*transform, i);
    f(*layer.selection, i);
    for (const auto& balance : balances_) f(*balance, i);
  }
}

void Pipeline::check() const {
  for_each_adaptive([&](const Adaptive& plugin, int64_t layer) {
    if (layer == 0) plugin.check(combination_);
  });
  RMOE_CHECK(!combination_.sparse || layers_[0].selection->goes_by_zeros(), "score '", combination_.score,
             "' says by zeros which experts a token uses, and selection '", combination_.selection,
             "' does not go by them; use 'positive'");
  const auto steering = std::count_if(balances_.begin(), balances_.end(), [](const auto& b) { return b->steers(); });
  RMOE_CHECK(steering <= 1, "balance: ", steering, " entries steer the choice, expected at most one");
  RMOE_CHECK(steering == 0 || !combination_.own_ranking, "router '", combination_.router,
             "' ranks the experts itself, which a balance that steers the choice would undo");
  RMOE_CHECK(capacity_ == 0 || combination_.ranks,
             "capacity drops rows beyond each expert's share and needs a selection of each token's best scores, got '",
             combination_.selection, "'");
}

RouteResult Pipeline::route(int64_t layer, const Tensor& x_TD, RouterCarry carry, const RouteContext& context) const {
  auto [feature_TR, next, state_TP] = stage_->step(layer, x_TD, std::move(carry));
  Tensor added_TN;
  if (const Tensor& gate_NP = layers_.at(static_cast<size_t>(layer)).state_gate_NP; gate_NP.defined()) {
    added_TN = affine(at_least_fp32(feature_TR), gate_NP);
    feature_TR = x_TD;
  }
  std::optional<Routing> gated = route_by_gate(layer, feature_TR, added_TN, next, context);
  Routing r = gated ? std::move(*gated) : route_by_parts(layer, at_least_fp32(feature_TR), added_TN, next, context);
  r.state_TP = std::move(state_TP);
  r.chosen_TK = r.ids_TK;
  r.chosen_N = r.counts_N;
  if (capacity_ > 0 && context.training) {
    // As in the paper's large runs: the weights of the rows that stay are those before anything was dropped.
    const Tensor capacity =
        (r.chosen_N.sum().to(at::kDouble) * capacity_ / static_cast<double>(experts_)).ceil().to(at::kLong);
    r.dropped = drop_beyond(capacity, experts_, r.scores_TN.detach(), r.ids_TK);
    r.weights_TK = r.weights_TK.masked_fill(r.ids_TK.lt(0), 0);
    r.full = false;
    r.counts_N = count(r);
  }
  return {std::move(r), std::move(next)};
}

Tensor Pipeline::count(const Routing& r) const {
  if (r.full) return count_ids(r.ids_TK, experts_);
  return count_ids(r.ids_TK + 1, experts_ + 1).narrow(0, 1, experts_);
}

std::optional<Routing> Pipeline::route_by_gate(int64_t layer, const Tensor& feature_TR, const Tensor& added_TN,
                                               RouterCarry& carry, const RouteContext& context) const {
  const Layer& l = layers_.at(static_cast<size_t>(layer));
  const auto softmax = score_->softmax();
  const int64_t top_k = l.selection->best();
  // fp64 is for the parts' formulas, one by one: what everything is tested against.
  if (feature_TR.scalar_type() == at::kDouble || softmax == ScoreFunction::Softmax::kNo || top_k == 0) return {};
  if (!l.transforms.empty() || context.replay_TK.defined() || context.valid_T.defined()) return {};
  if (std::any_of(balances_.begin(), balances_.end(), [](const auto& b) { return b->steers(); })) return {};
  const auto head = l.head->linear_gate({.feature_TR = feature_TR, .context = context});
  if (!head) return {};
  const bool shares = softmax == ScoreFunction::Softmax::kShares;
  Gated g = added_TN.defined() ? added_gate(head->feature_TR, head->weight_NR, head->bias_N, added_TN, top_k, shares)
                               : gate(head->feature_TR, head->weight_NR, head->bias_N, top_k, shares);
  carry.scores_TN.clear();
  Routing r;
  r.sequences = context.sequences;
  r.ids_TK = std::move(g.ids_TK);
  r.weights_TK = std::move(g.weights_TK);
  r.logits_TN = std::move(g.logits_TN);
  r.scores_TN = r.probs_TN = std::move(g.probs_TN);
  r.counts_N = std::move(g.counts_N);
  return r;
}

Routing Pipeline::route_by_parts(int64_t layer, Tensor feature_TR, const Tensor& added_TN, RouterCarry& carry,
                                 const RouteContext& context) const {
  const Layer& l = layers_.at(static_cast<size_t>(layer));
  const auto own = [&](size_t j) {  // every transform draws from a stream of its own
    RouteContext noise = context;
    noise.key = context.key.at(j);
    return noise;
  };
  for (size_t j = 0; j < l.transforms.size(); ++j) feature_TR = l.transforms[j]->feature(feature_TR, own(j));
  RouterOutput out = l.head->route({.feature_TR = feature_TR, .context = context});
  if (added_TN.defined()) out.logits_TN = out.logits_TN + added_TN;
  carry.scores_TN.resize(l.transforms.size());
  for (size_t j = 0; j < l.transforms.size(); ++j) {
    auto step = l.transforms[j]->logits(out.logits_TN, feature_TR, carry.scores_TN[j], own(j));
    out.logits_TN = std::move(step.logits_TN);
    carry.scores_TN[j] = std::move(step.carried_TN);
  }

  Routing r;
  r.sequences = context.sequences;
  r.valid_T = context.valid_T;
  r.loss = out.loss;
  r.logits_TN = out.logits_TN;
  r.scores_TN = score_->scores(r.logits_TN);
  r.probs_TN = score_->probs(r.logits_TN, r.scores_TN);
  const Tensor scores = r.scores_TN.detach();
  if (context.replay_TK.defined()) {
    const Tensor& recorded = context.replay_TK;
    RMOE_CHECK(recorded.dim() == 2 && recorded.size(0) == scores.size(0) && recorded.scalar_type() == at::kLong,
               "replay: the recorded choice must be int64 [", scores.size(0), ", K], got ",
               c10::toString(recorded.scalar_type()), " ", recorded.sizes());
    RMOE_CHECK(recorded.ge(-1).all().item<bool>() && recorded.lt(experts_).all().item<bool>(),
               "replay: ids must be between -1 and ", experts_ - 1);
    r.ids_TK = recorded;
    r.full = !recorded.lt(0).any().item<bool>();
  } else {
    Tensor ranking = out.ranking_TN.defined() ? out.ranking_TN.detach() : scores;
    for (const auto& balance : balances_) ranking = balance->rank(layer, ranking, r.logits_TN.detach(), context);
    const auto choice = l.selection->select({.ranking_TN = ranking, .scores_TN = scores, .context = context});
    r.ids_TK = choice.ids_TK;
    r.full = choice.full;
  }
  if (r.valid_T.defined()) {
    r.ids_TK = r.ids_TK.masked_fill(r.valid_T.logical_not().unsqueeze(1), -1);
    r.full = false;
  }
  r.weights_TK = score_->weights(r.logits_TN, r.scores_TN, r.ids_TK, r.full);
  r.counts_N = count(r);
  return r;
}

void Pipeline::set_frozen(std::vector<bool> layers) {
  RMOE_ASSERT(std::ssize(layers) == this->layers());
  const bool any = std::find(layers.begin(), layers.end(), true) != layers.end();
  frozen_ = any ? std::move(layers) : std::vector<bool>();
}

Tensor Pipeline::loss(const RoutingTrace& trace, const BatchCounts* batch) const {
  if (frozen_.empty()) return loss_of(trace, batch);
  RoutingTrace learning;
  BatchCounts counts;
  for (size_t i = 0; i < trace.size(); ++i) {
    if (frozen_[i]) continue;
    learning.push_back(trace[i]);
    if (batch) counts.push_back((*batch)[i]);
  }
  return loss_of(learning, batch ? &counts : nullptr);
}

Tensor Pipeline::loss_of(const RoutingTrace& trace, const BatchCounts* batch) const {
  Tensor total =
      at::zeros({}, trace.empty() ? at::TensorOptions(at::kFloat) : trace[0].logits_TN.options().dtype(at::kFloat));
  for (size_t i = 0; i < balances_.size(); ++i) {
    if (balance_weights_[i] > 0) total = total + balances_[i]->loss(trace, batch) * balance_weights_[i];
  }
  for (const Routing& routing : trace) {
    if (routing.loss.defined()) total = total + routing.loss;
  }
  return total;
}

bool Pipeline::wants_batch_counts() const {
  return std::any_of(balances_.begin(), balances_.end(), [](const auto& b) { return b->wants_batch_counts(); });
}

Statistics Pipeline::statistics(const RoutingTrace& trace) const {
  at::NoGradGuard no_grad;
  Statistics result;
  for_each_adaptive([&](const Adaptive& plugin, int64_t layer) {
    result.values_.push_back(plugin.statistic(layer, trace.at(static_cast<size_t>(layer))));
  });
  return result;
}

void Pipeline::update(const Statistics& statistics, const StepInfo& info) {
  at::NoGradGuard no_grad;
  size_t i = 0;
  for_each_adaptive([&](Adaptive& plugin, int64_t layer) {
    Tensor statistic = statistics.values_.at(i++);
    // To what balances it, a frozen layer is one that saw no token.
    const bool frozen = !frozen_.empty() && frozen_[static_cast<size_t>(layer)];
    if (frozen && statistic.defined() && dynamic_cast<Balance*>(&plugin)) statistic = at::zeros_like(statistic);
    plugin.update(layer, statistic, info);
  });
}

bool Pipeline::wants_token_counts() const {
  bool wanted = false;
  for_each_adaptive([&](const Adaptive& plugin, int64_t) { wanted = wanted || plugin.wants_token_counts(); });
  return wanted;
}

void Pipeline::fit(const Tensor& token_counts_V) {
  at::NoGradGuard no_grad;
  for_each_adaptive([&](Adaptive& plugin, int64_t) { plugin.fit(token_counts_V); });
}

}  // namespace rmoe::routing
