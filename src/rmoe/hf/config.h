// config.json of a Hugging Face folder and the model it describes. docs/huggingface.md has the table of what maps to
// what. A config that this library's models cannot compute exactly is refused, and the error names the field.
#pragma once

#include <optional>
#include <string>

#include "rmoe/base/json.h"
#include "rmoe/config/model.h"

namespace rmoe::hf {

// "model_type" in config.json.
enum class ModelType { kLlama, kMixtral, kOlmoe, kQwen3Moe, kLlamaMoeRnn };

}  // namespace rmoe::hf

namespace rmoe {
template <>
struct EnumNames<hf::ModelType> {
  static constexpr std::array names{
      std::pair{hf::ModelType::kLlama, "llama"}, std::pair{hf::ModelType::kMixtral, "mixtral"},
      std::pair{hf::ModelType::kOlmoe, "olmoe"}, std::pair{hf::ModelType::kQwen3Moe, "qwen3_moe"},
      std::pair{hf::ModelType::kLlamaMoeRnn, "llama_moe_rnn"}};
};
}  // namespace rmoe

namespace rmoe::hf {

// The type called `name`; nothing for another.
std::optional<ModelType> model_type_from_name(std::string_view name);

struct Described {
  ModelType type = ModelType::kLlama;
  ModelConfig model;         // valid, the vocabulary set
  int64_t positions = 2048;  // max_position_embeddings
};

// Error(kBadInput) beginning with `what` (the file) for a model type that is not known, sizes that make no sense and
// fields that ask for what our models do not do.
Described read_config(const Json& config, const std::string& what);

// What a folder says beside the model.
struct Extras {
  int64_t positions = 2048;
  Json eos, bos, pad;             // ids as config.json has them: a number, a list or null
  std::string dtype = "float32";  // of the tensors
};

// The config.json that describes `model` as `type`. Error(kBadInput) naming the first setting that this type has no
// field for.
Json write_config(const ModelConfig& model, ModelType type, const Extras& extras);

// The first of the types that can express `model`, the plainer before the richer; or Error(kBadInput) with the reason
// of each.
ModelType choose_type(const ModelConfig& model);

// The tensor of a `type` folder that is the run's `name`, the llama_moe_rnn name that the parameter table uses.
std::string tensor_name(ModelType type, const std::string& name);

}  // namespace rmoe::hf
