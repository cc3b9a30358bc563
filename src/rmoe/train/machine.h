// What the machine can do, measured, so that a run can say what share of it was used.
#pragma once

#include "rmoe/config/run.h"

namespace rmoe {

// Floating-point operations per second of matrix products in this precision with the current number of threads: the
// best of a loop of multiply-adds on all threads at once and of a large at::mm (on machines with matrix units the
// larger one). Takes about a quarter of a second, once per process, precision and number of threads.
double measured_peak_flops(Precision precision);

}  // namespace rmoe
