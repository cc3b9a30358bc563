// rmoe config: show, check and document what `rmoe train` is configured by.
#include "rmoe/base/config.h"

#include <filesystem>
#include <iostream>
#include <memory>
#include <system_error>

#include <CLI/App.hpp>

#include "rmoe/base/error.h"
#include "rmoe/base/json.h"
#include "rmoe/cli/command.h"
#include "rmoe/config/load.h"
#include "rmoe/data/tokenizer.h"
#include "rmoe/models/size.h"

namespace rmoe::cli {
namespace {

void show(const RunConfig& config, bool json) {
  std::cout << (json ? json_text(to_json(config), 2) + "\n" : to_toml(config));
}

// As `rmoe train` will find it, as far as the data are there already.
void look_at_data(RunConfig& config) {
  const std::string& path = config.data.path;
  std::error_code error;
  if (path.empty() || !std::filesystem::exists(path, error)) return;
  resolve_vocabulary(config, data::Tokenizer::load(std::filesystem::path(path) / "tokenizer.json")->vocab_size());
}

void check(RunConfig config, const std::string& file, bool json) {
  look_at_data(config);
  Json out{{"ok", true}, {"file", file}};
  const std::string& data = config.data.path;
  std::string size = str("parameters not counted, model.vocab_size is missing: ",
                         data.empty() ? "data.path is not set" : str("data.path, ", data, ", is not there"),
                         "; --model.vocab_size=N gives it");
  if (config.model.vocab_size == 0) {
    out["missing"] = "model.vocab_size";
  } else {
    const ModelSize counted = model_size(config.model, 1);
    out["params"] = counted.params;
    out["active_params"] = counted.active_params;
    out["router_params"] = counted.router_params;
    size = str(counted.params, " parameters, ", counted.active_params, " active per token, ", counted.router_params,
               " of them routing");
  }
  std::cout << (json ? json_text(out) : str(file, ": OK, ", size)) << "\n";
}

void document(bool markdown, bool json) {
  const std::vector<DocEntry> entries = doc<RunConfig>();
  if (!json) {
    std::cout << (markdown ? doc_markdown(entries) : doc_text(entries));
    return;
  }
  Json out = Json::array();
  for (const DocEntry& e : entries) {
    out.push_back({{"key", e.key}, {"for", e.kind}, {"type", e.type}, {"default", e.fallback}, {"help", e.help}});
  }
  std::cout << json_text(out, 2) << "\n";
}

// A subcommand that reads CONFIG.toml and flags.
template <class Action>
void add_reader(CLI::App& app, const char* name, const char* summary, Globals& globals, Action action) {
  CLI::App* reader = app.add_subcommand(name, summary);
  auto file = std::make_shared<std::string>();
  reader->add_option("CONFIG", *file, "config file; without it, the defaults and the flags");
  reader->footer(str("Example:\n  rmoe config ", name, " configs/demo_rmoe.toml --model.layers=4"));
  take_config_flags<RunConfig>(*reader, globals);
  reader->callback([file, &globals, action] {
    action(load_run_config(*file, globals.config_flags), file->empty() ? "defaults" : *file);
  });
}

void setup(CLI::App& app, Globals& globals) {
  app.require_subcommand(1);
  add_reader(app, "show", "the resolved config: defaults, file, flags", globals,
             [&globals](const RunConfig& config, const std::string&) { show(config, globals.json); });
  add_reader(app, "check", "refuses what `rmoe train` would refuse, and counts parameters", globals,
             [&globals](const RunConfig& config, const std::string& file) { check(config, file, globals.json); });
  CLI::App* doc = app.add_subcommand("doc", "every key with default, meaning and type");
  auto markdown = std::make_shared<bool>(false);
  doc->add_flag("--markdown", *markdown, "as a Markdown table");
  doc->footer("Example:\n  rmoe config doc | grep router");
  doc->callback([markdown, &globals] { document(*markdown, globals.json); });
}

RMOE_REGISTER_COMMAND("config", "show, check or document a config",
                      "rmoe config show configs/demo_rmoe.toml --model.layers=4", setup);

}  // namespace
}  // namespace rmoe::cli
