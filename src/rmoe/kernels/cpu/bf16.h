// bfloat16 as its bits.
#pragma once

#include <cstdint>

namespace rmoe::kernels {

struct Bf16 {
  uint16_t bits;
};

}  // namespace rmoe::kernels
