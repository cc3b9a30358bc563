// RMoE's stage (reference, section 1): h_i = GRU(Proj_i(x_i), h_{i-1}), the equations of torch.nn.GRUCell.
#include "rmoe/recurrence/cell_stage.h"

namespace rmoe::routing {
namespace {

class GruStage : public CellStage {
 public:
  GruStage(const Options& options, const StageShape& s, const ParamScope& shared, const std::vector<ParamScope>& layers)
      : CellStage(options, s, shared, layers, "gru", {"r", "z", "n"}) {}
};

}  // namespace

RMOE_REGISTER(StageRegistry, "gru", GruStage, "h_i = GRU(Proj_i(x_i), h_{i-1}), one cell for all layers (RMoE)");

}  // namespace rmoe::routing
