// rmoe export: a run to a Hugging Face folder.
#include <iostream>
#include <memory>

#include <CLI/CLI.hpp>

#include "rmoe/base/json.h"
#include "rmoe/cli/command.h"
#include "rmoe/hf/commands.h"

namespace rmoe::cli {
namespace {

void setup(CLI::App& app, Globals& globals) {
  auto command = std::make_shared<hf::ExportCommand>();
  auto megabytes = std::make_shared<int64_t>(5000);
  app.add_option("RUN", command->run, "run folder")->required();
  app.add_option("DIR", command->folder, "folder to make")->required();
  app.add_option("--checkpoint", command->checkpoint, "newest, best or a step")->capture_default_str();
  app.add_option("--type", command->type,
                 "llama, mixtral, olmoe, qwen3_moe or llama_moe_rnn (default: the imported folder's, else the first of "
                 "these that can express the model)")
      ->check(CLI::IsMember({"llama", "mixtral", "olmoe", "qwen3_moe", "llama_moe_rnn"}));
  app.add_option("--dtype", command->dtype, "of the tensors: fp32, bf16 or fp16")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  app.add_option("--shard-mb", *megabytes, "a file holds at most this many megabytes (10^6 bytes)")
      ->check(integer(1, int64_t{1} << 40))
      ->capture_default_str();
  app.callback([command, megabytes, &globals] {
    command->shard_bytes = *megabytes * 1'000'000;
    const hf::ExportReport report = hf::export_run(*command);
    if (globals.json) {
      std::cout << json_text(Json{{"folder", report.folder},
                                  {"model_type", report.model_type},
                                  {"checkpoint_step", report.checkpoint_step}})
                << "\n";
    } else {
      std::cout << report.folder << ": " << report.model_type << ", step " << report.checkpoint_step << "\n";
    }
  });
}

RMOE_REGISTER_COMMAND("export", "write a run as a Hugging Face folder", "rmoe export runs/a models/a --dtype bf16",
                      setup);

}  // namespace
}  // namespace rmoe::cli
