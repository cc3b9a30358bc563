// What the machine can do, measured in this process.
#pragma once

#include "rmoe/bench/commands.h"
#include "rmoe/ops/torch.h"

namespace rmoe::bench {

// Of the CPU, with the current number of threads, or of another device.
Machine measure_machine(at::Device device = at::kCPU);
// Once more, at the end: the best of both times counts, as either may have met a busy neighbour.
void measure_again(Machine& machine, at::Device device = at::kCPU);

}  // namespace rmoe::bench
