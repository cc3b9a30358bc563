// Small models with random weights of both families and with both routers, and token files for them.
#pragma once

#include <numeric>
#include <string>

#include "rmoe/base/config.h"
#include "rmoe/base/rng.h"
#include "rmoe/data/token_file.h"
#include "rmoe/models/model.h"
#include "tests/support/temp_dir.h"

namespace rmoe::testing {

struct TinyCase {
  Family family;
  const char* stage;
  at::ScalarType dtype;

  std::string name() const { return str(enum_name(family), "_", stage, "_", dtype == at::kDouble ? "fp64" : "fp32"); }
};

inline std::ostream& operator<<(std::ostream& out, const TinyCase& c) { return out << c.name(); }

inline const std::vector<TinyCase>& tiny_cases() {
  static const std::vector<TinyCase> cases = {
      {Family::kSpan, "none", at::kDouble}, {Family::kSpan, "gru", at::kDouble}, {Family::kLlama, "none", at::kDouble},
      {Family::kLlama, "gru", at::kDouble}, {Family::kSpan, "none", at::kFloat}, {Family::kSpan, "gru", at::kFloat},
      {Family::kLlama, "none", at::kFloat}, {Family::kLlama, "gru", at::kFloat}};
  return cases;
}

inline ModelConfig tiny_config(Family family, const std::string& stage, int64_t vocabulary = 13) {
  ModelConfig config;
  config.family = family;
  config.vocab_size = vocabulary;
  config.layers = 3;
  config.width = 8;
  config.heads = 2;
  config.dropout = 0.1;  // training only: nothing here may use it
  config.moe.experts = 5;
  config.moe.top_k = 2;
  config.moe.expert_width = 6;
  config.moe.stage.set_kind(stage);
  config.span.span = 5;
  if (family == Family::kLlama) {
    config.dense_layers = 1;
    config.moe.shared_width = 4;
    config.llama.kv_heads = 1;
  }
  return config;
}

inline std::vector<TinyCase> tiny_cases(Family family) {
  std::vector<TinyCase> cases = tiny_cases();
  std::erase_if(cases, [&](const TinyCase& c) { return c.family != family; });
  return cases;
}

struct TinyModel {
  TinyModel(const ModelConfig& config, at::ScalarType dtype) : table(7, dtype), model(make_model(config, table)) {}
  explicit TinyModel(const TinyCase& c) : TinyModel(tiny_config(c.family, c.stage), c.dtype) {}
  const Model* operator->() const { return model.get(); }
  const Model& operator*() const { return *model; }

  ParamTable table;
  std::unique_ptr<Model> model;
};

inline std::vector<int64_t> random_ids(int64_t count, int64_t vocabulary, uint64_t seed = 1) {
  std::vector<int64_t> ids;
  ids.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(uniform_below(mix(seed, kTestStream, static_cast<uint64_t>(i)), vocabulary));
  }
  return ids;
}

inline Tensor row(const std::vector<int64_t>& ids) {
  return at::tensor(ids, at::kLong).view({1, static_cast<int64_t>(ids.size())});
}

// Logits [T, V] of a text, all of it in one pass.
inline Tensor all_logits(const Model& model, const std::vector<int64_t>& ids, at::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  return model.forward(row(ids), {}, {.dtype = dtype}).logits_TV;
}

struct TextCounts {
  int64_t documents = 1, bytes = 0, characters = 0, words = 0;
};

inline data::TokenFile write_tokens(const std::filesystem::path& path, const std::vector<int64_t>& ids,
                                    int64_t vocabulary, uint64_t tokenizer_hash = 0, TextCounts counts = {}) {
  data::TokenWriter writer(path, vocabulary, tokenizer_hash);
  writer.append(ids);
  writer.set_counts(counts.documents, counts.bytes, counts.characters, counts.words);
  writer.commit();
  return data::TokenFile::open(path);
}

}  // namespace rmoe::testing
