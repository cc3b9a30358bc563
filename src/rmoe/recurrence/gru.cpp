// RMoE's stage (reference, section 1): h_i = GRU(Proj_i(x_i), h_{i-1}) with one cell shared by all layers and a
// projection of its own in each.
#include "rmoe/ops/affine.h"
#include "rmoe/ops/gru_cell.h"
#include "rmoe/routing/router.h"

namespace rmoe::routing {
namespace {

class GruStage : public Stage {
 public:
  struct Options {
    int64_t width = 128;
    static constexpr auto fields() {
      return std::tuple{Field{"width", &Options::width, "width P of the state h", {.min = 1, .max = 1e6}}};
    }
  };

  GruStage(const Options& options, const StageShape& s, const ParamScope& shared, const std::vector<ParamScope>& layers)
      : width_(options.width) {
    const int64_t P = width_;
    for (const ParamScope& layer : layers) {
      projections_.push_back(layer.add("weight1", {P, s.model_width}, matrix_init(s.model_width, s.init_deviation)));
    }
    const Init init = matrix_init(P, 0);
    const auto add = [&](const char* packed, const char* side, Shape shape, bool matrix) {
      const std::string kind = matrix ? "weight_" : "bias_";
      StoredParts parts;
      for (const char* gate : {"r", "z", "n"}) {
        // The public layout's names: reset ir/hr, update iz/hz, candidate in/hn.
        parts.names.push_back(shared.join(kind + side + gate));
      }
      const auto uses = static_cast<double>(layers.size());
      return shared.add(packed, std::move(shape), init, {.uses = uses, .matmul = matrix, .stored = std::move(parts)});
    };
    w_ih_ = add("weight_ih", "i", {3 * P, P}, true);
    w_hh_ = add("weight_hh", "h", {3 * P, P}, true);
    b_ih_ = add("bias_ih", "i", {3 * P}, false);
    b_hh_ = add("bias_hh", "h", {3 * P}, false);
  }

  int64_t feature_width() const override { return width_; }
  bool recurrent() const override { return true; }

  StageStep step(int64_t layer, const Tensor& x_TD, RouterCarry carry) const override {
    const Tensor x_TP = affine(x_TD, projections_.at(layer));
    Tensor h_TP = gru_cell(x_TP, carry.state_TP, w_ih_, w_hh_, b_ih_, b_hh_);
    return {h_TP, RouterCarry{.state_TP = h_TP}};
  }

 private:
  int64_t width_;
  std::vector<Tensor> projections_;  // [P, D] per MoE layer
  Tensor w_ih_, w_hh_, b_ih_, b_hh_;
};

}  // namespace

RMOE_REGISTER(StageRegistry, "gru", GruStage, "h_i = GRU(Proj_i(x_i), h_{i-1}), cell shared by all layers (RMoE)");

}  // namespace rmoe::routing
