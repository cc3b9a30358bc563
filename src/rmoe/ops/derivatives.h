// What the ops' derivatives share.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe {

// Whether an op has to go through its autograd function, for any of the arguments: a gradient is wanted, or a tangent
// of forward mode is there (which the function refuses, where a plain call would lose it).
template <class... Arguments>
bool any_differentiated(const Arguments&... arguments) {
  const auto differentiated = [grad = at::GradMode::is_enabled()](const std::optional<Tensor>& t) {
    return t && t->defined() && ((grad && t->requires_grad()) || t->_fw_grad(/*level=*/0).defined());
  };
  return (differentiated(arguments) || ...);
}

}  // namespace rmoe
