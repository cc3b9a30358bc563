// The version that `rmoe --version` prints and that files carry.
#pragma once

namespace rmoe {

inline constexpr const char* kVersion = "0.1.0";

}  // namespace rmoe
