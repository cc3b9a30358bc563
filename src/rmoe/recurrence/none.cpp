// The stage of the plain routers: the head reads x itself and nothing travels from layer to layer.
#include "rmoe/routing/router.h"

namespace rmoe::routing {
namespace {

class NoStage : public Stage {
 public:
  NoStage(const StageShape& s, const ParamScope&, const std::vector<ParamScope>&) : width_(s.model_width) {}
  int64_t feature_width() const override { return width_; }
  bool recurrent() const override { return false; }
  StageStep step(int64_t, const Tensor& x_TD, RouterCarry carry) const override { return {x_TD, std::move(carry)}; }

 private:
  int64_t width_;
};

}  // namespace

RMOE_REGISTER(StageRegistry, "none", NoStage, "no state: the router reads x alone (SMoE and its kin)");

}  // namespace rmoe::routing
