// What the machine can do, measured in this process.
#pragma once

#include "rmoe/bench/commands.h"

namespace rmoe::bench {

// With the current number of threads.
Machine measure_machine();

}  // namespace rmoe::bench
