// The stages made of a recurrent cell (reference, section 1): h_i = Cell(Proj_i(x_i), h_{i-1}), with a projection of
// its own in each layer and one cell for all of them. A cell is a file of its own: its gates and its equations.
#pragma once

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
  struct State {
    Tensor h_TP;
    Tensor c_TP = {};  // of cells that have one
  };
  // G gates one below the other: what reads the input of width I, and what reads h.
  struct Weights {
    Tensor ih, hh;      // [GP, I], [GP, P]
    Tensor b_ih, b_hh;  // [GP]
  };

  // `gates`: their letters in the public names (weight_ir, weight_hr, ...), in the order in which they are packed.
  CellStage(const Options& options, const StageShape& s, const ParamScope& shared,
            const std::vector<ParamScope>& layers, const std::vector<std::string>& gates);

  // W x + b + U h + b', [T, GP]. h may be undefined.
  static Tensor gates(const Tensor& x_TI, const Tensor& h_TP, const Weights& w);

 private:
  // The cell's equations. What is undefined in `before` means zero.
  virtual State advance(const Tensor& x_TI, const State& before, const Weights& w) const = 0;

  Options options_;
  int64_t layers_per_cell_;
  std::vector<Tensor> projections_PD_;  // per MoE layer; empty for S-proj
  std::vector<Weights> cells_;
};

}  // namespace rmoe::routing
