// The routing of a whole model: stage, heads, transforms, score function, selection and balance, put together from a
// config. Any of them stand together that do not contradict each other; what contradicts is refused with the reason.
#pragma once

#include "rmoe/config/model.h"
#include "rmoe/routing/balance.h"

namespace rmoe::routing {

struct PipelineShape {
  int64_t model_width;  // D
  int64_t vocab_size;   // V
  double init_deviation;
};

struct RouteResult {
  Routing routing;
  RouterCarry carry;  // for the next MoE layer
};

// The adaptive plug-ins' statistics of some forward passes.
class Statistics {
 public:
  void add(const Statistics& other);

 private:
  friend class Pipeline;
  std::vector<Tensor> values_;  // one per (plug-in, layer) that keeps any; undefined: none
};

class Pipeline {
 public:
  // `shared` is where parameters of the whole model go, `layers` the scope of each MoE layer. Throws for combinations
  // that make no sense.
  Pipeline(const MoeConfig& config, const PipelineShape& shape, const ParamScope& shared,
           const std::vector<ParamScope>& layers);

  int64_t layers() const { return static_cast<int64_t>(layers_.size()); }
  int64_t experts() const { return experts_; }                   // N, zero-computation experts included
  int64_t state_width() const { return stage_->state_width(); }  // P; 0 without a recurrent stage
  const Combination& combination() const { return combination_; }
  // False where the choice for a token depends on other tokens or on its place in a batch: such a model cannot write
  // text.
  bool causal() const { return layers_.empty() || layers_[0].selection->causal(); }

  // The names of the parameters of a layer's head, in the table: of those of the group that shares it, too.
  const std::vector<std::string>& head_parameters(int64_t layer) const {
    return layers_.at(static_cast<size_t>(layer)).head_parameters;
  }
  // Layers whose routers do not learn any more, one entry per MoE layer: they have no part in loss(), and what balances
  // them without a loss stays as it is.
  void set_frozen(std::vector<bool> layers);

  // Routes the tokens of one MoE layer. x_TD in any dtype: routers compute in fp32 at least. Differentiable in x and
  // the carry. The carry is taken and handed on by value.
  RouteResult route(int64_t layer, const Tensor& x_TD, RouterCarry carry, const RouteContext& context) const;

  // All balance losses of the config, weighted and summed, and what the heads ask to be minimized; 0 when there is
  // none. `batch`: see Balance::loss.
  Tensor loss(const RoutingTrace& trace, const BatchCounts* batch = nullptr) const;
  // Whether loss() depends on `batch`, so that an optimizer step of several micro-batches has to count first.
  bool wants_batch_counts() const;

  // Statistics of a forward pass; they add up over the passes of an optimizer step, and update() takes them after it.
  Statistics statistics(const RoutingTrace& trace) const;
  void update(const Statistics& statistics, const StepInfo& info);
  // Before the first step of a training, where wants_token_counts(): how often each id occurs in the data, int64 [V].
  void fit(const Tensor& token_counts_V);
  bool wants_token_counts() const;

 private:
  struct Layer {
    std::shared_ptr<Router> head;
    Tensor state_gate_NP;  // undefined: the head reads the stage's feature itself
    std::vector<std::string> head_parameters;
    std::vector<std::shared_ptr<Transform>> transforms;
    std::shared_ptr<Selection> selection;
  };

  void make_layers(const MoeConfig& config, const PipelineShape& shape, const ParamScope& shared,
                   const std::vector<ParamScope>& scopes);
  void check() const;
  // As loss(), of all layers of the trace.
  Tensor loss_of(const RoutingTrace& trace, const BatchCounts* batch) const;
  // What follows the stage, up to counts_N: in one op, where the head is linear and all else the common case; and
  // plug-in by plug-in. Both change the transforms' part of the carry.
  // `added_TN`: what comes to the head's logits; undefined: nothing.
  std::optional<Routing> route_by_gate(int64_t layer, const Tensor& feature_TR, const Tensor& added_TN,
                                       RouterCarry& carry, const RouteContext& context) const;
  Routing route_by_parts(int64_t layer, Tensor feature_TR, const Tensor& added_TN, RouterCarry& carry,
                         const RouteContext& context) const;
  Tensor count(const Routing& r) const;  // rows per expert
  // Every adaptive plug-in of every layer, always in the same order.
  template <class F>
  void for_each_adaptive(F&& f) const;

  int64_t experts_;
  double capacity_;
  std::shared_ptr<const Stage> stage_;
  std::shared_ptr<const ScoreFunction> score_;
  std::vector<Layer> layers_;
  std::vector<bool> frozen_;  // empty: none
  std::vector<std::shared_ptr<Balance>> balances_;
  std::vector<double> balance_weights_;
  Combination combination_;
};

}  // namespace rmoe::routing
