// Tensors that may be missing, as the dispatcher takes them.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe {

using OptionalTensor = std::optional<Tensor>;

// None where t is undefined.
inline OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

}  // namespace rmoe
