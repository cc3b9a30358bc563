// The stage of RMoE with a plain recurrent cell (reference, Table 6): h_i = tanh(W Proj_i(x_i) + b + U h_{i-1} + b').
#include "rmoe/recurrence/cell_stage.h"

namespace rmoe::routing {
namespace {

class RnnStage : public CellStage {
 public:
  // The public layout calls the only gate n.
  RnnStage(const Options& options, const StageShape& s, const ParamScope& shared, const std::vector<ParamScope>& layers)
      : CellStage(options, s, shared, layers, "rnn", {"n"}) {}
};

}  // namespace

RMOE_REGISTER(StageRegistry, "rnn", RnnStage, "h_i = tanh(W Proj_i(x_i) + U h_{i-1} + b), one cell (RMoE, Table 6)");

}  // namespace rmoe::routing
