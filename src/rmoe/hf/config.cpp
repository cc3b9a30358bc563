#include "rmoe/hf/config.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/recurrence/cell_stage.h"

namespace rmoe::hf {
namespace {

std::string shortened(const Json& value) {
  std::string text = json_text(value);
  return text.size() > 40 ? text.substr(0, 37) + "..." : text;
}

// Reads members with transformers' defaults; null counts as not given.
class Reader {
 public:
  Reader(const Json& object, std::string what) : object_(object), what_(std::move(what)) {}

  const Json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  int64_t integer(const char* key, double low, double high, std::optional<int64_t> fallback = {}) const {
    if (!find(key)) {
      RMOE_CHECK(fallback, what_, ": '", key, "' is missing");
      return *fallback;
    }
    const int64_t value = json_int(object_, key, what_);
    RMOE_CHECK(static_cast<double>(value) >= low && static_cast<double>(value) <= high, what_, ": '", key, "' is ",
               value, ", expected ", static_cast<int64_t>(low), " to ", static_cast<int64_t>(high));
    return value;
  }
  int64_t width(const char* key, std::optional<int64_t> fallback = {}) const {
    return integer(key, 1, kWidest, fallback);
  }

  double number(const char* key, double fallback) const {
    if (!find(key)) return fallback;
    const double value = json_double(object_, key, what_);
    RMOE_CHECK(std::isfinite(value), what_, ": '", key, "' is ", shortened(object_.at(key)),
               ", expected a finite number");
    return value;
  }
  double positive(const char* key, double fallback) const {
    const double value = number(key, fallback);
    RMOE_CHECK(value > 0, what_, ": '", key, "' is ", value, ", expected more than 0");
    return value;
  }
  double not_negative(const char* key, double fallback) const {
    const double value = number(key, fallback);
    RMOE_CHECK(value >= 0, what_, ": '", key, "' is ", value, ", expected at least 0");
    return value;
  }

  bool flag(const char* key, bool fallback) const { return find(key) ? json_bool(object_, key, what_) : fallback; }
  std::string text(const char* key, const std::string& fallback) const {
    return find(key) ? json_string(object_, key, what_) : fallback;
  }

  // A field that our models have no counterpart for may only say what changes nothing.
  void only(const char* key, const Json& inert) const {
    const Json* value = find(key);
    RMOE_CHECK(!value || *value == inert, what_, ": '", key, "' is ", value ? shortened(*value) : "",
               ", which is not supported; expected ", inert.is_null() ? "nothing" : json_text(inert));
  }
  [[noreturn]] void refuse(const char* key, const std::string& why) const {
    input_error(what_, ": '", key, "' is ", shortened(object_.at(key)), ", ", why);
  }

  const std::string& what() const { return what_; }
  const Json& object() const { return object_; }

 private:
  const Json& object_;
  std::string what_;
};

// Rotary positions: rope_theta and rope_scaling, or rope_parameters as transformers 5 writes them.
void read_rope(const Reader& in, double theta, LlamaConfig& llama) {
  llama.rope_theta = in.positive("rope_theta", theta);
  in.only("partial_rotary_factor", 1.0);
  const char* key = in.find("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (in.find("rope_parameters") && in.find("rope_scaling")) {
    in.refuse("rope_scaling", "beside 'rope_parameters'; expected one of them");
  }
  const Json* found = in.find(key);
  if (!found) return;
  if (!found->is_object()) in.refuse(key, "expected an object");
  const Reader rope(*found, str(in.what(), ": ", key));
  llama.rope_theta = rope.positive("rope_theta", llama.rope_theta);
  rope.only("partial_rotary_factor", 1.0);
  const std::string kind = rope.text("rope_type", rope.text("type", "default"));
  RopeScalingConfig& scaling = llama.rope_scaling;
  if (kind == "default") return;
  RMOE_CHECK(kind == "linear" || kind == "llama3", rope.what(), ": 'rope_type' is '", kind,
             "', which is not supported; expected default, linear or llama3");
  scaling.kind = kind == "linear" ? RopeScaling::kLinear : RopeScaling::kLlama3;
  scaling.factor = rope.number("factor", 0);
  RMOE_CHECK(scaling.factor >= 1, rope.what(), ": 'factor' is ", scaling.factor, ", expected at least 1");
  if (kind == "linear") return;
  scaling.low_freq_factor = rope.positive("low_freq_factor", 1);
  scaling.high_freq_factor = rope.positive("high_freq_factor", 4);
  scaling.original_positions = rope.integer("original_max_position_embeddings", 1, 1e12);
}

// A window that no text leaves changes nothing.
void check_window(const Reader& in, int64_t positions, bool used) {
  if (!used || !in.find("sliding_window")) return;
  if (in.integer("sliding_window", 0, 1e12) < positions) {
    in.refuse("sliding_window",
              str("which is not supported; expected null, or at least max_position_embeddings = ", positions));
  }
}

void read_moe_rnn(const Reader& in, ModelConfig& m) {
  const int64_t moe_layers = in.integer("moe_num_layers", 0, static_cast<double>(m.layers), m.layers);
  m.dense_layers = m.layers - moe_layers;
  m.dense_width = in.width("intermediate_size");
  m.moe.experts = in.integer("num_local_experts", 1, kMostExperts, 8);
  m.moe.expert_width = in.width("moe_expert_intermediate_size", m.dense_width);
  if (in.flag("add_moe_share_expert", false)) {
    m.moe.shared_width = in.width("moe_share_expert_intermediate_size", m.dense_width);
    m.moe.moe_weight = in.number("moe_weight", 0.5);
    m.moe.shared_weight = in.number("share_weight", 0.5);
  }
  m.moe.bias = in.flag("add_moe_bias", false);
  const std::string router = in.text("moe_router_type", "gru");
  if (router == "gru" || router == "rnn") {
    const int64_t width = in.width("moe_router_rnn_hidden_size", 256);
    routing::CellStage::Options options;
    options.state.width = width;
    m.moe.stage = Choice<routing::StageRegistry>(router, options);
  }
}

// num_experts, which transformers 5 writes as num_local_experts.
int64_t read_experts(const Reader& in, int64_t fallback) {
  const int64_t local = in.integer("num_local_experts", 1, kMostExperts, fallback);
  const int64_t experts = in.integer("num_experts", 1, kMostExperts, local);
  if (in.find("num_local_experts") && local != experts) {
    in.refuse("num_local_experts", str("but 'num_experts' is ", experts, "; expected one number"));
  }
  return experts;
}

void read_qwen3(const Reader& in, ModelConfig& m) {
  m.llama.qk_norm = QkNorm::kHead;
  m.dense_width = in.width("intermediate_size", 6144);
  m.moe.experts = read_experts(in, 128);
  m.moe.expert_width = in.width("moe_intermediate_size", 768);
  // Layer i is MoE where i + 1 is a multiple of the step.
  m.moe.every = in.integer("decoder_sparse_step", 1, 1e6, 1);
  m.dense_layers = std::min(m.moe.every - 1, m.layers);
  std::set<int64_t> dense_at;
  if (const Json* list = in.find("mlp_only_layers")) {
    if (!list->is_array()) in.refuse("mlp_only_layers", "expected a list");
    for (const Json& layer : *list) {
      if (!layer.is_number_integer() || layer.get<int64_t>() < 0 || layer.get<int64_t>() >= m.layers) {
        in.refuse("mlp_only_layers", str("expected layers from 0 to ", m.layers - 1));
      }
      dense_at.insert(layer.get<int64_t>());
    }
  }
  m.dense_at.assign(dense_at.begin(), dense_at.end());
  // One spelling for each model: the leading dense layers, and a list of the others.
  std::vector<int64_t> dense;
  for (int64_t i = 0; i < m.layers; ++i) {
    if (!m.is_moe(i)) dense.push_back(i);
  }
  m.moe.every = 1;
  m.dense_layers = 0;
  while (m.dense_layers < std::ssize(dense) && dense[static_cast<size_t>(m.dense_layers)] == m.dense_layers) {
    ++m.dense_layers;
  }
  m.dense_at.assign(dense.begin() + m.dense_layers, dense.end());
}

// One spelling of each model: what two configs that compute the same have in common.
ModelConfig canonical(ModelConfig m) {
  std::vector<int64_t> dense;
  for (int64_t i = 0; i < m.layers; ++i) {
    if (!m.is_moe(i)) dense.push_back(i);
  }
  const int64_t kv_heads = m.kv_heads(), head_width = m.head_width(), inner = m.dense_inner();
  if (std::ssize(dense) == m.layers) m.moe = {};
  if (m.moe.shared_width == 0) m.moe.moe_weight = m.moe.shared_weight = 0.5;
  if (m.llama.rope_scaling.kind == RopeScaling::kNone) m.llama.rope_scaling = {};
  if (m.llama.rope_scaling.kind == RopeScaling::kLinear) {
    m.llama.rope_scaling = {.kind = RopeScaling::kLinear, .factor = m.llama.rope_scaling.factor};
  }
  m.llama.kv_heads = kv_heads;
  m.llama.head_width = head_width;
  m.dense_width = dense.empty() ? 0 : inner;
  m.dense_layers = 0;
  m.moe.every = 1;
  m.dense_at = std::move(dense);
  m.span = {};
  return m;
}

// What matters in training alone, and what makes a start: an exported model computes the same without it.
bool is_inert(const std::string& key) {
  for (const char* inert : {"/dropout", "/init_std", "/moe/capacity", "/moe/stage/gradient_layers"}) {
    if (key == inert) return true;
  }
  return key.starts_with("/moe/balance");
}

// The first setting of `model` that a config of this type does not bring back; nothing when it brings back all.
std::optional<std::string> lost_setting(const ModelConfig& model, const ModelConfig& read_back) {
  const Json ours = to_json(canonical(model)).flatten(), theirs = to_json(canonical(read_back)).flatten();
  for (const auto& [key, value] : ours.items()) {
    if (is_inert(key) || (theirs.contains(key) && theirs.at(key) == value)) continue;
    std::string dotted = "model" + key;
    for (char& c : dotted) c = c == '/' ? '.' : c;
    return str(dotted, " = ", json_text(value));
  }
  for (const auto& [key, value] : theirs.items()) {
    if (is_inert(key) || ours.contains(key)) continue;
    std::string dotted = "model" + key;
    for (char& c : dotted) c = c == '/' ? '.' : c;
    return str("a model without ", dotted);
  }
  return {};
}

// The weight of transformers' balance loss; 0 where the run balances otherwise.
double aux_weight(const ModelConfig& m) {
  for (const BalanceConfig& balance : m.moe.balance) {
    if (balance.loss.kind() == "concatenated") return balance.weight;
  }
  return 0;
}

Json config_fields(const ModelConfig& m, ModelType type, const Extras& extras) {
  const bool has_moe = m.moe_layers() > 0;
  Json c;
  const auto architecture = [&] {
    switch (type) {
      case ModelType::kLlama:
        return "LlamaForCausalLM";
      case ModelType::kMixtral:
        return "MixtralForCausalLM";
      case ModelType::kOlmoe:
        return "OlmoeForCausalLM";
      case ModelType::kQwen3Moe:
        return "Qwen3MoeForCausalLM";
      case ModelType::kLlamaMoeRnn:
        break;
    }
    return "LlamaMoERNNForCausalLM";
  };
  c["architectures"] = Json::array({architecture()});
  c["model_type"] = enum_name(type);
  if (type == ModelType::kLlamaMoeRnn) {
    c["auto_map"] = {{"AutoConfig", "configuration_llama_moe_rnn.LlamaMoERNNConfig"},
                     {"AutoModelForCausalLM", "modeling_llama_moe_rnn.LlamaMoERNNForCausalLM"}};
  }
  c["torch_dtype"] = extras.dtype;
  c["vocab_size"] = m.vocab_size;
  c["hidden_size"] = m.width;
  c["num_hidden_layers"] = m.layers;
  c["num_attention_heads"] = m.heads;
  c["num_key_value_heads"] = m.kv_heads();
  if (type != ModelType::kOlmoe) c["head_dim"] = m.head_width();
  c["hidden_act"] = "silu";
  c["max_position_embeddings"] = extras.positions;
  if (m.init_std > 0) c["initializer_range"] = m.init_std;
  c["rms_norm_eps"] = m.llama.norm_eps;
  c["rope_theta"] = m.llama.rope_theta;
  const RopeScalingConfig& scaling = m.llama.rope_scaling;
  if (scaling.kind == RopeScaling::kNone) {
    c["rope_scaling"] = nullptr;
  } else {
    c["rope_scaling"] = {{"rope_type", enum_name(scaling.kind)}, {"factor", scaling.factor}};
    if (scaling.kind == RopeScaling::kLlama3) {
      c["rope_scaling"]["low_freq_factor"] = scaling.low_freq_factor;
      c["rope_scaling"]["high_freq_factor"] = scaling.high_freq_factor;
      c["rope_scaling"]["original_max_position_embeddings"] = scaling.original_positions;
    }
  }
  if (type != ModelType::kMixtral) c["attention_bias"] = m.llama.attention_bias;
  c["tie_word_embeddings"] = m.llama.tie_embeddings;
  if (type == ModelType::kLlama) {
    c["mlp_bias"] = false;
    c["intermediate_size"] = m.dense_inner();
  }
  if (type == ModelType::kMixtral || type == ModelType::kOlmoe) c["intermediate_size"] = m.moe.expert_width;
  if (type != ModelType::kLlama) {
    c["num_experts_per_tok"] = m.moe.top_k;
    const bool local = type == ModelType::kMixtral || type == ModelType::kLlamaMoeRnn;
    c[local ? "num_local_experts" : "num_experts"] = m.moe.experts;
    c["router_aux_loss_coef"] = aux_weight(m);
    c["output_router_logits"] = false;
  }
  if (type == ModelType::kOlmoe || type == ModelType::kQwen3Moe) {
    c["norm_topk_prob"] = m.moe.score.kind() == "softmax_selected";
  }
  if (type == ModelType::kMixtral) c["sliding_window"] = nullptr;
  if (type == ModelType::kOlmoe) c["clip_qkv"] = nullptr;
  if (type == ModelType::kQwen3Moe) {
    c["intermediate_size"] = m.dense_inner();
    c["moe_intermediate_size"] = m.moe.expert_width;
    c["decoder_sparse_step"] = 1;
    c["mlp_only_layers"] = Json::array();
    for (int64_t i = 0; i < m.layers; ++i) {
      if (!m.is_moe(i)) c["mlp_only_layers"].push_back(i);
    }
    c["use_sliding_window"] = false;
    c["sliding_window"] = nullptr;
  }
  if (type == ModelType::kLlamaMoeRnn) {
    const Json stage = to_json(m).at("moe").at("stage");
    c["intermediate_size"] = m.dense_inner();
    c["moe_num_layers"] = m.moe_layers();
    c["moe_expert_intermediate_size"] = m.moe.expert_width;
    c["add_moe_share_expert"] = has_moe && m.moe.shared_width > 0;
    c["moe_share_expert_intermediate_size"] = m.moe.shared_width > 0 ? Json(m.moe.shared_width) : Json();
    c["moe_weight"] = m.moe.moe_weight;
    c["share_weight"] = m.moe.shared_weight;
    c["add_moe_bias"] = m.moe.bias;
    const bool recurrent = m.moe.stage.kind() == "gru" || m.moe.stage.kind() == "rnn";
    c["moe_router_type"] = recurrent ? m.moe.stage.kind() : "linear";
    if (recurrent) c["moe_router_rnn_hidden_size"] = stage.at("width");
  }
  c["bos_token_id"] = extras.bos;
  c["eos_token_id"] = extras.eos;
  c["pad_token_id"] = extras.pad;
  c["use_cache"] = true;
  return c;
}

}  // namespace

std::optional<ModelType> model_type_from_name(std::string_view name) {
  for (const auto& [type, text] : EnumNames<ModelType>::names) {
    if (name == text) return type;
  }
  return {};
}

Described read_config(const Json& config, const std::string& what) {
  RMOE_CHECK(config.is_object(), what, ": not a JSON object");
  const Reader in(config, what);
  Described d;
  const std::string name = json_string(config, "model_type", what);
  const auto type = model_type_from_name(name);
  if (!type) {
    throw Error(Exit::kBadInput, str(what, ": 'model_type' is ", shortened(name), ", which is not supported"),
                "supported are llama, mixtral, olmoe, qwen3_moe and llama_moe_rnn");
  }
  d.type = *type;
  if (in.find("quantization_config")) in.refuse("quantization_config", "quantized weights are not read");
  ModelConfig& m = d.model;
  m.family = Family::kLlama;
  m.vocab_size = in.integer("vocab_size", 1, 1e9);
  m.width = in.width("hidden_size");
  m.layers = in.integer("num_hidden_layers", 1, 10000);
  m.heads = in.width("num_attention_heads");
  // Not given is not null: null means as many as heads.
  const int64_t kv_heads = config.contains("num_key_value_heads") ? m.heads
                           : d.type == ModelType::kMixtral        ? 8
                           : d.type == ModelType::kQwen3Moe       ? 4
                                                                  : m.heads;
  m.llama.kv_heads = in.width("num_key_value_heads", kv_heads);
  // Qwen3's class takes the attribute where it is there, the others' too; only OLMoE knows no such field.
  if (d.type != ModelType::kOlmoe && in.find("head_dim")) {
    m.llama.head_width = in.width("head_dim");
    // One spelling for each model, so that a way there and back ends where it began.
    if (m.llama.head_width * m.heads == m.width) m.llama.head_width = 0;
  }
  RMOE_CHECK(m.llama.head_width > 0 || m.width % m.heads == 0, what, ": 'hidden_size' is ", m.width,
             ", which 'num_attention_heads' = ", m.heads, " does not divide");
  RMOE_CHECK(m.heads % m.llama.kv_heads == 0, what, ": 'num_attention_heads' is ", m.heads,
             ", which 'num_key_value_heads' = ", m.llama.kv_heads, " does not divide");
  const std::string activation = in.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") in.refuse("hidden_act", "which is not supported; expected silu");
  const bool strict_eps = d.type == ModelType::kMixtral || d.type == ModelType::kOlmoe;
  m.llama.norm_eps = in.positive("rms_norm_eps", strict_eps ? 1e-5 : 1e-6);
  m.init_std = in.not_negative("initializer_range", 0.02);
  read_rope(in, d.type == ModelType::kMixtral ? 1e6 : 10000, m.llama);
  m.llama.tie_embeddings = in.flag("tie_word_embeddings", false);
  const double attention_dropout = in.not_negative("attention_dropout", 0);
  if (attention_dropout != 0) in.refuse("attention_dropout", "which is not supported; expected 0");
  d.positions = in.integer("max_position_embeddings", 1, 1e12,
                           d.type == ModelType::kMixtral    ? 131072
                           : d.type == ModelType::kQwen3Moe ? 32768
                           : d.type == ModelType::kOlmoe    ? 4096
                                                            : 2048);
  for (const int64_t id : json_ints(config, "eos_token_id", what)) {
    RMOE_CHECK(id < m.vocab_size, what, ": 'eos_token_id' has the id ", id, ", but 'vocab_size' is ", m.vocab_size);
  }
  if (d.type != ModelType::kMixtral) m.llama.attention_bias = in.flag("attention_bias", false);

  if (d.type != ModelType::kLlama) {
    m.moe.top_k = in.integer("num_experts_per_tok", 1, kMostExperts,
                             d.type == ModelType::kOlmoe || d.type == ModelType::kQwen3Moe ? 8 : 2);
    const double weight = in.not_negative("router_aux_loss_coef", d.type == ModelType::kOlmoe ? 0.01 : 0.001);
    BalanceConfig balance;
    balance.loss.set_kind("concatenated");
    balance.weight = weight;
    m.moe.balance = {balance};
  }
  switch (d.type) {
    case ModelType::kLlama:
      in.only("mlp_bias", false);
      m.dense_layers = m.layers;
      m.dense_width = in.width("intermediate_size");
      break;
    case ModelType::kMixtral:
      if (in.not_negative("router_jitter_noise", 0) != 0) {
        in.refuse("router_jitter_noise", "which is not supported; expected 0");
      }
      check_window(in, d.positions, true);
      m.moe.experts = in.integer("num_local_experts", 1, kMostExperts, 8);
      m.moe.expert_width = in.width("intermediate_size", 14336);
      break;
    case ModelType::kOlmoe:
      in.only("clip_qkv", nullptr);
      m.llama.qk_norm = QkNorm::kWhole;
      m.moe.experts = read_experts(in, 64);
      m.moe.expert_width = in.width("intermediate_size", 2048);
      break;
    case ModelType::kQwen3Moe:
      check_window(in, d.positions, in.flag("use_sliding_window", false));
      read_qwen3(in, m);
      break;
    case ModelType::kLlamaMoeRnn:
      in.only("mlp_bias", false);
      read_moe_rnn(in, m);
      break;
  }
  if (d.type == ModelType::kOlmoe || d.type == ModelType::kQwen3Moe) {
    m.moe.score.set_kind(in.flag("norm_topk_prob", false) ? "softmax_selected" : "softmax");
  }
  if (m.moe_layers() > 0) {
    RMOE_CHECK(m.moe.top_k <= m.moe.experts, what, ": 'num_experts_per_tok' is ", m.moe.top_k, " of ", m.moe.experts,
               " experts");
  } else {
    m.moe = {};
  }
  try {
    m.validate();
  } catch (const Error& error) {
    input_error(what, ": ", error.message());
  }
  return d;
}

Json write_config(const ModelConfig& model, ModelType type, const Extras& extras) {
  RMOE_CHECK(model.family == Family::kLlama, "export: model.family is ", enum_name(model.family),
             ", which no Hugging Face type can express; expected llama");
  RMOE_CHECK(type != ModelType::kLlama || model.moe_layers() == 0, "export: model type llama cannot express ",
             model.moe_layers(), " MoE layers");
  Json config = config_fields(model, type, extras);
  Described back;
  std::optional<std::string> lost;
  try {
    back = read_config(config, "config.json");
    lost = lost_setting(model, back.model);
  } catch (const Error& error) {
    lost = error.message();
  }
  RMOE_CHECK(!lost, "export: model type ", enum_name(type), " cannot express ", *lost);
  return config;
}

ModelType choose_type(const ModelConfig& model) {
  std::string reasons;
  for (const auto& [type, name] : EnumNames<ModelType>::names) {
    try {
      write_config(model, type, {});
      return type;
    } catch (const Error& error) {
      if (model.family != Family::kLlama) throw;
      std::string reason = error.message();
      const std::string_view lead = "cannot express ";
      if (const size_t at = reason.find(lead); at != std::string::npos) reason.erase(0, at + lead.size());
      reasons += str(reasons.empty() ? "" : "; ", name, " cannot express ", reason);
    }
  }
  input_error("export: no model type can express this run: ", reasons);
}

std::string tensor_name(ModelType type, const std::string& name) {
  if (type != ModelType::kOlmoe && type != ModelType::kQwen3Moe) return name;
  constexpr std::string_view kBlock = ".block_sparse_moe.";
  const size_t at = name.find(kBlock);
  if (at == std::string::npos) return name;
  std::string result = name.substr(0, at) + ".mlp." + name.substr(at + kBlock.size());
  for (const auto& [ours, theirs] :
       {std::pair{".w1.", ".gate_proj."}, std::pair{".w2.", ".down_proj."}, std::pair{".w3.", ".up_proj."}}) {
    const std::string_view part = ours;
    if (const size_t found = result.find(part); found != std::string::npos) result.replace(found, part.size(), theirs);
  }
  return result;
}

}  // namespace rmoe::hf
