// What every stage with a state has in common: its width, and how it and its gradient travel from layer to layer.
#pragma once

#include "rmoe/base/error.h"
#include "rmoe/base/fields.h"
#include "rmoe/ops/torch.h"

namespace rmoe::routing {

struct StateOptions {
  int64_t width = 128;
  bool pass = true;
  int64_t gradient_layers = 0;

  static constexpr auto fields() {
    using C = StateOptions;
    return std::tuple{Field{"width", &C::width, "width P of the state", {.min = 1, .max = 1e6}},
                      Field{"pass", &C::pass, "hand the state on; false: every layer starts from zero (NP)"},
                      Field{"gradient_layers",
                            &C::gradient_layers,
                            "the state is detached before every m-th MoE layer; 0: nowhere, 1: always (detach h)",
                            {.min = 0}}};
  }
  void validate() const {
    RMOE_CHECK(pass || gradient_layers == 0, "gradient_layers is ", gradient_layers,
               ", but pass = false hands no state on, so there is no gradient to cut; expected 0");
  }

  // What MoE layer `layer` starts from, given the state in the carry; undefined means zero.
  Tensor arriving(const Tensor& state, int64_t layer) const {
    if (!pass || !state.defined()) return {};
    return gradient_layers > 0 && layer % gradient_layers == 0 ? state.detach() : state;
  }
  // What a layer leaves in the carry.
  Tensor leaving(const Tensor& state) const { return pass ? state : Tensor(); }
};

}  // namespace rmoe::routing
