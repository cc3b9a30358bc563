// rmoe compare: runs side by side, grouped by configuration and paired by seed; as a table and as a report.
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include <CLI/App.hpp>
#include <CLI/Validators.hpp>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/base/log.h"
#include "rmoe/cli/command.h"
#include "rmoe/compare/comparison.h"
#include "rmoe/compare/report.h"
#include "rmoe/compare/run.h"
#include "rmoe/compare/table.h"

namespace rmoe::cli {
namespace {

struct Options {
  std::vector<std::string> runs;
  std::string format = "text", metric, report;
  double margin = 0.5;  // percent
  bool anyway = false;
};

// What compares the runs after they were trained again, for the report's reader.
std::string command_line(const compare::Comparison& comparison, const Options& options) {
  std::string line = "rmoe compare";
  for (const compare::Group& group : comparison.groups) {
    for (const compare::Run& run : group.runs) line += " " + compare::shell_word(run.path + compare::kAgain);
  }
  if (!options.metric.empty()) line += " --metric " + options.metric;
  if (options.margin != Options{}.margin) line += str(" --margin ", options.margin);
  if (options.anyway) line += " --anyway";
  const std::filesystem::path report = options.report;
  const std::string again = report.stem().string() + compare::kAgain + report.extension().string();
  return line + " --report " + compare::shell_word((report.parent_path() / again).string());
}

void write_report(const compare::Comparison& comparison, const Options& options) {
  if (options.report.empty()) return;
  write_file_atomic(options.report, compare::report_html(comparison, command_line(comparison, options)));
  log_info("report: ", options.report);
}

void setup(CLI::App& app, Globals& globals) {
  auto options = std::make_shared<Options>();
  app.add_option("RUN", options->runs, "run folders, evaluated; those that differ in the seed only make one group")
      ->required();
  app.add_option("--format", options->format, "text, markdown or csv")
      ->check(CLI::IsMember({"text", "markdown", "csv"}))
      ->capture_default_str();
  app.add_option("--metric", options->metric,
                 "split that differences are computed on, test or valid; without it, test where all runs have it")
      ->check(CLI::IsMember({"test", "valid"}));
  app.add_option("--margin", options->margin, "percent of the baseline's mean: smaller differences count as equal")
      ->check(CLI::Range(0.001, 99.0))
      ->capture_default_str();
  app.add_flag("--anyway", options->anyway, "also test runs on different data or of different budgets");
  app.add_option("--report", options->report, "also write a self-contained page with plots and samples to this file");
  app.callback([options, &globals] {
    if (!options->report.empty()) check_writable(options->report);
    std::vector<compare::Run> runs;
    for (const std::string& path : options->runs) runs.push_back(compare::read_run(path));
    const compare::Comparison comparison = compare::compare_runs(
        std::move(runs), {.split = options->metric, .margin = options->margin / 100, .anyway = options->anyway});
    if (globals.json) {
      write_report(comparison, *options);  // first: a failure must be the only object on standard output
      std::cout << json_text(compare::to_json(comparison), 1) << "\n";
      return;
    }
    std::cout << (options->format == "markdown" ? compare::to_markdown(comparison)
                  : options->format == "csv"    ? compare::to_csv(comparison)
                                                : compare::to_text(comparison))
              << std::flush;
    write_report(comparison, *options);
  });
}

RMOE_REGISTER_COMMAND("compare", "runs side by side: mean, deviation and paired differences over seeds, cost, routing",
                      "rmoe compare runs/smoe-*/ runs/rmoe-*/ --report report.html", setup);

}  // namespace
}  // namespace rmoe::cli
