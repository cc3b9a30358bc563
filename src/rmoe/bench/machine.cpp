#include "rmoe/bench/machine.h"

#include <algorithm>

#include <ATen/Parallel.h>

#include "rmoe/base/process.h"
#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/train/machine.h"

namespace rmoe::bench {

void measure_again(Machine& m) {
  const MemoryRate memory = measured_memory_rate();
  m.fp32_flops = std::max(m.fp32_flops, measure_peak_flops(Precision::kFp32));
  m.bf16_flops = std::max(m.bf16_flops, measure_peak_flops(Precision::kBf16));
  m.triad_bytes = std::max(m.triad_bytes, memory.triad);
  m.read_bytes = std::max(m.read_bytes, memory.read);
}

Machine measure_machine() {
  Machine machine{.cpu = cpu_model(), .isa = kernels::isa_name(kernels::cpu_isa()), .threads = at::get_num_threads()};
  measure_again(machine);
  return machine;
}

}  // namespace rmoe::bench
