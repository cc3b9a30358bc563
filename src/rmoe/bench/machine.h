// What the machine can do, measured in this process.
#pragma once

#include "rmoe/bench/commands.h"

namespace rmoe::bench {

// With the current number of threads.
Machine measure_machine();
// Once more, at the end: the best of both times counts, as either may have met a busy neighbour.
void measure_again(Machine& machine);

}  // namespace rmoe::bench
