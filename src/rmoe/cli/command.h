// The command table. Each subcommand is one file that declares its options and what they do:
//
//   void setup(CLI::App& app, Globals& globals) {
//     auto options = std::make_shared<Options>();            // lives as long as the callback
//     app.add_option("RUN", options->run, "run folder")->required();
//     app.callback([options, &globals] { ... });             // throws Error; may set globals.exit_code
//   }
//   RMOE_REGISTER_COMMAND("eval", "bits per character of a run", "rmoe eval runs/a --json", setup);
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <CLI/App.hpp>
#include <CLI/Validators.hpp>

#include "rmoe/base/config.h"

namespace rmoe::cli {

// What every command understands.
struct Globals {
  bool json = false;
  bool quiet = false;
  int64_t threads = 0;  // 0: all that this process may use
  int exit_code = 0;    // what the process ends with when nothing was thrown
  // The flags of a command that called take_config_flags: {"--model.layers=4", ...}, for load_config.
  std::vector<std::string> config_flags;
  std::map<const CLI::App*, std::vector<DocEntry> (*)()> config_keys;  // of each such command
  // Options for which an empty text means something. All others refuse it: it is a shell variable that was not set.
  std::set<const CLI::Option*> may_be_empty;
};

struct Command {
  const char* name;
  const char* summary;
  const char* example;  // shown under --help
  void (*setup)(CLI::App& app, Globals& globals);
};

bool register_command(const Command& command);
const std::vector<Command>& commands();  // sorted by name

// Makes every --section.key=value (or --section.key value), and every --key=value with an outermost key of C that `app`
// does not declare itself, a config flag. Anything else that is not declared stays an unknown option.
template <ConfigStruct C>
void take_config_flags(CLI::App& app, Globals& globals) {
  globals.config_keys[&app] = [] { return doc<C>(); };
}

// For option->check(): a whole number in these bounds, any number. CLI11 itself takes the nearest value of the type for
// numbers that do not fit.
CLI::Validator integer(int64_t low, int64_t high = std::numeric_limits<int64_t>::max());
CLI::Validator number();

// --device: what the command computes on. `device` has the default; empty: what the config says.
void add_device_option(CLI::App& app, std::string& device);

// Runs `rmoe ARGS...` and returns the exit code. Results go to standard output; a failure is one line, and a help line
// where there is one, on standard error, with --json also {"error": {...}} on standard output.
int run_command_line(std::vector<std::string> args);

}  // namespace rmoe::cli

#define RMOE_REGISTER_COMMAND(name, summary, example, setup)   \
  [[maybe_unused]] static const bool rmoe_command_registered = \
      ::rmoe::cli::register_command({name, summary, example, setup})
