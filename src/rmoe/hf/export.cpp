// rmoe export: a run's checkpoint becomes a Hugging Face folder.
#include "rmoe/base/log.h"
#include "rmoe/eval/run.h"
#include "rmoe/hf/carried.h"
#include "rmoe/hf/commands.h"
#include "rmoe/hf/config.h"
#include "rmoe/hf/modeling.h"
#include "rmoe/hf/weights.h"
#include "rmoe/io/staging.h"

namespace rmoe::hf {
namespace {

namespace fs = std::filesystem;

struct Dtype {
  const char* name;
  io::DType stored;
  const char* torch;
};
constexpr Dtype kDtypes[] = {
    {"fp32", io::DType::kF32, "float32"}, {"bf16", io::DType::kBF16, "bfloat16"}, {"fp16", io::DType::kF16, "float16"}};

const Dtype& find_dtype(const std::string& name) {
  for (const Dtype& dtype : kDtypes) {
    if (name == dtype.name) return dtype;
  }
  input_error("export: dtype ", name, ", expected fp32, bf16 or fp16");
}

// What the imported folder said beside the model; defaults for a run that was trained here.
Extras extras_of(const FoundRun& run, const Json& carried, const char* torch_dtype) {
  Extras extras;
  extras.dtype = torch_dtype;
  extras.positions = std::max<int64_t>(run.config.train.block, extras.positions);
  const data::Tokenizer& tokenizer = *run.tokenizer;
  if (tokenizer.separator()) extras.eos = *tokenizer.separator();
  if (const auto first = tokenizer.encode(""); first.size() == 1) extras.bos = first.front();
  const auto take = [&](const char* key, Json& into) {
    if (carried.contains(key)) into = carried.at(key);
  };
  take("eos_token_id", extras.eos);
  take("bos_token_id", extras.bos);
  take("pad_token_id", extras.pad);
  Json positions;
  take("max_position_embeddings", positions);
  if (positions.is_number_integer() && positions > 0) extras.positions = positions.get<int64_t>();
  return extras;
}

ModelType type_of(const ExportCommand& command, const ModelConfig& model, const Json& carried, const Extras& extras) {
  if (!command.type.empty()) {
    const auto type = model_type_from_name(command.type);
    RMOE_CHECK(type, "export: model type '", command.type,
               "' is not known; expected llama, mixtral, olmoe, qwen3_moe or llama_moe_rnn");
    return *type;
  }
  if (carried.contains("model_type") && carried.at("model_type").is_string()) {
    const auto type = model_type_from_name(carried.at("model_type").get<std::string>());
    try {
      if (type) write_config(model, *type, extras);
      if (type) return *type;
    } catch (const Error& error) {
      log_info("not ", enum_name(*type), " any more: ", error.message());
    }
  }
  return choose_type(model);
}

// A run's own tokenizer: for the way back, and for transformers where it has a form of it. AutoTokenizer wants the
// class beside, which it cannot tell from the model's type, and the token that ends a text.
void save_tokenizer(const data::Tokenizer& tokenizer, const fs::path& folder) {
  const fs::path inner = folder / ".tokenizer";
  fs::create_directory(inner);
  tokenizer.save(inner);
  for (const auto& entry : fs::directory_iterator(inner)) {
    const std::string name = entry.path().filename().string();
    fs::rename(entry.path(), folder / (name == "tokenizer.json" ? "rmoe_tokenizer.json" : name));
  }
  fs::remove(inner);
  const Json form = tokenizer.huggingface_form();
  if (form.is_null()) {
    log_info("the tokenizer is of kind '", tokenizer.kind(), "', which transformers has no form of: it is in ",
             "rmoe_tokenizer.json, which `rmoe import` reads");
    return;
  }
  Json config{{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  if (tokenizer.separator()) {
    const std::string end = data::token_text(form, *tokenizer.separator());
    if (!end.empty()) config["eos_token"] = end;
  }
  write_file_atomic(folder / "tokenizer.json", json_text(form) + "\n");
  write_file_atomic(folder / "tokenizer_config.json", json_text(config, 2) + "\n");
}

}  // namespace

ExportReport export_run(const ExportCommand& command) {
  const Dtype& dtype = find_dtype(command.dtype);
  const FoundRun run = find_run(command.run, Which::parse(command.checkpoint));
  const ModelConfig& model = run.config.model;
  RMOE_CHECK(!model.moe.state_gate, "export: ", command.run,
             ": has two gates per router, model.moe.state_gate = true, which no model type can express");
  const fs::path carried_folder = fs::path(command.run) / kCarriedFolder;
  const bool carries = fs::exists(carried_folder / "config.json");
  const Json carried = carries ? read_json_file(carried_folder / "config.json") : Json::object();
  const Extras extras = extras_of(run, carried, dtype.torch);
  const ModelType type = type_of(command, model, carried, extras);
  const Json config = write_config(model, type, extras);
  io::Staging staging(command.folder);
  run_to_weights(run.checkpoint.dir / "model.safetensors", model, type, dtype.stored, command.shard_bytes,
                 staging.dir());
  if (carries) carry(carried_folder, staging.dir());
  write_file_atomic(staging.dir() / "config.json", json_text(config, 2) + "\n");
  const auto there = [&](const char* name) { return fs::exists(staging.dir() / name); };
  if (!there("tokenizer.json") && !there("tokenizer.model") && !there("rmoe_tokenizer.json")) {
    save_tokenizer(*run.tokenizer, staging.dir());
  }
  if (type == ModelType::kLlamaMoeRnn) {
    for (const auto& [name, text] : modeling_files()) write_file_atomic(staging.dir() / name, text);
    if (modeling_files().empty())
      log_warn("this build has no modeling files: the folder loads with `import rmoe` only");
  }
  staging.commit();
  for (const BalanceConfig& balance : model.moe.balance) {
    if (balance.loss.kind() == "concatenated" || model.moe_layers() == 0) continue;
    log_warn("balance loss '", balance.loss.kind(),
             "' has no place in config.json: whoever trains on there balances by router_aux_loss_coef = ",
             json_text(config.at("router_aux_loss_coef")));
  }
  return {.folder = command.folder, .model_type = enum_name(type), .checkpoint_step = run.checkpoint.step};
}

}  // namespace rmoe::hf
