// Random tensors of routers. Element i is a function of (key, i) alone, drawn in fp64 and rounded to the dtype: any
// number of threads, any dtype, a longer tensor and a recomputation see the same numbers.
#pragma once

#include "rmoe/ops/dropout.h"

namespace rmoe::routing {

// Of the shape, dtype (fp32 or fp64) and device of `like`: uniform in [low, high], and standard normal.
Tensor uniform_noise(const Tensor& like, double low, double high, DropoutKey key);
Tensor normal_noise(const Tensor& like, DropoutKey key);

}  // namespace rmoe::routing
