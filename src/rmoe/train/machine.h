// What the machine can do, measured, so that a run can say what share of it was used.
#pragma once

#include "rmoe/config/run.h"
#include "rmoe/ops/torch.h"

namespace rmoe {

// Floating-point operations per second of matrix products in this precision with the current number of threads: the
// best of a loop of multiply-adds on all threads at once and of large matrix products, at::mm's and ours (on machines
// with matrix units these are the larger ones). Takes about a third of a second, once per process, precision and number
// of threads.
double measured_peak_flops(Precision precision);
// The same, measured anew each time.
double measure_peak_flops(Precision precision);
// Of any device: on one that is not the CPU, products by at::mm, measured anew each time.
double measured_peak_flops(Precision precision, at::Device device);
double measure_peak_flops(Precision precision, at::Device device);

// Bytes per second between memory and all threads, by passes over arrays larger than the caches (as far as a sixteenth
// of the memory and 1 GiB go); the best of several. Takes a second or two.
struct MemoryRate {
  double triad = 0;  // a = b + c / 2, counted as three streams
  double read = 0;   // one stream in
};
MemoryRate measured_memory_rate();
// Of any device.
MemoryRate measured_memory_rate(at::Device device);

}  // namespace rmoe
