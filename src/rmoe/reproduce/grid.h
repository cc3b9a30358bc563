// A grid of runs: every model with every seed, trained and evaluated by processes of this program, a few at a time. A
// run that is done is not done again, so a grid that was stopped goes on where it was.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace rmoe::reproduce {

struct Job {
  std::string name;                // "enwik8_medium_rmoe-s1"
  std::string config;              // file
  std::vector<std::string> flags;  // of `rmoe train`
  std::filesystem::path folder;    // of the run
  int64_t steps = 0;               // that it trains
  double work = 0;                 // in the time of a step, the evaluations after the training included
};

struct GridOptions {
  std::string program;         // this one
  int64_t processes = 1;       // at a time
  int64_t threads = 1;         // of each
  std::filesystem::path logs;  // folder for what the processes say
};

struct GridResult {
  int64_t signal = 0;                 // SIGINT or SIGTERM that stopped it, after the running processes saved
  std::vector<std::string> diverged;  // names of runs whose loss was no longer finite
};

// Trained to its end and evaluated on both splits.
bool is_done(const Job& job);

// Does what is not done. Shows how far the whole is and when it will be ready. Throws Error with the exit code and the
// last line of a process that failed otherwise than by divergence; the others are stopped first, and save.
GridResult run_grid(const std::vector<Job>& jobs, const GridOptions& options);

// Runs this program once and waits; what it prints goes to the log. Throws Error when it fails.
void run_once(const std::string& program, const std::vector<std::string>& arguments, const std::filesystem::path& log);
// The same, and returns what it printed on standard output.
std::string output_of(const std::string& program, const std::vector<std::string>& arguments,
                      const std::filesystem::path& log);

// "1 h 12 min", "3 min 20 s".
std::string duration_text(double seconds);

}  // namespace rmoe::reproduce
