// rmoe bench: speed, memory and share of the machine's peak, against plain formulas in the same run.
#include <iostream>
#include <memory>

#include <CLI/CLI.hpp>

#include "rmoe/base/config.h"
#include "rmoe/base/json.h"
#include "rmoe/base/log.h"
#include "rmoe/bench/commands.h"
#include "rmoe/cli/command.h"

namespace rmoe::cli {
namespace {

using bench::BenchOptions;
using bench::WorkloadKind;

// This program, for the processes of the variants.
constexpr const char* kThisProgram = "/proc/self/exe";
constexpr int64_t kMostRounds = 100000;

template <class Report>
void print(const Report& report, bool json) {
  std::cout << (json ? json_text(report.json(), 1) + "\n" : report.text());
}

void add_common(CLI::App& app, BenchOptions& options, const char* example) {
  app.add_option("--rounds", options.rounds, "turns of each side (default 7; quick 3)")->check(integer(1, kMostRounds));
  app.add_flag("--quick", options.quick, "short rounds: ratios in a fraction of the time, less exact");
  app.footer(str("Example:\n  ", example, "\n\n--json, --quiet and --threads: see `rmoe --help`."));
}

void setup_op(CLI::App& app, Globals& globals) {
  struct Options {
    bench::OpCommand command;
    std::string dtype;
  };
  auto options = std::make_shared<Options>();
  app.add_option("NAME", options->command.op, "name of the op, or all")->required();
  app.add_option("--filter", options->command.filter, "only cases with this in 'OP CASE'");
  app.add_option("--dtype", options->dtype, "bf16 or fp32 (default: both)")->check(CLI::IsMember({"bf16", "fp32"}));
  app.add_flag("--check", options->command.check,
               "exit code 1 where our code is below half of its stated ratio to the plain formula");
  add_common(app, options->command.options, "rmoe bench op linear --dtype bf16");
  app.callback([options, &globals] {
    if (options->dtype == "bf16") options->command.dtype = Precision::kBf16;
    if (options->dtype == "fp32") options->command.dtype = Precision::kFp32;
    options->command.options.threads = globals.threads;
    const bench::OpReport report = bench::bench_op(options->command);
    print(report, globals.json);
    if (report.failures.empty()) return;
    std::string message = str("bench op: ", report.failures.size(), " below half of the stated ratio: ");
    for (size_t i = 0; i < report.failures.size(); ++i) message += (i > 0 ? "; " : "") + report.failures[i];
    log_line(message);
    globals.exit_code = static_cast<int>(Exit::kBug);
  });
}

void setup_workload(CLI::App& app, Globals& globals, WorkloadKind kind, const char* example) {
  struct Options {
    bench::WorkloadCommand command;
    bool no_plain = false, serve = false, profile = false;
    std::string trace = "off", device;
  };
  auto options = std::make_shared<Options>();
  const bool layer = kind == WorkloadKind::kLayer;
  options->command.kind = kind;
  auto* config = app.add_option("CONFIG", options->command.config_name,
                                layer ? "config whose MoE layer to take (default: width 1280, 16 experts of 448, top-4)"
                                      : "config file (TOML); any key of it can be given as a flag");
  if (!layer) config->required();
  app.add_flag("--no-plain", options->no_plain, "without the variant that uses no kernels of ours");
  if (kind == WorkloadKind::kStep) {
    app.add_flag("--profile", options->profile, "where the step's time goes, by layer and by op, instead");
  }
  if (kind == WorkloadKind::kEval) {
    app.add_option("--trace", options->trace, "with --serve: what to record, off, choices or all")
        ->check(CLI::IsMember({"off", "choices", "all"}))
        ->capture_default_str();
  }
  app.add_flag("--serve", options->serve, "one round per line of standard input, answered in JSON");
  add_device_option(app, options->device);
  add_common(app, options->command.options, example);
  take_config_flags<RunConfig>(app, globals);
  app.callback([options, layer, &globals] {
    bench::WorkloadCommand& command = options->command;
    Node tree = command.config_name.empty() ? parse_toml(bench::default_layer_config(), "bench layer")
                                            : parse_toml_file(command.config_name);
    merge(tree, parse_flags(globals.config_flags));
    bind(command.config, tree);
    if (!options->device.empty()) command.config.train.device = options->device;
    if (layer && command.config_name.empty()) command.config_name = command.config.name;
    command.plain = !options->no_plain;
    using bench::Tracing;
    command.trace = options->trace == "all"       ? Tracing::kAll
                    : options->trace == "choices" ? Tracing::kChoices
                                                  : Tracing::kOff;
    command.options.threads = globals.threads;
    if (options->serve) {
      bench::serve(command, std::cin, std::cout);
    } else if (options->profile) {
      print(bench::profile_step(command), globals.json);
    } else {
      print(bench::bench_workload(command, kThisProgram), globals.json);
    }
  });
}

void setup(CLI::App& app, Globals& globals) {
  app.require_subcommand(1);
  setup_op(*app.add_subcommand("op", "single ops against their plain formulas"), globals);
  const auto add = [&](WorkloadKind kind, const char* summary, const char* example) {
    setup_workload(*app.add_subcommand(bench::workload_name(kind), summary), globals, kind, example);
  };
  add(WorkloadKind::kLayer, "one MoE layer, forward and backward", "rmoe bench layer --model.moe.experts=64");
  add(WorkloadKind::kStep, "training steps of a config on random tokens",
      "rmoe bench step configs/llama_laptop_rmoe.toml --profile");
  add(WorkloadKind::kDecode, "generation, one token at a time", "rmoe bench decode configs/llama_laptop_rmoe.toml");
  add(WorkloadKind::kPrompt, "reading prompts: train.batch texts of train.block tokens",
      "rmoe bench prompt configs/llama_laptop_rmoe.toml");
  add(WorkloadKind::kEval, "evaluation of train.batch texts of train.block tokens, and what a trace of it costs",
      "rmoe bench eval configs/bench_span_rmoe.toml");
}

RMOE_REGISTER_COMMAND("bench", "speed, memory and share of the machine's peak",
                      "rmoe bench step configs/llama_laptop_rmoe.toml", setup);

}  // namespace
}  // namespace rmoe::cli
