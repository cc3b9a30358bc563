// Run folders made up for tests: every file that `rmoe compare` reads, in the format of the trainer, with numbers that
// follow from a few fields.
#pragma once

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>

#include "rmoe/base/json.h"

namespace rmoe::compare {

struct FakeRun {
  std::string name = "SMoE";
  int64_t seed = 1;
  std::string stage = "none";
  double valid = 1.641;  // bits per character
  double test = 1.652;
  int64_t params = 4'800'000;
  int64_t active_params = 1'520'000;
  int64_t steps = 1000;
  int64_t batch_tokens = 4096;
  double tokens_per_s = 20'000;
  int64_t peak_memory_bytes = int64_t{900} << 20;
  double load_imbalance = 1.5;
  double dead_experts = 0;
  double gate_entropy = 2.1;
  int64_t layers = 4;
  int64_t experts = 8;
  std::string router = "linear";
  std::string data_path = "data/kjv";
  std::string tokenizer_hash = "89abcdef01234567";
  std::string cpu = "Test CPU";
  std::string stop = "steps";
  bool finished = true;
  bool word_level = false;
  bool causal = true;
  std::string sample = "In the beginning <b>&";

  int64_t tokens() const { return steps * batch_tokens; }
  double seconds() const { return static_cast<double>(tokens()) / tokens_per_s; }
};

inline void write_text(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

inline Json evaluation_json(const FakeRun& run, const std::string& split, double quality) {
  int64_t tokens = 100'000;
  Json fractions = Json::array();
  for (int64_t l = 0; l < run.layers; ++l) {
    // A geometric load that gets steeper with depth; which expert is the busiest depends on the seed.
    std::vector<double> row(static_cast<size_t>(run.experts));
    double sum = 0;
    for (int64_t n = 0; n < run.experts; ++n) {
      double v = std::exp(-0.15 * (run.load_imbalance - 1) * static_cast<double>((l + 1) * n));
      row[static_cast<size_t>((n * 3 + run.seed) % run.experts)] = v;
      sum += v;
    }
    for (double& v : row) v /= sum;
    fractions.push_back(row);
  }
  return {{"split", split},
          {"checkpoint_step", run.steps},
          {"tokens", tokens},
          {"characters", run.word_level ? tokens * 5 : tokens},
          {"words", run.word_level ? tokens : tokens / 5},
          {"nats", quality * std::log(2.0) * static_cast<double>(tokens)},
          {"bits_per_character", quality},
          {"perplexity", std::exp2(quality)},
          {"word_perplexity", std::exp2(quality * 5)},
          {"causal", run.causal},
          {"load_imbalance", run.load_imbalance},
          {"dead_experts", run.dead_experts},
          {"gate_entropy", run.gate_entropy},
          {"expert_fraction", fractions},
          {"seconds", 12.5},
          {"tokens_per_s", 8000.0}};
}

inline std::string metrics_jsonl(const FakeRun& run) {
  std::string out;
  double noise = static_cast<double>(run.seed) + (run.stage == "none" ? 0.3 : 0.7);
  for (int64_t i = 1; i <= 100; ++i) {
    double share = static_cast<double>(i) / 100;
    int64_t step = run.steps * i / 100;
    double wiggle = std::sin(noise * static_cast<double>(i) * 1.7);
    double bits = run.valid + 3.2 * std::exp(-9 * share) + 0.25 * (1 - share) * (1 - share);
    Json train = {{"kind", "train"},
                  {"step", step},
                  {"tokens", step * run.batch_tokens},
                  {"seconds", run.seconds() * share},
                  {"loss", (bits + 0.03 * wiggle) * std::log(2.0)},
                  {"bpc", bits - 0.05 + 0.03 * wiggle},
                  {"load_imbalance", run.load_imbalance + 1.5 * std::exp(-12 * share) + 0.06 * wiggle},
                  {"gate_entropy", run.gate_entropy * (1 - 0.2 * share) + 0.02 * wiggle}};
    out += json_text(train) + "\n";
    if (i % 5 == 0) {
      Json eval = {{"kind", "eval"},
                   {"step", step},
                   {"tokens", step * run.batch_tokens},
                   {"seconds", run.seconds() * share},
                   {"split", "valid"},
                   {"loss", bits * std::log(2.0)},
                   {"bpc", bits + 0.004 * wiggle},
                   {"perplexity", std::exp2(bits)}};
      out += json_text(eval) + "\n";
    }
  }
  return out;
}

// Writes the run to `folder` and returns it as text.
inline std::string write_run(const std::filesystem::path& folder, const FakeRun& run) {
  write_text(folder / "config.toml", "seed = " + std::to_string(run.seed) + "\nout = \"" + folder.string() +
                                         "\"\n[model]\nlayers = " + std::to_string(run.layers) +
                                         "\n[model.moe.stage]\nkind = \"" + run.stage + "\"\n");
  Json summary = {
      {"name", run.name},
      {"group", "router " + run.router + ", stage " + run.stage + ", layers " + std::to_string(run.layers)},
      {"seed", run.seed},
      {"family", "span"},
      {"params", run.params},
      {"active_params", run.active_params},
      {"steps", run.steps},
      {"tokens", run.tokens()},
      {"seconds", run.seconds()},
      {"tokens_per_s", run.tokens_per_s},
      {"peak_memory_bytes", run.peak_memory_bytes},
      {"flops_per_token", 9'120'000},
      {"best", {{"step", run.steps}, {"valid_bpc", run.valid}}},
      {"finished", run.finished},
      {"data", {{"path", run.data_path}, {"tokenizer_hash", run.tokenizer_hash}, {"train_tokens", 3'900'000}}},
      {"machine", {{"cpu", run.cpu}, {"threads", 2}}},
      {"stage", run.stage},
      {"router", run.router},
      {"causal", run.causal},
      {"dtype", "bf16"},
      {"batch_tokens", run.batch_tokens},
      {"stop", run.stop}};
  write_text(folder / "summary.json", json_text(summary, 1) + "\n");
  write_text(folder / "eval/valid.json", json_text(evaluation_json(run, "valid", run.valid), 1) + "\n");
  write_text(folder / "eval/test.json", json_text(evaluation_json(run, "test", run.test), 1) + "\n");
  write_text(folder / "metrics.jsonl", metrics_jsonl(run));
  if (!run.sample.empty()) write_text(folder / "samples/final.txt", run.sample);
  return folder.string();
}

}  // namespace rmoe::compare
