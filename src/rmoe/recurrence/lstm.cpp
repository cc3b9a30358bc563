// The stage of RMoE with an LSTM (reference, Table 6), the equations of torch.nn.LSTMCell:
//   c_i = sigmoid(f) c_{i-1} + sigmoid(i) tanh(g),   h_i = sigmoid(o) tanh(c_i)
// where i, f, g, o are each W Proj_i(x_i) + b + U h_{i-1} + b'. The carry holds h and c.
#include "rmoe/recurrence/cell_stage.h"

namespace rmoe::routing {
namespace {

class LstmStage : public CellStage {
 public:
  LstmStage(const Options& options, const StageShape& s, const ParamScope& shared,
            const std::vector<ParamScope>& layers)
      : CellStage(options, s, shared, layers, "lstm", {"i", "f", "g", "o"}) {}
};

}  // namespace

RMOE_REGISTER(StageRegistry, "lstm", LstmStage, "h_i, c_i = LSTM(Proj_i(x_i), h_{i-1}, c_{i-1}) (RMoE, Table 6)");

}  // namespace rmoe::routing
