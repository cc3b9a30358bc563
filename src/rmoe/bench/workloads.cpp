// The comparison of a workload's variants, and the profile of a step.
#include <chrono>
#include <memory>

#include "rmoe/base/child.h"
#include "rmoe/base/config.h"
#include "rmoe/base/files.h"
#include "rmoe/base/log.h"
#include "rmoe/bench/machine.h"
#include "rmoe/bench/recorder.h"
#include "rmoe/bench/temporary.h"
#include "rmoe/bench/workload.h"
#include "rmoe/ops/device.h"
#include "rmoe/ops/runtime.h"

namespace rmoe::bench {
namespace {

int64_t threads_of(const WorkloadCommand& command) {
  return command.options.threads > 0 ? command.options.threads : command.config.train.threads;
}

struct Variant {
  std::string name;
  RunConfig config;
  std::vector<std::string> settings;  // of the environment
  std::vector<std::string> arguments = {};
};

std::vector<Variant> variants_of(const WorkloadCommand& command) {
  std::vector<Variant> variants{{"ours", command.config, {}}};
  if (command.config.model.moe.stage.kind() != "none") {
    variants.push_back({"smoe", command.config, {}});
    variants.back().config.model.moe.stage = Choice<routing::StageRegistry>{"none"};
  }
  if (command.kind == WorkloadKind::kEval) {
    variants.push_back({"traced", command.config, {}, {"--trace", "choices"}});
    variants.push_back({"traced all", command.config, {}, {"--trace", "all"}});
  }
  if (command.plain) variants.push_back({"plain", command.config, {"RMOE_CPU_ISA=plain", "RMOE_DEVICE_KERNELS=0"}});
  return variants;
}

// The process of one variant and what it has said so far.
struct Running {
  Running(const Variant& variant, const WorkloadCommand& command, const std::string& program,
          const std::filesystem::path& folder) {
    row.name = variant.name;
    const auto config = folder / (variant.name + ".toml");
    write_file_atomic(config, to_toml(variant.config));
    std::vector<std::string> arguments{"bench", workload_name(command.kind), config.string(), "--serve", "--quiet"};
    arguments.insert(arguments.end(), variant.arguments.begin(), variant.arguments.end());
    if (command.options.quick) arguments.emplace_back("--quick");
    if (const int64_t threads = threads_of(command); threads > 0) {
      arguments.insert(arguments.end(), {"--threads", std::to_string(threads)});
    }
    process = std::make_unique<Child>(str("bench: the process of variant '", variant.name, "'"), program, arguments,
                                      variant.settings);
    const Json ready = answer();
    row.first = ready.at("first_s");
    row.tokens = ready.at("tokens");
    row.flops = ready.at("flops");
    row.bytes = ready.at("bytes");
    params = ready.at("params");
    row.peak_memory = ready.at("peak_memory_bytes");
  }

  void round() {
    process->write_line("round");
    const Json done = answer();
    for (const Json& s : done.at("seconds")) seconds.push_back(s);
    faults.push_back(done.at("page_faults"));
    row.peak_memory = done.at("peak_memory_bytes");
  }

  VariantRow result() const {
    VariantRow out = row;
    out.times = times_of(seconds);
    out.page_faults = times_of(faults).median;
    return out;
  }

  Json answer() { return parse_json(process->read_line(), "bench: variant " + row.name); }

  VariantRow row;
  int64_t params = 0;
  std::unique_ptr<Child> process;
  std::vector<double> seconds, faults;
};

}  // namespace

WorkloadReport bench_workload(const WorkloadCommand& command, const std::string& program) {
  workload_size(command.kind, resolved(command.config));  // refuses what does not fit, before processes are started
  configure_runtime(threads_of(command));
  WorkloadReport report;
  report.kind = command.kind;
  report.config_name = command.config_name;
  report.dtype = command.config.train.dtype;
  const at::Device device = device_named(command.config.train.device);
  report.machine = measure_machine(device);
  Progress progress;
  const TemporaryFolder folder;
  std::vector<std::unique_ptr<Running>> running;
  for (const Variant& variant : variants_of(command)) {
    if (progress.due()) progress.update("bench " + workload_name(command.kind) + ": starting " + variant.name);
    running.push_back(std::make_unique<Running>(variant, command, program, folder.path()));
  }
  const int64_t rounds = command.options.number_of_rounds();
  for (int64_t round = 0; round < rounds; ++round) {
    if (progress.due()) progress.update(str("bench ", workload_name(command.kind), ": round ", round + 1, "/", rounds));
    for (const size_t turn : turns(round, running.size())) running[turn]->round();
  }
  measure_again(report.machine, device);
  for (const auto& one : running) report.variants.push_back(one->result());
  report.params = running.front()->params;
  return report;
}

ProfileReport profile_step(const WorkloadCommand& command) {
  configure_runtime(threads_of(command));
  const RunConfig config = resolved(command.config);
  workload_size(WorkloadKind::kStep, config);
  ProfileReport report;
  report.config_name = command.config_name;
  report.machine = measure_machine(device_named(config.train.device));
  const auto step = make_workload(WorkloadKind::kStep, config);
  for (int64_t i = 0; i < 3; ++i) step->run();
  Profile profile;
  std::vector<double> without;
  const int64_t rounds = command.options.number_of_rounds();
  for (int64_t round = 0; round < rounds; ++round) {
    without.push_back(step->run());
    const Recorder recorder(profile);
    step->run();
  }
  report.without = times_of(without);
  report.profile = profile.json(rounds);
  report.profile_text = profile.text(rounds);
  return report;
}

}  // namespace rmoe::bench
