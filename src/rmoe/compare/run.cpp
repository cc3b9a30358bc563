#include "rmoe/compare/run.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <variant>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/base/utf8.h"
#include "rmoe/io/metrics.h"
#include "rmoe/plot/html.h"

namespace rmoe::compare {

using namespace plot;

namespace {

namespace fs = std::filesystem;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// A number that may be null or missing.
std::optional<double> optional_double(const Json& object, const char* key, const std::string& what) {
  if (!object.contains(key) || object[key].is_null()) return std::nullopt;
  return json_double(object, key, what);
}

double double_or_nan(const Json& object, const char* key, const std::string& what) {
  return optional_double(object, key, what).value_or(kNaN);
}

int64_t int_or_zero(const Json& object, const char* key, const std::string& what) {
  if (!object.contains(key) || object[key].is_null()) return 0;
  return json_int(object, key, what);
}

bool bool_or_true(const Json& object, const char* key, const std::string& what) {
  return !object.contains(key) || json_bool(object, key, what);
}

std::string text_or_empty(const Json& object, const char* key, const std::string& what) {
  if (!object.contains(key) || object[key].is_null()) return "";
  return json_string(object, key, what);
}

// A name or a hash, which may be written as text, a number or a table: only equality matters.
std::string any_text(const Json& value) { return value.is_string() ? value.get<std::string>() : json_text(value); }

std::string scalar_text(const Node& node) {
  if (const auto* v = std::get_if<bool>(&node.value)) return *v ? "true" : "false";
  if (const auto* v = std::get_if<int64_t>(&node.value)) return str(*v);
  if (const auto* v = std::get_if<double>(&node.value)) return str(*v);
  if (const auto* v = std::get_if<std::string>(&node.value)) return *v;
  if (const auto* v = std::get_if<Node::Text>(&node.value)) return v->text;
  return "";
}

void flatten(const Node& node, const std::string& key, std::map<std::string, std::string>& out) {
  std::string dot = key.empty() ? "" : key + ".";
  if (const auto* table = std::get_if<Node::Table>(&node.value)) {
    for (const auto& [name, child] : *table) flatten(child, dot + name, out);
  } else if (const auto* list = std::get_if<Node::List>(&node.value)) {
    for (size_t i = 0; i < list->size(); ++i) flatten((*list)[i], str(dot, i), out);
  } else {
    out[key] = scalar_text(node);
  }
}

Evaluation parse_evaluation(const Json& json, const std::string& what) {
  Evaluation e;
  e.split = json_string(json, "split", what);
  e.checkpoint_step = json_int(json, "checkpoint_step", what);
  e.tokens = json_int(json, "tokens", what);
  e.characters = int_or_zero(json, "characters", what);
  e.words = int_or_zero(json, "words", what);
  e.bits_per_character = optional_double(json, "bits_per_character", what);
  e.perplexity = optional_double(json, "perplexity", what);
  e.word_perplexity = optional_double(json, "word_perplexity", what);
  e.causal = bool_or_true(json, "causal", what);
  e.load_imbalance = optional_double(json, "load_imbalance", what);
  e.dead_experts = optional_double(json, "dead_experts", what);
  e.gate_entropy = optional_double(json, "gate_entropy", what);
  if (!json.contains("expert_fraction") || json["expert_fraction"].is_null()) return e;
  const Json& layers = json["expert_fraction"];
  bool well_formed = layers.is_array();
  for (size_t l = 0; well_formed && l < layers.size(); ++l) {
    well_formed = layers[l].is_array();
    std::vector<double> row;
    for (size_t n = 0; well_formed && n < layers[l].size(); ++n) {
      well_formed = layers[l][n].is_number();
      if (well_formed) row.push_back(layers[l][n].get<double>());
    }
    e.expert_fraction.push_back(std::move(row));
  }
  RMOE_CHECK(well_formed, what, ": 'expert_fraction' is not a list of layers with a list of numbers each");
  return e;
}

std::optional<Evaluation> read_evaluation(const fs::path& run, const std::string& split) {
  fs::path path = run / "eval" / (split + ".json");
  if (!fs::exists(path)) return std::nullopt;
  Json json = read_json_file(path);
  Evaluation e = parse_evaluation(json, path.string());
  RMOE_CHECK(e.split == split, path.string(), ": 'split' is '", e.split, "', expected '", split, "'");
  return e;
}

bool holds_runs(const fs::path& folder) {
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
    if (fs::exists(entry.path() / "config.toml", ignored)) return true;
  }
  return false;
}

}  // namespace

Run read_run(const std::string& given) {
  constexpr const char* kHelp = "a run folder is what `rmoe train --out FOLDER` writes";
  std::string path = given;
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  fs::path folder = path;
  if (!fs::exists(folder)) throw Error(Exit::kIo, str("compare: ", path, " does not exist"), kHelp);
  if (!fs::is_directory(folder)) throw Error(Exit::kBadInput, str("compare: ", path, " is not a folder"), kHelp);
  bool has_config = fs::exists(folder / "config.toml");
  bool has_summary = fs::exists(folder / "summary.json");
  if (!has_config && !has_summary) {
    throw Error(
        Exit::kBadInput, str("compare: ", path, " is not a run folder: it has no config.toml"),
        holds_runs(folder) ? str("it holds run folders: `rmoe compare ", path, "/*/` takes all of them") : kHelp);
  }
  std::string finish = str("`rmoe train ", path, "/config.toml --out ", path, " --resume must` goes on with it");
  if (!has_summary && !fs::exists(folder / "metrics.jsonl")) {
    throw Error(Exit::kBadInput, str("compare: ", path, " holds weights that were not trained here"),
                str("`rmoe train --init ", path, " --out RUN` trains on from them, and RUN can be compared"));
  }
  if (!has_summary) {
    throw Error(Exit::kBadInput, str("compare: ", path, " is unfinished: it has no summary.json yet"), finish);
  }
  RMOE_CHECK(has_config, "compare: ", path, " has no config.toml");

  std::string what = (folder / "summary.json").string();
  Json json = read_json_file(what);
  RMOE_CHECK(json.is_object(), what, ": not a JSON object");
  Run run;
  run.path = path;
  run.steps = json_int(json, "steps", what);
  run.stop = text_or_empty(json, "stop", what);
  if (!json_bool(json, "finished", what)) {
    throw Error(Exit::kBadInput, str("compare: ", path, " is unfinished: it ended at step ", run.steps), finish);
  }
  run.name = printable_utf8(json_string(json, "name", what));
  std::replace_if(run.name.begin(), run.name.end(), [](char c) { return c == '\n' || c == '\t'; }, ' ');
  if (run.name.empty()) run.name = printable_utf8(fs::absolute(folder).filename().string());
  run.group = any_text(json_member(json, "group", what));
  run.seed = json_int(json, "seed", what);
  run.family = text_or_empty(json, "family", what);
  run.stage = text_or_empty(json, "stage", what);
  run.router = text_or_empty(json, "router", what);
  run.dtype = text_or_empty(json, "dtype", what);
  run.params = json_int(json, "params", what);
  run.active_params = json_int(json, "active_params", what);
  run.tokens = json_int(json, "tokens", what);
  run.seconds = json_double(json, "seconds", what);
  run.tokens_per_s = optional_double(json, "tokens_per_s", what).value_or(0);
  run.flops_per_token = optional_double(json, "flops_per_token", what).value_or(0);
  run.peak_memory_bytes = int_or_zero(json, "peak_memory_bytes", what);
  run.batch_tokens = int_or_zero(json, "batch_tokens", what);
  run.best_step = run.steps;
  if (json.contains("best") && json["best"].is_object())
    run.best_step = json_int(json["best"], "step", what + ": best");
  const Json& data = json_member(json, "data", what);
  run.data_path = text_or_empty(data, "path", what + ": data");
  run.tokenizer_hash = any_text(json_member(data, "tokenizer_hash", what + ": data"));
  run.train_tokens = json_int(data, "train_tokens", what + ": data");
  if (json.contains("machine") && json["machine"].is_object()) {
    run.cpu = text_or_empty(json["machine"], "cpu", what + ": machine");
    run.threads = int_or_zero(json["machine"], "threads", what + ": machine");
  }
  flatten(parse_toml_file(folder / "config.toml"), "", run.config);
  run.valid = read_evaluation(folder, "valid");
  run.test = read_evaluation(folder, "test");
  if (fs::exists(folder / "metrics.jsonl")) run.validation = read_curves(run).valid;
  run.causal =
      bool_or_true(json, "causal", what) && (!run.valid || run.valid->causal) && (!run.test || run.test->causal);
  return run;
}

Curves read_curves(const Run& run) {
  fs::path path = fs::path(run.path) / "metrics.jsonl";
  if (!fs::exists(path)) {
    io_error("compare: ", run.path, " has no metrics.jsonl, which the report's curves are drawn from");
  }
  Curves curves;
  std::string what = path.string();
  for (const Json& line : io::read_metrics(path)) {
    std::string kind = text_or_empty(line, "kind", what);
    if (kind == "train") {
      curves.train.push_back({json_int(line, "step", what), json_int(line, "tokens", what),
                              double_or_nan(line, "seconds", what), double_or_nan(line, "loss", what),
                              double_or_nan(line, "bpc", what), double_or_nan(line, "load_imbalance", what),
                              double_or_nan(line, "gate_entropy", what)});
    } else if (kind == "eval" && text_or_empty(line, "split", what) == "valid") {
      curves.valid.push_back({json_int(line, "step", what), json_int(line, "tokens", what),
                              double_or_nan(line, "seconds", what), double_or_nan(line, "bpc", what),
                              double_or_nan(line, "perplexity", what)});
    }
  }
  return curves;
}

std::string read_sample(const Run& run) {
  fs::path path = fs::path(run.path) / "samples" / "final.txt";
  return fs::exists(path) ? read_file(path, int64_t{1} << 24) : "";
}

}  // namespace rmoe::compare
