// What a model is made of: both families and their MoE layers. Plain data, free of torch.
#pragma once

#include <string>

#include "rmoe/base/registry.h"
#include "rmoe/config/registries.h"

namespace rmoe {

enum class Family { kSpan, kLlama };
template <>
struct EnumNames<Family> {
  static constexpr std::array names{std::pair{Family::kSpan, "span"}, std::pair{Family::kLlama, "llama"}};
};

enum class QkNorm { kNone, kHead, kWhole };
template <>
struct EnumNames<QkNorm> {
  static constexpr std::array names{std::pair{QkNorm::kNone, "none"}, std::pair{QkNorm::kHead, "head"},
                                    std::pair{QkNorm::kWhole, "whole"}};
};

enum class RopeScaling { kNone, kLinear, kLlama3 };
template <>
struct EnumNames<RopeScaling> {
  static constexpr std::array names{std::pair{RopeScaling::kNone, "none"}, std::pair{RopeScaling::kLinear, "linear"},
                                    std::pair{RopeScaling::kLlama3, "llama3"}};
};

// Sizes beyond these are mistakes; below them no count of parameters leaves 64 bits.
inline constexpr double kWidest = 1e6, kMostExperts = 1e5;

struct TransformConfig {
  Choice<routing::TransformRegistry> transform{"residual"};

  static constexpr auto fields() {
    return std::tuple{Field{"", &TransformConfig::transform, "transform; `rmoe list transforms` shows all"}};
  }
};

struct BalanceConfig {
  Choice<routing::BalanceRegistry> loss{"switch"};
  double weight = 0.01;

  static constexpr auto fields() {
    using C = BalanceConfig;
    return std::tuple{Field{"", &C::loss, "balance loss; `rmoe list balances` shows all"},
                      Field{"weight", &C::weight, "what the loss is multiplied by", {.min = 0}}};
  }
};

struct MoeConfig {
  int64_t experts = 16;
  int64_t top_k = 2;
  int64_t expert_width = 352;
  int64_t null_experts = 0;
  int64_t copy_experts = 0;
  int64_t every = 1;
  int64_t shared_width = 0;
  double moe_weight = 0.5;
  double shared_weight = 0.5;
  bool bias = false;
  Choice<routing::StageRegistry> stage{"none"};
  Choice<routing::RouterRegistry> router{"linear"};
  int64_t router_group = 1;
  bool state_gate = false;
  std::vector<TransformConfig> transforms;
  Choice<routing::ScoreRegistry> score{"softmax_selected"};
  Choice<routing::SelectionRegistry> selection{"top_k"};
  double capacity = 0;
  std::vector<BalanceConfig> balance = {BalanceConfig{}};

  static constexpr auto fields() {
    using C = MoeConfig;
    return std::tuple{
        Field{"experts", &C::experts, "experts per MoE layer (N)", {.min = 1, .max = kMostExperts}},
        Field{"top_k", &C::top_k, "experts per token (K)", {.min = 1}},
        Field{"expert_width",
              &C::expert_width,
              "inner width of one expert (F); small for fine-grained experts",
              {.min = 1, .max = kWidest}},
        Field{"null_experts",
              &C::null_experts,
              "further experts that give zero and cost nothing (MoE++)",
              {.min = 0, .max = kMostExperts}},
        Field{"copy_experts",
              &C::copy_experts,
              "further experts that give their input and cost nothing (MoE++)",
              {.min = 0, .max = kMostExperts}},
        Field{"every",
              &C::every,
              "of the layers after the leading dense ones, each n-th is MoE, the first included",
              {.min = 1}},
        Field{"shared_width",
              &C::shared_width,
              "inner width of the expert that every token uses; 0: none (llama)",
              {.min = 0, .max = kWidest}},
        Field{"moe_weight", &C::moe_weight, "weight of the routed experts beside a shared expert"},
        Field{"shared_weight", &C::shared_weight, "weight of the shared expert"},
        Field{"bias", &C::bias, "a learned vector added to the sum of the routed experts (llama)"},
        Field{"stage", &C::stage, "what travels from layer to layer; `rmoe list stages` shows all"},
        Field{"router", &C::router, "the head that scores experts; `rmoe list routers` shows all"},
        Field{
            "router_group", &C::router_group, "consecutive MoE layers that share one head; 0: all of them", {.min = 0}},
        Field{
            "state_gate", &C::state_gate,
            "the router reads x, and a gate on the stage's state, zero at the start, is added to its logits; false: it "
            "reads the state alone"},
        Field{"transforms", &C::transforms, "what changes the logits, in this order"},
        Field{"score", &C::score, "logits to scores and weights; `rmoe list scores` shows all"},
        Field{"selection", &C::selection, "which experts a token goes to; `rmoe list selections`"},
        Field{"capacity",
              &C::capacity,
              "in training, rows per expert over the even share, lowest scores dropped; 0: dropless",
              {.min = 0}},
        Field{"balance", &C::balance, "what keeps the experts evenly used, each with a weight"}};
  }
  void validate() const;
  // N: those that compute and those that do not.
  int64_t all_experts() const { return experts + null_experts + copy_experts; }
};

// What only the span family has.
struct SpanConfig {
  int64_t span = 2048;
  static constexpr auto fields() {
    return std::tuple{Field{
        "span", &SpanConfig::span, "positions before it that a token attends to (S)", {.min = 1, .max = kWidest}}};
  }
};

// Rotary positions beyond those of the pre-training. With `none` nothing else in here counts.
struct RopeScalingConfig {
  RopeScaling kind = RopeScaling::kNone;
  double factor = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  int64_t original_positions = 8192;

  static constexpr auto fields() {
    using C = RopeScalingConfig;
    return std::tuple{
        Field{"kind", &C::kind,
              "linear: all frequencies divided by factor; llama3: the low ones, with a ramp between low and high"},
        Field{"factor", &C::factor, "what frequencies are divided by", {.min = 1}},
        Field{"low_freq_factor",
              &C::low_freq_factor,
              "llama3: below this many turns within original_positions, divided in full",
              {.above = 0}},
        Field{"high_freq_factor",
              &C::high_freq_factor,
              "llama3: above this many turns, not divided; more than low_freq_factor",
              {.above = 0}},
        Field{"original_positions", &C::original_positions, "llama3: length of the pre-training's texts", {.min = 1}}};
  }
  void validate() const;
};

// What only the llama family has.
struct LlamaConfig {
  int64_t kv_heads = 0;
  int64_t head_width = 0;
  QkNorm qk_norm = QkNorm::kNone;
  bool attention_bias = false;
  double rope_theta = 10000;
  RopeScalingConfig rope_scaling;
  double norm_eps = 1e-5;
  bool tie_embeddings = false;

  static constexpr auto fields() {
    using C = LlamaConfig;
    return std::tuple{
        Field{"kv_heads",
              &C::kv_heads,
              "heads of keys and values (grouped-query attention); 0: as many as heads",
              {.min = 0}},
        Field{"head_width", &C::head_width, "channels of a head (C); 0: width / heads", {.min = 0, .max = kWidest}},
        Field{"qk_norm", &C::qk_norm,
              "RMSNorm of queries and keys, before they are turned: head: each head by itself (Qwen3); "
              "whole: all heads together (OLMoE)"},
        Field{"attention_bias", &C::attention_bias, "biases in the four projections of the attention"},
        Field{"rope_theta", &C::rope_theta, "base of the rotary embedding", {.above = 0}},
        Field{"rope_scaling", &C::rope_scaling, "longer texts than those of the pre-training"},
        Field{"norm_eps", &C::norm_eps, "epsilon of the norms", {.above = 0}},
        Field{"tie_embeddings", &C::tie_embeddings, "the head reuses the embedding"}};
  }
};

struct ModelConfig {
  Family family = Family::kSpan;
  int64_t vocab_size = 0;
  int64_t layers = 8;
  int64_t width = 352;
  int64_t heads = 8;
  int64_t dense_layers = 0;
  std::vector<int64_t> dense_at;
  int64_t dense_width = 0;
  double dropout = 0;
  double init_std = 0;
  MoeConfig moe;
  SpanConfig span;
  LlamaConfig llama;

  static constexpr auto fields() {
    using C = ModelConfig;
    return std::tuple{
        Field{"family", &C::family,
              "span: the paper's small-scale post-norm transformer; llama: pre-norm with RoPE and SwiGLU"},
        Field{"vocab_size", &C::vocab_size, "size of the vocabulary (V); 0: the data's", {.min = 0, .max = 1e9}},
        Field{"layers", &C::layers, "layers (L)", {.min = 1, .max = 10000}},
        Field{"width", &C::width, "model width (D)", {.min = 1, .max = kWidest}},
        Field{"heads", &C::heads, "attention heads (H)", {.min = 1}},
        Field{"dense_layers", &C::dense_layers, "leading layers with a dense feed-forward block", {.min = 0}},
        Field{"dense_at", &C::dense_at, "further layers, from 0, that are dense and not MoE", {.min = 0}},
        Field{"dense_width",
              &C::dense_width,
              "inner width of dense blocks; 0: top_k * expert_width",
              {.min = 0, .max = kWidest}},
        Field{"dropout",
              &C::dropout,
              "dropout; span: attention weights, inside and after experts; llama: after each block",
              {.min = 0, .below = 1}},
        Field{"init_std",
              &C::init_std,
              "standard deviation of the start; 0: torch's defaults per layer type",
              {.min = 0}},
        Field{"moe", &C::moe, "the MoE layers"},
        Field{"span", &C::span, "span family only"},
        Field{"llama", &C::llama, "llama family only"}};
  }
  // Relations between fields (widths and heads, N and K, what a family has). Allocates nothing.
  void validate() const;

  int64_t head_width() const { return llama.head_width > 0 ? llama.head_width : width / heads; }
  int64_t kv_heads() const { return llama.kv_heads > 0 ? llama.kv_heads : heads; }
  int64_t dense_inner() const { return dense_width > 0 ? dense_width : moe.top_k * moe.expert_width; }
  bool is_moe(int64_t layer) const;
  int64_t moe_layers() const;
};

}  // namespace rmoe
