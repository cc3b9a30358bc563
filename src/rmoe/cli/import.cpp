// rmoe import: a Hugging Face folder to a run.
#include <filesystem>
#include <iostream>
#include <memory>

#include <CLI/CLI.hpp>

#include "rmoe/base/json.h"
#include "rmoe/cli/command.h"
#include "rmoe/hf/commands.h"

namespace rmoe::cli {
namespace {

void setup(CLI::App& app, Globals& globals) {
  auto command = std::make_shared<hf::ImportCommand>();
  app.add_option("DIR", command->folder, "Hugging Face folder: config.json, .safetensors, a tokenizer")->required();
  app.add_option("--out", command->out, "run folder to make (default: runs/NAME, after the folder)");
  app.add_option("--tokenizer", command->tokenizer,
                 "tokenizer.json, tokenizer.model, or a data or run folder, where DIR has none");
  app.callback([command, &globals] {
    if (command->out.empty()) {
      std::filesystem::path folder = std::filesystem::absolute(command->folder).lexically_normal();
      if (folder.filename().empty()) folder = folder.parent_path();
      command->out = "runs/" + folder.filename().string();
    }
    const hf::ImportReport report = hf::import_folder(*command);
    if (globals.json) {
      std::cout << json_text(Json{{"run", report.run},
                                  {"model_type", report.model_type},
                                  {"params", report.params},
                                  {"active_params", report.active_params},
                                  {"tokenizer", report.tokenizer}})
                << "\n";
    } else {
      std::cout << report.run << ": " << report.model_type << ", " << report.params << " parameters ("
                << report.active_params << " active per token), tokenizer " << report.tokenizer << "\n";
    }
  });
}

RMOE_REGISTER_COMMAND("import", "make a run out of a Hugging Face folder",
                      "rmoe import models/mixtral --out runs/mixtral", setup);
}  // namespace
}  // namespace rmoe::cli
