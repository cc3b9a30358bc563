// Activation recomputation: a layer keeps its inputs only and runs again in backward.
#pragma once

#include <functional>

#include "rmoe/routing/router.h"

namespace rmoe::nn {

struct LayerResult {
  Tensor x;
  routing::RouterCarry carry;
  std::optional<routing::Routing> routing;  // of a MoE layer
};
using LayerFunction = std::function<LayerResult(const Tensor& x, routing::RouterCarry carry)>;

// layer(x, carry), with the same values and gradients, without its activations being kept until backward. `layer` runs
// again in backward and must then give the same (its random numbers follow keys, its buffers change only between
// steps); what it captures has to live until then. Gradients of parameters are added to their .grad, so use
// backward(), not grad(). Without gradients it is layer(x, carry).
LayerResult recomputed(const LayerFunction& layer, const Tensor& x, routing::RouterCarry carry);

}  // namespace rmoe::nn
