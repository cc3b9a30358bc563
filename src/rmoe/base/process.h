// What this process uses and what machine it is on. Linux: read from /proc and /sys.
#pragma once

#include <cstdint>
#include <string>

namespace rmoe {

int64_t memory_now_bytes();    // resident now; 0 where the kernel does not tell
int64_t memory_peak_bytes();   // largest so far (VmHWM); 0 where the kernel does not tell
int64_t page_faults();         // so far, those served without reading a file
int64_t memory_total_bytes();  // of the machine, or the container's limit; 0 where the kernel does not tell
int usable_cpus();             // by affinity and the container's quota, at least 1
std::string cpu_model();       // "AMD EPYC 9655 96-Core Processor", or "unknown"

}  // namespace rmoe
