// rmoe list: what can be named in a config, and the configs themselves.
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>
#include <sstream>

#include <CLI/App.hpp>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/base/nearest.h"
#include "rmoe/base/registry.h"
#include "rmoe/cli/command.h"

namespace rmoe::cli {
namespace {

namespace fs = std::filesystem;

struct Entry {
  std::string name;
  std::string summary;
};

// The first line of a config that is a comment, without '#'.
std::string first_comment(const fs::path& path) {
  std::istringstream lines(read_file(path));
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("#")) continue;
    const size_t start = line.find_first_not_of("# \t");
    return start == std::string::npos ? "" : line.substr(start, line.find_last_not_of(" \t\r") + 1 - start);
  }
  return "";
}

std::vector<Entry> configs_in(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw Error(
        fs::exists(folder, error) ? Exit::kBadInput : Exit::kIo,
        str("list configs: ", folder.string(), fs::exists(folder, error) ? " is not a folder" : " does not exist"),
        "--dir FOLDER names another one");
  }
  std::vector<Entry> entries;
  for (const auto& file : fs::recursive_directory_iterator(folder, error)) {
    if (file.path().extension() == ".toml") entries.push_back({file.path().string(), first_comment(file.path())});
  }
  if (error) io_error("list configs: cannot read ", folder.string(), ": ", error.message());
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.name < b.name; });
  return entries;
}

std::vector<Entry> plugins_of(const std::string& plural) {
  std::vector<std::string> known{"configs"};
  for (const Catalogue* catalogue : Catalogue::all()) {
    known.push_back(catalogue->plural());
    if (catalogue->plural() != plural) continue;
    std::vector<Entry> entries;
    for (const Plugin& plugin : catalogue->entries()) entries.push_back({plugin.name, plugin.summary});
    return entries;
  }
  throw Error(Exit::kBadInput, str("list: unknown '", plural, "'"), help_for_unknown(plural, known));
}

void print(const std::vector<Entry>& entries, bool json) {
  if (json) {
    Json out = Json::array();
    for (const Entry& entry : entries) out.push_back({{"name", entry.name}, {"summary", entry.summary}});
    std::cout << json_text(out, 2) << "\n";
    return;
  }
  size_t width = 0;
  for (const Entry& entry : entries) width = std::max(width, entry.name.size());
  for (const Entry& entry : entries) {
    std::cout << entry.name << std::string(width - entry.name.size(), ' ') << "  " << entry.summary << "\n";
  }
}

void setup(CLI::App& app, Globals& globals) {
  struct Options {
    std::string what;
    std::string folder = "configs";
  };
  auto options = std::make_shared<Options>();
  std::string kinds = "configs";
  for (const Catalogue* catalogue : Catalogue::all()) kinds += ", " + catalogue->plural();
  app.add_option("WHAT", options->what, "one of " + kinds)->required();
  app.add_option("--dir", options->folder, "where the configs are")->capture_default_str();
  app.callback([options, &globals] {
    print(options->what == "configs" ? configs_in(options->folder) : plugins_of(options->what), globals.json);
  });
}

RMOE_REGISTER_COMMAND("list", "what a config can name, one line each", "rmoe list routers", setup);

}  // namespace
}  // namespace rmoe::cli
