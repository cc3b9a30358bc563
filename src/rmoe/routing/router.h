// The interfaces of the routing pipeline:
//   x_TD -> Stage::step(x, carry) -> Router::score -> select -> Routing
// State of a forward pass is a value (RouterCarry) that is handed from layer to layer and returned, never kept.
#pragma once

#include "rmoe/config/registries.h"
#include "rmoe/ops/param.h"

namespace rmoe::routing {

// What one MoE layer hands to the next. Empty at the first MoE layer of every forward pass; dense layers pass it on
// untouched; nothing of it is kept between tokens.
struct RouterCarry {
  Tensor state_TP;  // h_{i-1}; undefined means zero
};

struct StageShape {
  int64_t model_width;  // D
  double init_deviation;
};

// What the router of one layer reads, and what goes on to the next layer.
struct StageStep {
  Tensor feature_TR;
  RouterCarry carry;
};

// The layer recurrence in front of the routers. One object per model; stateless between calls.
class Stage {
 public:
  virtual ~Stage() = default;
  // R, the width of the feature that the routers read.
  virtual int64_t feature_width() const = 0;
  // False for the stage that hands x through: heads name their weights after it, as the public layout does.
  virtual bool recurrent() const = 0;
  // x_TD in fp32 or fp64. `layer` counts MoE layers only. Differentiable in x and in the carry.
  virtual StageStep step(int64_t layer, const Tensor& x_TD, RouterCarry carry) const = 0;
};

struct RouterShape {
  int64_t experts;        // N
  int64_t feature_width;  // R
  bool recurrent;         // a recurrent stage stands in front
  double init_deviation;
};

struct RouterInput {
  const Tensor& feature_TR;
};

// A head: logits of N experts from the feature. Differentiable.
class Router {
 public:
  virtual ~Router() = default;
  virtual Tensor score(const RouterInput& in) const = 0;  // -> logits_TN
};

}  // namespace rmoe::routing
