// rmoe upcycle: a dense run to an MoE run.
#include <iomanip>
#include <iostream>
#include <memory>

#include <CLI/CLI.hpp>

#include "rmoe/adapt/adapt.h"
#include "rmoe/base/json.h"
#include "rmoe/cli/adapt_report.h"
#include "rmoe/cli/command.h"

namespace rmoe::cli {
namespace {

void setup(CLI::App& app, Globals& globals) {
  auto command = std::make_shared<adapt::UpcycleCommand>();
  auto method = std::make_shared<std::string>("copy");
  const CLI::Validator positive = integer(1, 1 << 20);
  app.add_option("RUN", command->source.run, "run folder of a dense llama")->required();
  app.add_option("--out", command->source.out, "run folder to make")->required();
  app.add_option("--method", *method, "copy, split (fine-grained experts) or drop (a share drawn anew)")
      ->check(CLI::IsMember({"copy", "split", "drop"}))
      ->capture_default_str();
  app.add_option("--experts", command->experts, "experts per layer (N)")->check(positive)->capture_default_str();
  app.add_option("--top-k", command->top_k, "experts per token (K)")->check(positive)->capture_default_str();
  CLI::Option* slices = app.add_option("--slices", command->slices,
                                       "split: parts that a block is cut into; experts and top-k are multiples")
                            ->check(positive)
                            ->capture_default_str();
  CLI::Option* share =
      app.add_option("--share", command->drop_share, "drop: share of an expert's inner units drawn anew")
          ->check(number())
          ->capture_default_str();
  app.add_option("--dense-layers", command->dense_layers, "leading layers that stay dense")
      ->check(integer(0, 10000))
      ->capture_default_str();
  app.add_option("--every", command->every, "of the others, each n-th becomes MoE")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--checkpoint", command->source.checkpoint, "newest, best or a step")->capture_default_str();
  app.add_option("--seed", command->source.seed, "of the routers and of what is drawn anew")
      ->check(integer(0))
      ->capture_default_str();
  app.callback([command, method, slices, share, &globals] {
    command->source.threads = globals.threads;
    command->method = *method == "split"  ? adapt::Method::kSplit
                      : *method == "drop" ? adapt::Method::kDrop
                                          : adapt::Method::kCopy;
    RMOE_CHECK(slices->count() == 0 || *method == "split", "--slices is for --method split, got ", *method);
    RMOE_CHECK(share->count() == 0 || *method == "drop", "--share is for --method drop, got ", *method);
    print_report(adapt::upcycle(*command), globals.json);
  });
}

RMOE_REGISTER_COMMAND("upcycle", "make an MoE run out of a dense one",
                      "rmoe upcycle runs/dense --out runs/moe --method split --experts 16 --top-k 4 --slices 4", setup);

}  // namespace
}  // namespace rmoe::cli
