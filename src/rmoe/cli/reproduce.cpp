// rmoe reproduce: trains the models behind a table or figure of the paper and prints the result beside its numbers.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <set>

#include <CLI/CLI.hpp>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/base/log.h"
#include "rmoe/base/process.h"
#include "rmoe/cli/command.h"
#include "rmoe/config/run.h"
#include "rmoe/reproduce/entries.h"
#include "rmoe/reproduce/grid.h"
#include "rmoe/reproduce/result.h"
#include "rmoe/reproduce/scale.h"

namespace rmoe::cli {
namespace {

namespace fs = std::filesystem;
using namespace reproduce;

constexpr const char* kThisProgram = "/proc/self/exe";

struct Options {
  std::vector<std::string> names;
  std::string scale = "cpu", configs = "configs", data, out, format = "text";
  int64_t seeds = 3, processes = 0;
  bool list = false, plan = false;
  std::vector<std::string> flags;  // of every training
  int64_t threads = 0;

  Scale size() const { return scale == "paper" ? Scale::kPaper : Scale::kCpu; }
  fs::path folder() const { return out.empty() ? fs::path("runs/reproduce") / scale : fs::path(out); }
  // A small model leaves a second core idle half of the time; two of them side by side do not.
  int64_t threads_each() const { return threads > 0 ? threads : size() == Scale::kCpu ? 1 : usable_cpus(); }
  int64_t at_once() const { return processes > 0 ? processes : std::max<int64_t>(1, usable_cpus() / threads_each()); }
};

void print_list(bool json) {
  Json all = Json::array();
  for (const Entry& entry : entries()) {
    if (json) {
      all.push_back({{"name", entry.name},
                     {"covers", entry.covers},
                     {"title", entry.title},
                     {"models", entry.rows.size()},
                     {"data", entry.data}});
    } else {
      std::cout << std::left << std::setw(18) << entry.name << entry.title << " (" << entry.rows.size() << " models";
      for (const std::string& name : entry.covers)
        std::cout << (&name == &entry.covers.front() ? "; also " : ", ") << name;
      std::cout << ")\n";
    }
  }
  if (json) std::cout << json_text(all, 1) << "\n";
}

// The folder of token files: the one given, the paper's (by its usual place), or the dictionary, prepared on first use.
std::string data_folder(const Options& options, const Entry& entry) {
  if (!options.data.empty()) return options.data;
  if (options.size() == Scale::kPaper) {
    const std::string name = entry.data.empty() ? "pretrain" : entry.data, folder = "data/" + name;
    if (!fs::exists(fs::path(folder) / "data.json")) {
      throw Error(Exit::kBadInput,
                  str("reproduce: ", entry.name, " at the paper's scale reads ", folder, ", which is not there"),
                  entry.data.empty() ? "make it with `rmoe data prepare`, or name another with --data"
                                     : str("`rmoe data prepare --preset ", name, " --out ", folder, "` makes it"));
    }
    return folder;
  }
  const fs::path folder = options.folder() / "data";
  if (!fs::exists(folder / "data.json")) {
    log_info("reproduce: preparing the dictionary of the package dict-gcide");
    fs::create_directories(options.folder() / "logs");
    run_once(kThisProgram, {"data", "prepare", "--preset", "gcide", "--out", folder.string(), "--quiet"},
             options.folder() / "logs" / "data.log");
  }
  return folder.string();
}

std::string job_name(const Row& row, int64_t seed) { return str(fs::path(row.config).stem().string(), "-s", seed); }

fs::path config_of(const Options& options, const Row& row) {
  fs::path path = fs::path(options.configs) / row.config;
  if (!fs::exists(path)) {
    throw Error(Exit::kBadInput, str("reproduce: ", path.string(), " does not exist"),
                "--configs names the folder of rmoe's configs");
  }
  return path;
}

// What the evaluations after a training read: the validation and the test split.
int64_t evaluated_tokens(const std::string& data) {
  const fs::path path = fs::path(data) / "data.json";
  const Json splits = json_member(read_json_file(path), "splits", path.string());
  int64_t tokens = 0;
  for (const char* split : {"valid", "test"}) {
    tokens += json_int(json_member(splits, split, path.string()), "tokens", path.string());
  }
  return tokens;
}

Job make_job(const Options& options, const Row& row, const std::string& data, int64_t seed) {
  Job job;
  job.name = job_name(row, seed);
  job.config = config_of(options, row).string();
  job.flags = scale_flags(options.size(), job.config);
  job.flags.push_back("--data.path=" + data);
  job.flags.push_back(str("--train.seed=", seed));
  job.flags.insert(job.flags.end(), options.flags.begin(), options.flags.end());
  job.folder = options.folder() / job.name;
  const Budget budget = budget_of(job.config, job.flags);
  job.steps = budget.steps;
  constexpr int64_t kForwardsPerStep = 3;  // a backward pass is two
  job.work = static_cast<double>(budget.steps) +
             static_cast<double>(evaluated_tokens(data)) / static_cast<double>(kForwardsPerStep * budget.step_tokens);
  return job;
}

// All models with the first seed, then all with the next: what is there after a stop compares.
std::vector<Job> make_jobs(const Options& options, const std::vector<Entry>& chosen) {
  std::vector<Job> jobs;
  std::set<std::string> names;
  for (int64_t seed = 1; seed <= options.seeds; ++seed) {
    for (const Entry& entry : chosen) {
      const std::string data = data_folder(options, entry);
      for (const Row& row : entry.rows) {
        if (names.insert(job_name(row, seed)).second) jobs.push_back(make_job(options, row, data, seed));
      }
    }
  }
  return jobs;
}

// The seconds that the whole grid will take, from some steps of every model; 0 where nothing is left to do.
double estimate(const Options& options, const std::vector<Job>& jobs) {
  double seconds = 0;
  std::map<std::string, double> step_seconds;  // by config
  for (const Job& job : jobs) {
    if (is_done(job)) continue;
    auto known = step_seconds.find(job.config);
    if (known == step_seconds.end()) {
      std::vector<std::string> words{"bench", "step", job.config};
      words.insert(words.end(), job.flags.begin(), job.flags.end());
      words.insert(words.end(), {"--quick", "--rounds", "1", "--no-plain", "--json", "--quiet", "--threads",
                                 std::to_string(options.threads_each())});
      const Json report = parse_json(output_of(kThisProgram, words, options.folder() / "logs" / "estimate.log"),
                                     "reproduce: the estimate");
      const double median = report.at("variants").at(0).at("times").at("median_s").get<double>();
      known = step_seconds.emplace(job.config, median).first;
    }
    seconds += known->second * job.work;
  }
  return seconds / static_cast<double>(options.at_once());
}

// Looks into every run of the entry; the page and the plots go to the entry's own folder.
void analyze(const Options& options, const Entry& entry, std::vector<RowResult>& rows) {
  const fs::path folder = options.folder() / entry.name;
  std::vector<std::string> words{"analyze"};
  for (const RowResult& row : rows) {
    for (const compare::Run& one : row.runs) words.push_back(one.path);
  }
  if (words.size() == 1) return;
  constexpr const char *kTokens = "100000", *kBatches = "4";
  words.insert(words.end(), {"--tokens", kTokens, "--gradient-batches", entry.look == Look::kGradients ? kBatches : "0",
                             "--out", folder.string(), "--json", "--quiet"});
  const Json report = parse_json(output_of(kThisProgram, words, options.folder() / "logs" / (entry.name + ".log")),
                                 "reproduce: the analysis");
  size_t next = 0;
  const auto value = [](const Json& object, const char* key) {
    return object.is_object() && object.at(key).is_number() ? object.at(key).get<double>() : std::nan("");
  };
  for (RowResult& row : rows) {
    for (size_t i = 0; i < row.runs.size(); ++i) {
      const Json& found = report.at("runs").at(next++);
      Analyzed& one = row.analyzed.emplace_back();
      if (const Json& balance = found.at("balance"); balance.is_object()) {
        one.inner = value(balance.at("inner"), "median");
        one.outer = value(balance.at("outer"), "median");
      }
      const Json& gradients = found.at("gradients");
      one.gradient = value(gradients, "whole");
      one.lm_gradient = value(gradients, "lm");
      one.balance_gradient = value(gradients, "balance");
      one.dropped = value(gradients, "drop_ratio");
    }
  }
  log_info("reproduce: ", entry.name, ": plots and page in ", folder.string());
}

Result read_result(const Options& options, const Entry& entry, const GridResult& grid) {
  std::vector<RowResult> rows;
  for (const Row& row : entry.rows) {
    RowResult result;
    result.row = row;
    for (int64_t seed = 1; seed <= options.seeds; ++seed) {
      const std::string name = job_name(row, seed);
      if (std::find(grid.diverged.begin(), grid.diverged.end(), name) != grid.diverged.end()) {
        result.diverged.push_back(seed);
      } else {
        result.runs.push_back(compare::read_run((options.folder() / name).string()));
      }
    }
    rows.push_back(std::move(result));
  }
  if (entry.look != Look::kNone) analyze(options, entry, rows);
  return make_result(entry, options.scale, std::move(rows));
}

void run(const Options& options, Globals& globals) {
  std::vector<Entry> chosen;
  for (const std::string& name : options.names) {
    const Entry& entry = find_entry(name);
    const bool known = std::any_of(chosen.begin(), chosen.end(), [&](const Entry& e) { return e.name == entry.name; });
    if (!known) chosen.push_back(entry);
  }
  const std::vector<Job> jobs = make_jobs(options, chosen);
  const auto done = std::count_if(jobs.begin(), jobs.end(), is_done);
  if (done < std::ssize(jobs) || options.plan) {
    fs::create_directories(options.folder() / "logs");
    log_info("reproduce: measuring some steps of every model, for the estimate");
    const double seconds = estimate(options, jobs);
    const std::string announcement =
        str("reproduce: ", jobs.size(), " runs of ", jobs.front().steps, " steps in ", options.folder().string(), ", ",
            done, " of them done; ", options.at_once(), " at a time with ", options.threads_each(),
            options.threads_each() == 1 ? " thread" : " threads", " each; about ", duration_text(seconds), " to go");
    options.plan ? void(std::cout << announcement << "\n") : log_info(announcement);
    if (options.plan) return;
  }
  const GridResult grid = run_grid(jobs, {.program = kThisProgram,
                                          .processes = options.at_once(),
                                          .threads = options.threads_each(),
                                          .logs = options.folder() / "logs"});
  if (grid.signal != 0) {
    log_info("reproduce: stopped; the same command goes on from here");
    globals.exit_code = 128 + static_cast<int>(grid.signal);
    return;
  }
  Json all = Json::array();
  for (const Entry& entry : chosen) {
    const Result result = read_result(options, entry, grid);
    write_file_atomic(options.folder() / (entry.name + ".md"), to_markdown(result));
    write_file_atomic(options.folder() / (entry.name + ".json"), json_text(to_json(result), 1) + "\n");
    all.push_back(to_json(result));
    if (globals.json) continue;
    std::cout << (&entry == &chosen.front() ? "" : "\n")
              << (options.format == "markdown" ? to_markdown(result) : to_text(result));
  }
  if (globals.json) std::cout << json_text(all, 1) << "\n";
}

void setup(CLI::App& app, Globals& globals) {
  auto options = std::make_shared<Options>();
  app.add_option("NAME", options->names, "tables and figures: table1, figure2, ...; --list shows all");
  app.add_flag("--list", options->list, "what can be named, and nothing else");
  app.add_option("--scale", options->scale, "cpu: a quarter of the widths, 4.1 M characters a run; paper: its setting")
      ->check(CLI::IsMember({"cpu", "paper"}))
      ->capture_default_str();
  app.add_option("--seeds", options->seeds, "runs of every model")->check(integer(1, 1000))->capture_default_str();
  app.add_option("--data", options->data,
                 "data folder (default: cpu: the dictionary of dict-gcide, prepared on first use; paper: data/NAME)");
  app.add_option("--out", options->out, "folder of all runs (default: runs/reproduce/SCALE)");
  app.add_option("--configs", options->configs, "folder of rmoe's configs")->capture_default_str();
  app.add_option("--processes", options->processes, "trainings at a time (default: as many as the CPUs have room for)")
      ->check(integer(1, 4096));
  app.add_option("--format", options->format, "text or markdown")
      ->check(CLI::IsMember({"text", "markdown"}))
      ->capture_default_str();
  app.add_flag("--plan", options->plan,
               "only say how many runs and hours it takes, by measuring some steps of every model");
  take_config_flags<RunConfig>(app, globals);
  app.callback([options, &globals] {
    if (options->list) return print_list(globals.json);
    if (options->names.empty()) {
      throw Error(Exit::kBadInput, "reproduce: no table or figure named", "`rmoe reproduce --list` shows all");
    }
    options->flags = globals.config_flags;
    options->threads = globals.threads;
    run(*options, globals);
  });
}

RMOE_REGISTER_COMMAND("reproduce", "tables and figures of the paper, trained again, beside its numbers",
                      "rmoe reproduce table1 table5 --scale cpu --seeds 3", setup);

}  // namespace
}  // namespace rmoe::cli
