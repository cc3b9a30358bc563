// rmoe retrofit: puts a recurrent stage in front of an MoE run's routers.
#include <iostream>
#include <memory>

#include <CLI/CLI.hpp>

#include "rmoe/adapt/adapt.h"
#include "rmoe/cli/adapt_report.h"
#include "rmoe/cli/command.h"

namespace rmoe::cli {
namespace {

void setup(CLI::App& app, Globals& globals) {
  auto command = std::make_shared<adapt::RetrofitCommand>();
  auto train = std::make_shared<std::string>("all");
  app.add_option("RUN", command->source.run, "run folder of an MoE without a recurrent stage")->required();
  app.add_option("--out", command->source.out, "run folder to make")->required();
  app.add_option("--stage", command->stage, "gru, rnn, lstm or additive; `rmoe list stages`")->capture_default_str();
  app.add_option("--width", command->width, "width of the state (P)")
      ->check(integer(1, 1000000))
      ->capture_default_str();
  app.add_option("--train", *train, "what a training of the new run's config trains: all, or routers (with stage) only")
      ->check(CLI::IsMember({"all", "routers"}))
      ->capture_default_str();
  app.add_option("--checkpoint", command->source.checkpoint, "newest, best or a step")->capture_default_str();
  app.add_option("--seed", command->source.seed, "of the stage's start values")
      ->check(integer(0))
      ->capture_default_str();
  app.callback([command, train, &globals] {
    command->source.threads = globals.threads;
    command->train_routers = *train == "routers";
    print_report(adapt::retrofit(*command), globals.json);
  });
}

RMOE_REGISTER_COMMAND("retrofit", "put a recurrent stage in front of an MoE run's routers",
                      "rmoe retrofit runs/smoe --out runs/rmoe --stage gru --width 128 --train routers", setup);

}  // namespace
}  // namespace rmoe::cli
