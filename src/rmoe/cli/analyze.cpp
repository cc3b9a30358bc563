// rmoe analyze: what the routers of some runs do, as numbers, plots and a page.
#include "rmoe/analysis/analyze.h"

#include <filesystem>
#include <iomanip>
#include <iostream>
#include <memory>

#include <CLI/CLI.hpp>

#include "rmoe/analysis/report.h"
#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/cli/command.h"
#include "rmoe/compare/report.h"

namespace rmoe::cli {
namespace {

struct Options {
  analysis::AnalyzeCommand command;
  std::string out, dtype;
};

std::filesystem::path out_folder(const Options& options) {
  if (!options.out.empty()) return options.out;
  const std::string& run = options.command.runs.front();
  RMOE_CHECK(options.command.runs.size() == 1, "analyze: ", options.command.runs.size(),
             " runs and no --out: name the folder for the plots and the report");
  return std::filesystem::is_directory(run) ? std::filesystem::path(run) / "analysis"
                                            : std::filesystem::path(run).replace_extension(".analysis");
}

// The command line again, for the report's reader.
std::string command_line(const Options& options, const std::string& folder) {
  std::string line = "rmoe analyze";
  for (const std::string& run : options.command.runs) line += " " + compare::shell_word(run);
  const auto add = [&](const char* option, const std::string& value) {
    line += str(" ", option, " ", compare::shell_word(value));
  };
  for (const std::string& trace : options.command.traces) add("--from", trace);
  if (!options.command.data.empty()) add("--data", options.command.data);
  if (options.command.split != "valid") add("--split", options.command.split);
  if (options.command.checkpoint != "newest") add("--checkpoint", options.command.checkpoint);
  if (options.command.tokens > 0) add("--tokens", std::to_string(options.command.tokens));
  if (options.command.gradient_batches != analysis::AnalyzeCommand{}.gradient_batches)
    add("--gradient-batches", std::to_string(options.command.gradient_batches));
  if (!options.dtype.empty()) add("--dtype", options.dtype);
  add("--out", folder);
  return line;
}

void print(const Json& result, const std::string& folder) {
  std::ostringstream out;
  const auto number = [&](const Json& value, int digits) {
    std::ostringstream text;
    if (value.is_number()) {
      text << std::fixed << std::setprecision(digits) << value.get<double>();
    } else {
      text << "-";
    }
    return text.str();
  };
  const auto member = [](const Json& run, const char* a, const char* b) {
    return run.at(a).is_object() && run.at(a).contains(b) ? run.at(a).at(b) : Json();
  };
  for (const Json& run : result.at("runs")) {
    const Json inner = member(run, "balance", "inner"), outer = member(run, "balance", "outer");
    out << run.at("path").get<std::string>() << ", " << analysis::steps_text(run) << ", " << run.at("tokens")
        << " tokens\n";
    const auto row = [&](const char* name, const std::string& text) {
      out << "  " << std::left << std::setw(28) << name << text << "\n";
    };
    row("bits per character", number(run.at("bits_per_character"), 4));
    row("information across layers", number(member(run, "mutual_information", "mean"), 4) + " nats");
    row("gate entropy", number(member(run, "gate_entropy", "mean"), 4) + " nats");
    row("inner / outer balance", number(inner.is_object() ? inner.at("median") : Json(), 3) + " / " +
                                     number(outer.is_object() ? outer.at("median") : Json(), 3) + " (medians)");
    row("load imbalance", number(run.at("selection").at("imbalance"), 2) + ", " +
                              std::to_string(run.at("selection").at("dead").get<int64_t>()) + " dead experts");
    row("entropy of paths", number(run.at("paths").at("entropy"), 3) + " nats, " +
                                number(run.at("paths").at("independent_entropy"), 3) + " if layers were independent");
  }
  out << "  report: " << folder << "/report.html\n";
  std::cout << out.str();
}

void setup(CLI::App& app, Globals& globals) {
  auto options = std::make_shared<Options>();
  analysis::AnalyzeCommand& c = options->command;
  app.add_option("RUN", c.runs, "run folders, or traces that --trace wrote")->required();
  app.add_option("--from", c.traces, "a trace of the run, read instead of text; for several runs one for each")
      ->allow_extra_args(false);
  app.add_option("--data", c.data, "data folder or token file (default: what each run was trained on)");
  app.add_option("--split", c.split, "valid, test or train")
      ->check(CLI::IsMember({"valid", "test", "train"}))
      ->capture_default_str();
  app.add_option("--checkpoint", c.checkpoint, "newest, best or a step")->capture_default_str();
  app.add_option("--tokens", c.tokens, "only this many tokens of the split's start")
      ->check(integer(1, int64_t{1} << 40));
  app.add_option("--gradient-batches", c.gradient_batches, "batches on which gradients are measured; 0: none")
      ->check(integer(0, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--dtype", options->dtype, "fp32 or bf16, to read text in (default: each run's)")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  add_device_option(app, c.device);
  app.add_option("--out", options->out, "folder for the results (default: RUN/analysis; needed for several runs)");
  app.callback([options, &globals] {
    analysis::AnalyzeCommand& command = options->command;
    command.threads = globals.threads;
    if (!options->dtype.empty()) command.dtype = options->dtype == "bf16" ? Precision::kBf16 : Precision::kFp32;
    const std::filesystem::path folder = out_folder(*options);
    const Json result = analysis::analyze(command);
    analysis::write_analysis(result, folder, command_line(*options, folder.string()));
    if (globals.json) {
      std::cout << json_text(result) << "\n";
    } else {
      print(result, folder.string());
    }
  });
}

RMOE_REGISTER_COMMAND("analyze", "what the routers do: the paper's analyses and more, with plots and a report",
                      "rmoe analyze runs/smoe-1 runs/rmoe-1 --tokens 100000 --out runs/analysis", setup);

}  // namespace
}  // namespace rmoe::cli
