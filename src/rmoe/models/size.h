// How large a model is and what a token costs. Free of torch.
#pragma once

#include "rmoe/config/model.h"

namespace rmoe {

// Computed from a config without building the model; the vocabulary must be set.
struct ModelSize {
  int64_t params = 0;
  int64_t active_params = 0;  // those that one token's forward pass uses
  int64_t router_params = 0;  // stage and heads
  double forward_flops = 0;   // per token, with a full context of `context` positions; 2 per multiply-add
};
ModelSize model_size(const ModelConfig& config, int64_t context);

}  // namespace rmoe
