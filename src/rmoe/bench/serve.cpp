// The process that runs one variant of a workload, on demand.
#include <istream>
#include <ostream>

#include <ATen/Parallel.h>

#include "rmoe/base/process.h"
#include "rmoe/bench/workload.h"
#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/ops/device.h"
#include "rmoe/ops/runtime.h"

namespace rmoe::bench {
namespace {

// Iterations of a round: as many as fit into this long.
double round_seconds(const BenchOptions& options) { return options.quick ? 0 : 0.5; }

Json round(Workload& workload, at::Device device, const BenchOptions& options) {
  const int64_t faults = page_faults();
  std::vector<double> seconds;
  for (double sum = 0; seconds.empty() || sum < round_seconds(options); sum += seconds.back()) {
    seconds.push_back(workload.run());
  }
  const Times times = times_of(seconds);
  return {{"best_s", times.best},
          {"median_s", times.median},
          {"seconds", seconds},
          {"page_faults", static_cast<double>(page_faults() - faults) / static_cast<double>(times.count)},
          {"peak_memory_bytes", memory_peak_bytes(device)}};
}

}  // namespace

void serve(const WorkloadCommand& command, std::istream& in, std::ostream& out) {
  configure_runtime(command.options.threads > 0 ? command.options.threads : command.config.train.threads);
  const auto start = std::chrono::steady_clock::now();
  const auto since_start = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const RunConfig config = resolved(command.config);
  const at::Device device = device_named(config.train.device);
  const WorkloadSize size = workload_size(command.kind, config);
  const auto workload = make_workload(command.kind, config, command.trace);
  const double setup = since_start();
  const double first = workload->run();
  const int64_t warm_up = command.options.quick ? 1 : 3;  // allocators and kernels that are made on first use
  for (int64_t i = 1; i < warm_up; ++i) workload->run();
  const auto line = [&](const Json& json) { out << json_text(json) << std::endl; };
  line({{"ready", true},
        {"workload", workload_name(command.kind)},
        {"isa", kernels::isa_name(kernels::cpu_isa())},
        {"threads", at::get_num_threads()},
        {"setup_s", setup},
        {"first_s", first},
        {"warmup_s", since_start()},
        {"params", size.params},
        {"tokens", size.tokens},
        {"flops", size.flops},
        {"bytes", size.bytes},
        {"peak_memory_bytes", memory_peak_bytes(device)}});
  for (std::string request; std::getline(in, request);) {
    Json answer = round(*workload, device, command.options);
    answer["tokens_per_s"] = size.tokens / answer["best_s"].get<double>();
    line(answer);
  }
}

}  // namespace rmoe::bench
