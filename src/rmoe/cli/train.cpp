// rmoe train: trains a model from a config.
#include <filesystem>
#include <iostream>
#include <memory>

#include <CLI/App.hpp>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/base/json.h"
#include "rmoe/cli/command.h"
#include "rmoe/train/run.h"

namespace rmoe::cli {
namespace {

struct Options {
  std::string config, out, resume = "auto";
};

void setup(CLI::App& app, Globals& globals) {
  auto options = std::make_shared<Options>();
  app.add_option("CONFIG", options->config, "config file (TOML); any key of it can be given as a flag");
  app.add_option("--out", options->out, "run folder; without it, runs/CONFIG-SEED");
  app.add_option("--resume", options->resume, "auto: go on where the folder's run stopped, or start; never; must")
      ->check(CLI::IsMember({"auto", "never", "must"}));
  take_config_flags<RunConfig>(app, globals);
  app.callback([options, &globals] {
    auto config = load_config<RunConfig>(options->config, globals.config_flags);
    if (globals.threads > 0) config.train.threads = globals.threads;
    const std::string stem = options->config.empty() ? "run" : std::filesystem::path(options->config).stem().string();
    const std::string out = options->out.empty() ? str("runs/", stem, "-", config.train.seed) : options->out;
    const Resume resume = options->resume == "auto"    ? Resume::kAuto
                          : options->resume == "never" ? Resume::kNever
                                                       : Resume::kMust;
    const TrainReport report = train(std::move(config), out, resume);
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
