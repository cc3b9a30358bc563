#include "rmoe/config/load.h"

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"

namespace rmoe {
namespace {

// The text at train.init; empty where there is none.
std::string init_of(const Node& tree) {
  const Node* train = tree.find("train");
  const Node* init = train ? train->find("init") : nullptr;
  if (!init) return "";
  if (const auto* text = std::get_if<std::string>(&init->value)) return *text;
  if (const auto* flag = std::get_if<Node::Text>(&init->value)) return flag->text;
  return "";  // of another type: bind says so
}

}  // namespace

RunConfig load_run_config(const std::filesystem::path& file, const std::vector<std::string>& flags,
                          const std::string& init, const std::filesystem::path& out) {
  Node tree = file.empty() ? Node{} : parse_toml_file(file);
  merge(tree, parse_flags(flags));
  const std::string run = init.empty() ? init_of(tree) : init;
  RunConfig config;
  if (!run.empty()) {
    std::filesystem::path start = std::filesystem::path(run) / "config.toml";
    const bool goes_on = !out.empty() && std::filesystem::exists(out / "checkpoints");
    if (!std::filesystem::exists(start) && goes_on) start = out / "config.toml";
    if (!std::filesystem::exists(start)) {
      constexpr const char* kHelp = "train.init names what `rmoe train`, `import`, `upcycle` or `retrofit` made";
      if (!std::filesystem::exists(run)) throw Error(Exit::kIo, str(run, ": no such run folder"), kHelp);
      throw Error(Exit::kBadInput, str(run, ": not a run folder: it has no config.toml"), kHelp);
    }
    Node base = parse_toml_file(start);
    if (auto* sections = std::get_if<Node::Table>(&base.value)) {
      std::erase_if(*sections, [](const Node::Entry& entry) { return entry.key != "model"; });
    }
    merge(base, tree);
    tree = std::move(base);
  }
  bind(config, tree);
  if (!run.empty()) config.train.init = run;
  return config;
}

}  // namespace rmoe
