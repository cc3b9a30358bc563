// The interfaces of the routing pipeline:
//   x_TD -> Stage::step(x, carry) -> Router::route -> Transforms -> ScoreFunction -> Selection -> Routing
// State of a forward pass is a value (RouterCarry) that is handed from layer to layer and returned, never kept. State
// of a training run (a bias that balances, a running threshold) is buffers, which forward passes read and only
// Adaptive::update writes, once per optimizer step.
#pragma once

#include <functional>
#include <string>

#include "rmoe/config/registries.h"
#include "rmoe/ops/dropout.h"
#include "rmoe/ops/param.h"
#include "rmoe/routing/routing.h"

namespace rmoe::routing {

// What one MoE layer hands to the next. Empty at the first MoE layer of every forward pass; dense layers pass it on
// untouched; nothing of it is kept between tokens.
struct RouterCarry {
  Tensor state_TP = {};                // h_{i-1}; undefined means zero
  Tensor cell_TP = {};                 // the LSTM's c_{i-1}; undefined means zero
  std::vector<Tensor> scores_TN = {};  // of each transform that asked for it: its scores of the previous layer
};

// What a layer's routing may depend on besides x and the carry.
struct RouteContext {
  bool training = false;
  bool generating = false;  // the T tokens are a part of a text whose rest comes later
  DropoutKey key = {};      // of the layer: noise is drawn from it
  Tensor tokens_T = {};     // int64 ids of the tokens
  Tensor valid_T = {};      // bool; undefined: all tokens count
  int64_t sequences = 1;    // T is this many sequences of equal length, one after the other
  Tensor replay_TK = {};    // ids to choose whatever the scores are (Routing::chosen_TK); undefined: none
  // ||E_n(x_t)|| of every expert and token, [T, N], outside autograd; expensive.
  std::function<Tensor()> responses_TN = {};
};

// What kind of pipeline a plug-in finds itself in, so that it can refuse what it cannot work with.
struct Combination {
  std::string stage = {}, router = {}, score = {}, selection = {};
  bool recurrent = false;     // a recurrent stage stands in front, whether it hands its state on or not
  bool reads_feature = true;  // the head reads the stage's feature
  bool distribution = false;  // the scores of a token sum to 1
  bool sparse = false;        // scores may be exactly 0: only positive ones count
  bool ranks = false;         // the selection takes each token's best scores, so that adding to a score steers it
  bool own_ranking = false;   // the head may rank by more than its logits, which nothing else may steer
  bool fixed_k = true;        // a ranking selection uses K slots from first to last
  bool per_token = true;      // a token's choice depends on this token alone
};

struct StepInfo {
  int64_t step = 0;   // optimizer steps done
  int64_t steps = 1;  // of the whole training
  double progress() const { return std::min(1.0, static_cast<double>(step) / static_cast<double>(steps)); }
};

// A plug-in that changes over training by other means than gradients.
class Adaptive {
 public:
  virtual ~Adaptive() = default;
  // Integers that add up over micro-batches and processes; undefined: nothing is needed. `layer` counts MoE layers.
  virtual Tensor statistic(int64_t /*layer*/, const Routing&) const { return {}; }
  // Once per optimizer step and layer (a head that layers share: for each of them), with the statistics of the step's
  // whole batch. Writes the plug-in's buffers.
  virtual void update(int64_t /*layer*/, const Tensor& /*statistic*/, const StepInfo&) {}
  // Once, before the first step of a training: how often each token id occurs in the training data, int64 [V]. Called
  // where wants_token_counts().
  virtual void fit(const Tensor& /*counts_V*/) {}
  virtual bool wants_token_counts() const { return false; }
  // Throws Error(kBadInput) with the reason when the plug-in makes no sense in this pipeline.
  virtual void check(const Combination&) const {}
};

struct StageShape {
  int64_t model_width;  // D
  double init_deviation;
};

// What the router of one layer reads, and what goes on to the next layer.
struct StageStep {
  Tensor feature_TR;
  RouterCarry carry;
  Tensor state_TP = {};  // h_i, whether it is handed on or not; undefined: there is none
};

// The layer recurrence in front of the routers. One object per model; stateless between calls.
class Stage {
 public:
  virtual ~Stage() = default;
  // R, the width of the feature that the routers read.
  virtual int64_t feature_width() const = 0;
  // False for the stage that hands x through: heads name their weights after it, as the public layout does.
  virtual bool recurrent() const = 0;
  // P, the width of StageStep::state_TP; 0 where there is none.
  virtual int64_t state_width() const { return recurrent() ? feature_width() : 0; }
  // x_TD in the model's dtype; the feature is in fp32 at least, or x itself. `layer` counts MoE layers only.
  // Differentiable in x and in the carry. Changes nothing in the carry but what belongs to the stage.
  virtual StageStep step(int64_t layer, const Tensor& x_TD, RouterCarry carry) const = 0;
};

// Of heads, transforms and selections. One object per layer, or per group of layers for heads that are shared.
struct RouterShape {
  int64_t experts = 0;        // N
  int64_t feature_width = 0;  // R
  bool recurrent = false;     // a recurrent stage stands in front
  double init_deviation = 0;
  int64_t top_k = 1;
  int64_t vocab_size = 0;
  int64_t layer = 0;  // MoE layers before this one
  int64_t uses = 1;   // layers that share it
};

struct RouterInput {
  const Tensor& feature_TR;
  const RouteContext& context = none();

 private:
  static const RouteContext& none() {
    static const RouteContext context;
    return context;
  }
};

struct RouterOutput {
  Tensor logits_TN;
  Tensor ranking_TN = {};  // chosen by these instead of by the scores of the logits; undefined: by the scores
  Tensor loss = {};        // scalar, weighted; undefined: none
};

// Logits that are a linear map of a feature, W f + b.
struct LinearGate {
  Tensor feature_TR, weight_NR;
  Tensor bias_N = {};  // undefined: none
};

// A head: logits of N experts from the feature, in fp32 at least, differentiable. A head overrides score(), or route()
// when it needs more than logits.
class Router : public Adaptive {
 public:
  virtual Tensor score(const RouterInput& in) const = 0;  // -> logits_TN
  // The same logits where they are a linear map, so that what follows can be computed with them; the feature may come
  // in the model's dtype. Heads that override route() give none.
  virtual std::optional<LinearGate> linear_gate(const RouterInput&) const { return {}; }
  virtual RouterOutput route(const RouterInput& in) const { return {.logits_TN = score(in)}; }
  virtual bool reads_feature() const { return true; }
  virtual bool own_ranking() const { return false; }  // route() may give a ranking_TN
};

// Changes features or logits between the head and the score function. One object per layer.
class Transform : public Adaptive {
 public:
  struct Step {
    Tensor logits_TN;
    Tensor carried_TN = {};  // for the same transform of the next MoE layer
  };
  virtual Tensor feature(const Tensor& feature_TR, const RouteContext&) const { return feature_TR; }
  // `carried_TN` is what the previous MoE layer's transform handed on; undefined at the first.
  virtual Step logits(const Tensor& logits_TN, const Tensor& feature_TR, const Tensor& carried_TN,
                      const RouteContext& context) const = 0;
};

// Logits to scores (what the selection ranks), and scores to combine weights. Stateless, monotone in each logit.
class ScoreFunction {
 public:
  virtual ~ScoreFunction() = default;
  virtual Tensor scores(const Tensor& logits_TN) const = 0;
  // Each token's scores as a distribution; what balance losses and analyses read.
  virtual Tensor probs(const Tensor& logits_TN, const Tensor& scores_TN) const = 0;
  // Of the chosen ids, 0 where an id is -1. `full`: none is.
  virtual Tensor weights(const Tensor& logits_TN, const Tensor& scores_TN, const Tensor& ids_TK, bool full) const = 0;
  virtual bool normalized() const = 0;  // a token's weights sum to 1
  // Whether the scores are softmax(logits) and the weights those of the chosen, as they are or divided by their sum.
  enum class Softmax { kNo, kWeights, kShares };
  virtual Softmax softmax() const { return Softmax::kNo; }
  virtual bool distribution() const { return false; }
  virtual bool sparse() const { return false; }
};

struct SelectionInput {
  const Tensor& ranking_TN;  // detached: the scores, with what the balancing added
  const Tensor& scores_TN;   // detached
  const RouteContext& context;
};

// Which experts each token goes to. One object per layer; nothing in it is differentiable.
class Selection : public Adaptive {
 public:
  struct Choice {
    Tensor ids_TK;     // by falling rank; -1: an unused slot
    bool full = true;  // no slot is unused
  };
  virtual Choice select(const SelectionInput& in) const = 0;
  // K where the choice is the K best by rank, of equal ones the lower ids, and nothing else; 0: it is not.
  virtual int64_t best() const { return 0; }
  virtual bool ranks() const { return false; }          // see Combination
  virtual bool fixed_k() const { return true; }         // see Combination
  virtual bool per_token() const { return true; }       // see Combination
  virtual bool goes_by_zeros() const { return false; }  // chooses what a sparse score leaves above 0
  // False: the choice for a token depends on tokens that come later, or on its place in a batch. Such a selection
  // refuses context.generating.
  virtual bool causal() const { return true; }
};

}  // namespace rmoe::routing
