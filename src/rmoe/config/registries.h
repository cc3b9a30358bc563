// The plug-in points of the routing pipeline, free of torch so that configuration and help can name them.
#pragma once

#include <vector>

#include "rmoe/base/registry.h"

namespace rmoe {
class ParamScope;
}

namespace rmoe::routing {
class Stage;
class Router;
class Balance;
}  // namespace rmoe::routing

namespace rmoe {
template <>
inline constexpr const char* plural_name<routing::Stage> = "stages";
template <>
inline constexpr const char* plural_name<routing::Router> = "routers";
template <>
inline constexpr const char* plural_name<routing::Balance> = "balances";
}  // namespace rmoe

namespace rmoe::routing {

struct StageShape;
struct RouterShape;

// What travels from layer to layer. One stage serves a whole model: parameters shared by all layers go to the first
// scope, those of the i-th MoE layer to the i-th of the second.
using StageRegistry = Registry<Stage, const StageShape&, const ParamScope&, const std::vector<ParamScope>&>;
// The head that turns a feature into N logits, one per layer.
using RouterRegistry = Registry<Router, const RouterShape&, const ParamScope&>;
// A loss on the routing of all layers of a forward pass.
using BalanceRegistry = Registry<Balance>;

}  // namespace rmoe::routing
