// rmoe train: trains a model from a config.
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <memory>
#include <optional>

#include <CLI/App.hpp>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/cli/command.h"
#include "rmoe/cli/trace_options.h"
#include "rmoe/config/load.h"
#include "rmoe/train/plan.h"
#include "rmoe/train/run.h"

namespace rmoe::cli {
namespace {

struct Options {
  std::string config, out, resume = "auto", init, device;
  bool plan = false;
  TraceOptions trace;
};

Json optional_json(std::optional<int64_t> value) { return value ? Json(*value) : Json(); }

void show_plan(const RunConfig& config, bool json) {
  const TrainPlan plan = plan_training(config);
  if (json) {
    std::cout << json_text({{"params", plan.params},
                            {"active_params", plan.active_params},
                            {"parameter_bytes", plan.parameter_bytes},
                            {"gradient_bytes", plan.gradient_bytes},
                            {"optimizer_bytes", plan.optimizer_bytes},
                            {"activation_bytes", optional_json(plan.activation_bytes)},
                            {"peak_bytes", optional_json(plan.peak_bytes)},
                            {"machine_bytes", plan.machine_bytes}})
              << "\n";
    return;
  }
  const auto line = [](const char* name, const std::string& value, const std::string& note) {
    std::cout << std::left << std::setw(12) << name << std::right << std::setw(10) << value
              << (note.empty() ? "" : "   ") << note << "\n";
  };
  const auto measured = [](std::optional<int64_t> bytes) { return bytes ? human_bytes(*bytes) : std::string("?"); };
  const TrainConfig& t = config.train;
  const bool on_cpu = t.device == "cpu";
  line("parameters", human_bytes(plan.parameter_bytes),
       str(plan.params, " of them, ", plan.active_params, " active per token"));
  line("gradients", human_bytes(plan.gradient_bytes), "");
  line("optimizer", human_bytes(plan.optimizer_bytes), "two moments");
  line(
      "activations", measured(plan.activation_bytes),
      str("of a micro-batch, ", t.batch / t.accumulate, " x ", t.block, " tokens, recompute ", enum_name(t.recompute)));
  line("peak", measured(plan.peak_bytes),
       plan.peak_bytes ? str(on_cpu ? "of the whole process" : "of tensors", ", in two steps on random tokens")
                       : str("not measured: more than this ", on_cpu ? "machine" : "device", " has"));
  line(on_cpu ? "machine" : "device", human_bytes(plan.machine_bytes), "");
}

void setup(CLI::App& app, Globals& globals) {
  auto options = std::make_shared<Options>();
  app.add_option("CONFIG", options->config, "config file (TOML); any key of it can be given as a flag");
  CLI::Option* folder = app.add_option("--out", options->out, "run folder; without it, runs/CONFIG-SEED");
  app.add_option("--resume", options->resume, "auto: go on where the folder's run stopped, or start; never; must")
      ->check(CLI::IsMember({"auto", "never", "must"}));
  app.add_option(
      "--init", options->init,
      "run to start from, as train.init: its newest weights, and its model where CONFIG and flags say nothing");
  app.add_flag("--plan", options->plan, "only say how much memory the run needs; trains and writes nothing")
      ->excludes(folder);
  add_device_option(app, options->device);
  add_trace_options(app, options->trace, /*steps=*/true);
  take_config_flags<RunConfig>(app, globals);
  app.callback([options, &globals] {
    RunConfig config = load_run_config(options->config, globals.config_flags, options->init, options->out);
    if (globals.threads > 0) config.train.threads = globals.threads;
    if (!options->device.empty()) config.train.device = options->device;
    if (options->plan) return show_plan(config, globals.json);
    const std::string stem = options->config.empty() ? "run" : std::filesystem::path(options->config).stem().string();
    const std::string out = options->out.empty() ? str("runs/", stem, "-", config.train.seed) : options->out;
    const Resume resume = options->resume == "auto"    ? Resume::kAuto
                          : options->resume == "never" ? Resume::kNever
                                                       : Resume::kMust;
    const TrainReport report = train(std::move(config), out, resume, options->trace);
    if (globals.json) {
      std::cout << json_text({{"run", out},
                              {"steps", report.steps},
                              {"valid_bpc", report.valid_bits},
                              {"finished", report.finished}})
                << "\n";
    } else {
      std::cout << out << "\n";
    }
    if (report.signal) globals.exit_code = 128 + report.signal;
  });
}

RMOE_REGISTER_COMMAND("train", "train a model", "rmoe train configs/demo_rmoe.toml --data.path=data/kjv --out runs/a",
                      setup);

}  // namespace
}  // namespace rmoe::cli
