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
class Transform;
class ScoreFunction;
class Selection;
class Balance;
}  // namespace rmoe::routing

namespace rmoe {
template <>
inline constexpr const char* plural_name<routing::Stage> = "stages";
template <>
inline constexpr const char* plural_name<routing::Router> = "routers";
template <>
inline constexpr const char* plural_name<routing::Transform> = "transforms";
template <>
inline constexpr const char* plural_name<routing::ScoreFunction> = "scores";
template <>
inline constexpr const char* plural_name<routing::Selection> = "selections";
template <>
inline constexpr const char* plural_name<routing::Balance> = "balances";
}  // namespace rmoe

namespace rmoe::routing {

struct StageShape;
struct RouterShape;
struct BalanceShape;

// What travels from layer to layer. One stage serves a whole model: parameters shared by all layers go to the first
// scope, those of the i-th MoE layer to the i-th of the second.
using StageRegistry = Registry<Stage, const StageShape&, const ParamScope&, const std::vector<ParamScope>&>;
// The head that turns a feature into N logits, one per layer.
using RouterRegistry = Registry<Router, const RouterShape&, const ParamScope&>;
// What happens to the logits before the score function, one object per layer.
using TransformRegistry = Registry<Transform, const RouterShape&, const ParamScope&>;
// Logits to scores and weights.
using ScoreRegistry = Registry<ScoreFunction>;
// Which experts a token goes to, one object per layer.
using SelectionRegistry = Registry<Selection, const RouterShape&, const ParamScope&>;
// Keeps the experts evenly used. One object serves a whole model; buffers of the i-th MoE layer go to the i-th scope.
using BalanceRegistry = Registry<Balance, const BalanceShape&, const std::vector<ParamScope>&>;

}  // namespace rmoe::routing
