// Models of the golden files: configs from their metadata, weights from their tensors.
#pragma once

#include <map>
#include <string>

#include "rmoe/base/config.h"
#include "rmoe/io/safetensors.h"
#include "rmoe/models/model.h"
#include "rmoe/ops/tensor_file.h"

namespace rmoe::testing {

struct Golden {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
  ModelConfig config;

  int64_t number(const std::string& key) const { return std::stoll(metadata.at(key)); }
  const Tensor& operator[](const std::string& name) const { return tensors.at(name); }
};

inline Golden load_golden(const std::string& name) {
  const std::string path = std::string(RMOE_SOURCE_DIR) + "/tests/golden/" + name + ".safetensors";
  Golden golden{read_tensors(path), io::SafetensorsFile::open(path).metadata(), {}};
  ModelConfig& c = golden.config;
  c.family = golden.metadata.at("family") == "span" ? Family::kSpan : Family::kLlama;
  c.vocab_size = golden.number("vocab");
  c.layers = golden.number("layers");
  c.width = golden.number("width");
  c.heads = golden.number("heads");
  c.dense_layers = golden.number("dense_layers");
  c.dense_width = golden.number("dense_width");
  c.moe.experts = golden.number("experts");
  c.moe.top_k = golden.number("top_k");
  c.moe.expert_width = golden.number("expert_width");
  const bool gru = golden.metadata.at("router") == "gru";
  c.moe.stage.set_kind(gru ? "gru" : "none");
  if (gru) {
    Node width{Node::Table{{"width", Node{golden.number("state_width"), {}}}}, {}};
    bind_section(c.moe.stage.section(), width);
  }
  if (c.family == Family::kSpan) {
    c.span.span = golden.number("span");
    c.moe.balance = {{.loss = Choice<routing::BalanceRegistry>("small_scale"), .weight = 0.01}};
    if (!gru) {
      Node bias{Node::Table{{"bias", Node{true, {}}}}, {}};
      bind_section(c.moe.router.section(), bias);
    }
  } else {
    c.llama.kv_heads = golden.number("kv_heads");
    c.llama.tie_embeddings = golden.metadata.at("tied") == "true" || golden.metadata.at("tied") == "1";
    c.moe.shared_width = golden.number("shared_width");
  }
  return golden;
}

// A model in `dtype` with the golden file's weights.
struct GoldenModel {
  GoldenModel(const Golden& golden, at::ScalarType dtype) : table(1, dtype), model(make_model(golden.config, table)) {
    at::NoGradGuard no_grad;
    for (const Param& param : table.all()) {
      for (auto& [name, part] : param.stored()) part.copy_(golden["param." + name]);
    }
  }
  ParamTable table;
  std::unique_ptr<Model> model;
};

}  // namespace rmoe::testing
