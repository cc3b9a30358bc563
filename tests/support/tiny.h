// Tiny models of both families with both routers.
#pragma once

#include <string>

#include "rmoe/base/config.h"
#include "rmoe/config/run.h"
#include "rmoe/models/model.h"

namespace rmoe::testing {

inline RunConfig tiny_config(Family family, bool recurrent) {
  RunConfig config;
  ModelConfig& m = config.model;
  m.family = family;
  m.vocab_size = 23;
  m.layers = 3;
  m.width = 16;
  m.heads = 4;
  m.dense_layers = 1;
  m.dense_width = 20;
  m.span.span = 6;
  m.moe.experts = 5;
  m.moe.top_k = 2;
  m.moe.expert_width = 12;
  if (family == Family::kLlama) {
    m.llama.kv_heads = 2;
    m.moe.shared_width = 10;
  }
  if (recurrent) bind(config, parse_flags({"--model.moe.stage={kind = \"gru\", width = 8}"}));
  config.train.block = 8;
  config.train.batch = 4;
  config.train.threads = 1;  // tests run side by side
  return config;
}

inline std::string tiny_name(Family family, bool recurrent) {
  return std::string(enum_name(family)) + (recurrent ? "_rmoe" : "_smoe");
}

inline Tensor random_tokens(int64_t batch, int64_t length, int64_t vocab, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randint(0, vocab, {batch, length}, generator, at::kLong);
}

}  // namespace rmoe::testing
