#include "rmoe/bench/machine.h"

#include <algorithm>

#include <ATen/Parallel.h>

#include "rmoe/base/process.h"
#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/train/machine.h"

namespace rmoe::bench {

void measure_again(Machine& m, at::Device device) {
  const MemoryRate memory = measured_memory_rate(device);
  m.fp32_flops = std::max(m.fp32_flops, measure_peak_flops(Precision::kFp32, device));
  m.bf16_flops = std::max(m.bf16_flops, measure_peak_flops(Precision::kBf16, device));
  m.triad_bytes = std::max(m.triad_bytes, memory.triad);
  m.read_bytes = std::max(m.read_bytes, memory.read);
}

Machine measure_machine(at::Device device) {
  Machine machine{.cpu = cpu_model(), .isa = kernels::isa_name(kernels::cpu_isa()), .threads = at::get_num_threads()};
  if (!device.is_cpu()) machine.isa = device.str();
  measure_again(machine, device);
  return machine;
}

}  // namespace rmoe::bench
