#include "rmoe/recurrence/cell_stage.h"

#include <algorithm>

namespace rmoe::routing {

CellStage::CellStage(const Options& options, const StageShape& s, const ParamScope& shared,
                     const std::vector<ParamScope>& layers, std::string cell, const std::vector<std::string>& gates)
    : options_(options), cell_(std::move(cell)) {
  const auto count = static_cast<int64_t>(layers.size()), G = static_cast<int64_t>(gates.size());
  const int64_t P = options.state.width, I = options.project ? P : s.model_width;
  if (options.project) {
    const Init init = matrix_init(s.model_width, s.init_deviation);
    for (const ParamScope& layer : layers) projections_PD_.push_back(layer.add("weight1", {P, s.model_width}, init));
  }
  const int64_t all = std::max<int64_t>(count, 1);
  layers_per_cell_ = options.layers_per_cell > 0 ? std::min(options.layers_per_cell, all) : all;
  const int64_t cells = (all + layers_per_cell_ - 1) / layers_per_cell_;
  for (int64_t i = 0; i < cells; ++i) {
    const ParamScope scope = cells == 1 ? shared : shared / ("cells." + std::to_string(i));
    const auto uses = static_cast<double>(std::min(layers_per_cell_, count - i * layers_per_cell_));
    const auto add = [&](const std::string& kind, const char* side, Shape shape) {
      // Packed for one multiplication, stored gate by gate under the public layout's names.
      StoredParts parts;
      for (const std::string& gate : gates) parts.names.push_back(scope.join(kind + side + gate));
      const bool matrix = shape.size() == 2;
      return scope.add(kind + side + "h", std::move(shape), matrix_init(P, 0),
                       {.uses = uses, .matmul = matrix, .stored = std::move(parts)});
    };
    cells_.push_back({.projection_PD = {},
                      .ih = add("weight_", "i", {G * P, I}),
                      .hh = add("weight_", "h", {G * P, P}),
                      .b_ih = add("bias_", "i", {G * P}),
                      .b_hh = add("bias_", "h", {G * P})});
  }
}

StageStep CellStage::step(int64_t layer, const Tensor& x_TD, RouterCarry carry) const {
  const StateOptions& state = options_.state;
  RecurrentWeights weights = cells_.at(layer / layers_per_cell_);
  if (options_.project) weights.projection_PD = projections_PD_.at(layer);
  RecurrentState before{.h_TP = state.arriving(carry.state_TP, layer)};
  if (cell_ == "lstm") before.c_TP = state.arriving(carry.cell_TP, layer);
  RecurrentState after = recurrent_stage(cell_, x_TD, before, weights);
  carry.state_TP = state.leaving(after.h_TP);
  carry.cell_TP = state.leaving(after.c_TP);
  return {after.h_TP, std::move(carry), after.h_TP};
}

}  // namespace rmoe::routing
