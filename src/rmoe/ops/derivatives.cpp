// There are no second derivatives. Whoever asks for one gets an error from the backward ops; without these entries it
// would be a gradient that is wrong.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>

#include "rmoe/ops/torch.h"

TORCH_LIBRARY_IMPL(rmoe, Autograd, m) {
  for (const char* op :
       {"added_gate_backward", "causal_attention_backward", "experts_backward", "gate_backward", "linear_backward",
        "linear_cross_entropy_gradients", "norm_backward", "recurrent_stage_backward", "span_attention_backward"}) {
    m.impl(op, torch::autograd::autogradNotImplementedFallback());
  }
}
