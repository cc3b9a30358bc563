// The stages made of a recurrent cell (reference, section 1): h_i = Cell(Proj_i(x_i), h_{i-1}), with a projection of
// its own in each layer and one cell for all of them. A cell is a file of its own; the op recurrent_stage computes it.
#pragma once

#include "rmoe/ops/recurrent_stage.h"
#include "rmoe/recurrence/state.h"
#include "rmoe/routing/router.h"

namespace rmoe::routing {

class CellStage : public Stage {
 public:
  struct Options {
    StateOptions state;
    bool project = true;
    int64_t layers_per_cell = 0;

    static constexpr auto fields() {
      using C = Options;
      return std::tuple{Field{"", &C::state, ""},
                        Field{"project", &C::project, "project x in each layer; false: the cell reads x (S-proj)"},
                        Field{"layers_per_cell",
                              &C::layers_per_cell,
                              "consecutive MoE layers that share a cell; 0: all; the state travels through all cells",
                              {.min = 0}}};
    }
  };

  int64_t feature_width() const override { return options_.state.width; }
  bool recurrent() const override { return true; }
  StageStep step(int64_t layer, const Tensor& x_TD, RouterCarry carry) const override;

 protected:
  // `cell`: of the op recurrent_stage. `gates`: their letters in the public names (weight_ir, weight_hr, ...), in the
  // order in which they are packed.
  CellStage(const Options& options, const StageShape& s, const ParamScope& shared,
            const std::vector<ParamScope>& layers, std::string cell, const std::vector<std::string>& gates);

 private:
  Options options_;
  std::string cell_;
  int64_t layers_per_cell_;
  std::vector<Tensor> projections_PD_;   // per MoE layer; empty for S-proj
  std::vector<RecurrentWeights> cells_;  // without their projection
};

}  // namespace rmoe::routing
