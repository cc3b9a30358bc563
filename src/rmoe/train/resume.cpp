#include "rmoe/train/resume.h"

#include <cstdio>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/base/json.h"
#include "rmoe/base/log.h"
#include "rmoe/base/rng.h"

namespace rmoe {
namespace {

namespace fs = std::filesystem;

// What may differ between the parts of a run: how long, how watched and on what machine, not what is computed. (The
// number of threads and the device change the last bits of sums, not the method.)
constexpr const char* kFreeKeys[] = {"/train/steps",         "/train/epochs",        "/train/tokens",
                                     "/train/minutes",       "/train/device",        "/train/threads",
                                     "/train/log_every",     "/train/routing_stats", "/train/gradient_sources_every",
                                     "/train/recompute",     "/train/eval",          "/train/checkpoint",
                                     "/train/sample",        "/train/init",          "/data/instruct/train",
                                     "/data/instruct/valid", "/data/path",           "/name"};

bool is_free(const std::string& key) {
  for (const char* free : kFreeKeys) {
    if (key == free || key.starts_with(std::string(free) + "/")) return true;
  }
  return false;
}

// Key -> value of every leaf.
Json flat(const RunConfig& config) { return to_json(config).flatten(); }

}  // namespace

std::string run_group(const RunConfig& config) {
  std::string text;
  const Json values = flat(config);
  for (const auto& [key, value] : values.items()) {
    const bool counts = key == "/train/steps" || key == "/train/tokens" || key == "/train/init" ||
                        key.starts_with("/data/") || !is_free(key);
    if (counts && key != "/train/seed") text += key + "=" + value.dump() + "\n";
  }
  char hash[20];
  std::snprintf(hash, sizeof hash, "%08llx", static_cast<unsigned long long>(hash_text(text) >> 32));
  return (config.name.empty() ? "run" : config.name) + "-" + hash;
}

std::optional<io::Checkpoint> find_resume_point(const fs::path& out, Resume resume, const RunConfig& config) {
  const bool holds_run = fs::exists(out / "config.toml");
  if (resume == Resume::kNever && holds_run) {
    throw Error(Exit::kBadInput, str(out.string(), ": holds a run already"),
                "go on with --resume auto, or choose another --out");
  }
  std::optional<io::Checkpoint> checkpoint;
  if (holds_run) {
    checkpoint = io::newest_valid(
        out, [](const fs::path&, const std::string& reason) { log_warn(reason, "; this checkpoint is skipped"); });
  }
  if (!checkpoint && !io::list_checkpoints(out).empty()) {
    throw Error(Exit::kBadInput,
                str(out.string(),
                    holds_run ? ": none of the run's checkpoints is whole" : ": holds checkpoints but no config.toml"),
                "nothing was changed; move the folder away to start over, or choose another --out");
  }
  if (!checkpoint) {
    if (resume == Resume::kMust) input_error(out.string(), ": --resume must, but there is no valid checkpoint");
    return std::nullopt;
  }
  RunConfig before;
  bind(before, parse_toml_file(out / "config.toml"));
  const Json old_values = flat(before), new_values = flat(config);
  std::string changed;
  for (const Json* side : {&old_values, &new_values}) {
    for (const auto& [key, value] : side->items()) {
      const auto same = [&](const Json& other) { return other.contains(key) && other.at(key) == value; };
      if (is_free(key) || same(side == &old_values ? new_values : old_values)) continue;
      std::string dotted = key.substr(1);
      for (char& c : dotted) c = c == '/' ? '.' : c;
      if (changed.find(dotted) == std::string::npos) changed += (changed.empty() ? "" : ", ") + dotted;
    }
  }
  if (!changed.empty()) {
    throw Error(Exit::kBadInput, str(out.string(), ": the run there was configured otherwise in ", changed),
                "use the run's own config.toml, or choose another --out");
  }
  return checkpoint;
}

}  // namespace rmoe
