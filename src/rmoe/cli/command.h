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
#include <string>
#include <vector>

#include <CLI/App.hpp>

namespace rmoe::cli {

// What every command understands.
struct Globals {
  bool json = false;
  bool quiet = false;
  int64_t threads = 0;  // 0: all that this process may use
  int exit_code = 0;    // what the process ends with when nothing was thrown
  // The flags of a command that called take_config_flags: {"--model.layers=4", ...}, for load_config.
  std::vector<std::string> config_flags;
};

struct Command {
  const char* name;
  const char* summary;
  const char* example;  // shown under --help
  void (*setup)(CLI::App& app, Globals& globals);
};

bool register_command(const Command& command);
const std::vector<Command>& commands();  // sorted by name

// Makes every --key=value (or --key value) that `app` does not declare itself a config flag.
void take_config_flags(CLI::App& app);

// Runs `rmoe ARGS...` and returns the exit code. Results go to standard output; a failure is one line, and a help line
// where there is one, on standard error, with --json also {"error": {...}} on standard output.
int run_command_line(std::vector<std::string> args);

}  // namespace rmoe::cli

#define RMOE_REGISTER_COMMAND(name, summary, example, setup)   \
  [[maybe_unused]] static const bool rmoe_command_registered = \
      ::rmoe::cli::register_command({name, summary, example, setup})
