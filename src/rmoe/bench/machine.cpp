#include "rmoe/bench/machine.h"

#include <ATen/Parallel.h>

#include "rmoe/base/process.h"
#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/train/machine.h"

namespace rmoe::bench {

Machine measure_machine() {
  const MemoryRate memory = measured_memory_rate();
  return {.cpu = cpu_model(),
          .isa = kernels::isa_name(kernels::cpu_isa()),
          .threads = at::get_num_threads(),
          .fp32_flops = measured_peak_flops(Precision::kFp32),
          .bf16_flops = measured_peak_flops(Precision::kBf16),
          .triad_bytes = memory.triad,
          .read_bytes = memory.read};
}

}  // namespace rmoe::bench
