#include "rmoe/hf/weights.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/models/model.h"
#include "rmoe/ops/causal_attention.h"

namespace rmoe::hf {
namespace {

namespace fs = std::filesystem;

constexpr char kFile[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr int64_t kPiece = int64_t{1} << 20;  // elements that are converted at a time

// Text of a file made fit for a one-line message.
std::string shown(std::string_view text) {
  return json_text(Json(text.size() > 100 ? std::string(text.substr(0, 97)) + "..." : std::string(text)));
}

std::string listed(const std::vector<std::string>& names) {
  constexpr size_t kMost = 5;
  std::string text;
  for (size_t i = 0; i < names.size() && i < kMost; ++i) text += (i ? ", " : "") + shown(names[i]);
  return names.size() > kMost ? str(text, " and ", names.size() - kMost, " more") : text;
}

// A name in the folder itself, as save_pretrained writes it.
bool stays_inside(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

[[noreturn]] void refuse_other_formats(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string extension = entry.path().extension().string();
    if (extension == ".bin" || extension == ".pt" || extension == ".pth") {
      throw Error(
          Exit::kBadInput, str(entry.path().string(), ": a pickle, which is not read: loading one can run any program"),
          "where you trust it, write it as safetensors: python -c \"from transformers import AutoModelForCausalLM "
          "as M; M.from_pretrained('DIR').save_pretrained('OUT')\"");
    }
  }
  input_error(folder.string(), ": no weights: neither ", kFile, " nor ", kIndex, " is there");
}

at::ScalarType torch_type(io::DType dtype) {
  return dtype == io::DType::kF32 ? at::kFloat : dtype == io::DType::kBF16 ? at::kBFloat16 : at::kHalf;
}

// Hands the tensor on in pieces of `to`.
template <class F>
void convert(const io::SafetensorsFile& file, const io::TensorEntry& entry, at::ScalarType to, F&& put) {
  const at::ScalarType from = torch_type(entry.dtype);
  const int64_t all = entry.numel(), width = static_cast<int64_t>(c10::elementSize(from));
  Tensor buffer = at::empty({std::min(all, kPiece)}, from);
  for (int64_t begin = 0; begin < all; begin += kPiece) {
    const Tensor piece = buffer.narrow(0, 0, std::min(kPiece, all - begin));
    file.read_part(entry, begin * width,
                   {static_cast<std::byte*>(piece.mutable_data_ptr()), static_cast<size_t>(piece.nbytes())});
    const Tensor converted = piece.to(to);
    if (to == at::kHalf && from != at::kHalf) {
      RMOE_CHECK(converted.isfinite().eq(piece.isfinite()).all().item<bool>(), file.path().string(), ": tensor ",
                 entry.name, " has values beyond 65504, which fp16 cannot hold");
    }
    put(std::span(static_cast<const std::byte*>(converted.const_data_ptr()), static_cast<size_t>(converted.nbytes())));
  }
}

// Whether a tensor that no parameter takes says only what the model has anyway.
bool is_redundant(const std::string& name, const Weights::Place& place, const Weights& weights,
                  const ModelConfig& model) {
  const auto same_bytes = [&](const Weights::Place& other) {
    if (other.entry->dtype != place.entry->dtype || other.entry->shape != place.entry->shape) return false;
    std::vector<std::byte> a(static_cast<size_t>(kPiece)), b(a.size());
    for (int64_t begin = 0; begin < place.entry->byte_size(); begin += kPiece) {
      const auto size = static_cast<size_t>(std::min(kPiece, place.entry->byte_size() - begin));
      place.file->read_part(*place.entry, begin, std::span(a).first(size));
      other.file->read_part(*other.entry, begin, std::span(b).first(size));
      if (!std::equal(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(size), b.begin())) return false;
    }
    return true;
  };
  if (name == "lm_head.weight" && model.llama.tie_embeddings) {
    const auto* embedding = weights.find("model.embed_tokens.weight");
    return embedding && same_bytes(*embedding);
  }
  if (!name.ends_with(".rotary_emb.inv_freq") || model.llama.rope_scaling.kind != RopeScaling::kNone) return false;
  const io::DType dtype = place.entry->dtype;
  const bool is_float = dtype == io::DType::kF32 || dtype == io::DType::kBF16 || dtype == io::DType::kF16;
  if (!is_float || place.entry->shape != std::vector<int64_t>{model.head_width() / 2}) return false;
  const Tensor stored = at::empty(place.entry->shape, torch_type(dtype));
  place.file->read(*place.entry, {static_cast<std::byte*>(stored.mutable_data_ptr()), stored.nbytes()});
  const Tensor ours = rotary_frequencies(model.head_width(), model.llama.rope_theta, at::kFloat);
  return at::allclose(stored.to(at::kFloat), ours.to(stored.scalar_type()).to(at::kFloat), 1e-5, 0);
}

}  // namespace

void Weights::add(const io::SafetensorsFile& file, std::string_view name) {
  places_.emplace(name, Place{&file, file.find(name)});
}

Weights Weights::open(const fs::path& folder) {
  Weights weights;
  if (fs::exists(folder / kFile)) {
    weights.path_ = folder / kFile;
    weights.files_.push_back(std::make_unique<io::SafetensorsFile>(io::SafetensorsFile::open(weights.path_)));
    for (const io::TensorEntry& entry : weights.files_.back()->entries()) {
      weights.add(*weights.files_.back(), entry.name);
    }
    return weights;
  }
  if (!fs::exists(folder / kIndex)) refuse_other_formats(folder);
  weights.path_ = folder / kIndex;
  const std::string what = weights.path_.string();
  const Json index = read_json_file(weights.path_, {.depth = 8});
  const Json& map = json_member(index, "weight_map", what);
  RMOE_CHECK(map.is_object() && !map.empty(), what, ": 'weight_map' is not an object with an entry for each tensor");
  std::map<std::string, std::vector<std::string>> names_of;  // file -> tensors
  for (const auto& [name, file] : map.items()) {
    RMOE_CHECK(file.is_string(), what, ": 'weight_map' gives tensor ", shown(name), " no file name");
    const std::string file_name = file.get<std::string>();
    RMOE_CHECK(stays_inside(file_name), what, ": tensor ", shown(name), " is said to be in ", shown(file_name),
               ", expected a file of this folder");
    names_of[file_name].push_back(name);
  }
  for (const auto& [file_name, names] : names_of) {
    const fs::path path = folder / file_name;
    RMOE_CHECK(fs::exists(path), what, ": names ", shown(file_name), ", which is not there");
    weights.files_.push_back(std::make_unique<io::SafetensorsFile>(io::SafetensorsFile::open(path)));
    const io::SafetensorsFile& file = *weights.files_.back();
    for (const std::string& name : names) {
      RMOE_CHECK(file.find(name), what, ": tensor ", shown(name), " is not in ", path.string());
      weights.add(file, name);
    }
    for (const io::TensorEntry& entry : file.entries()) {
      const auto at = weights.places_.find(entry.name);
      RMOE_CHECK(at != weights.places_.end() && at->second.file == &file, what, ": tensor ", shown(entry.name), " of ",
                 path.string(), " is not in 'weight_map', or said to be in another file");
    }
  }
  return weights;
}

const Weights::Place* Weights::find(std::string_view name) const {
  const auto at = places_.find(name);
  return at == places_.end() ? nullptr : &at->second;
}

std::vector<RunTensor> run_tensors(const ModelConfig& model) {
  ParamTable table;
  make_model(model, table);
  std::vector<RunTensor> tensors;
  for (const Param& p : table.all()) {
    const auto parts = static_cast<int64_t>(p.traits.stored.names.size());
    if (parts == 0) {
      tensors.push_back({p.name, p.shape, p.is_buffer()});
      continue;
    }
    Shape shape = p.shape;
    shape[0] /= parts;
    if (p.traits.stored.drop_dim) shape.erase(shape.begin());
    for (const std::string& name : p.traits.stored.names) tensors.push_back({name, shape, p.is_buffer()});
  }
  return tensors;
}

void weights_to_run(const Weights& weights, const Described& described, const fs::path& file) {
  const ModelConfig& model = described.model;
  const std::string what = weights.path().string();
  // Before the names of all parameters are made: a config of a few bytes must not cost more than the folder holds.
  const int64_t least = 6 * model.layers + 3 * model.moe.experts * model.moe_layers();
  RMOE_CHECK(weights.count() >= least, what, ": has ", weights.count(),
             " tensors, but config.json describes a model of at least ", least);
  const std::vector<RunTensor> tensors = run_tensors(model);
  std::vector<std::string> missing, unused;
  std::map<std::string, const RunTensor*, std::less<>> wanted;
  for (const RunTensor& tensor : tensors) {
    std::string name = tensor_name(described.type, tensor.name);
    if (!weights.find(name)) missing.push_back(name);
    wanted.emplace(std::move(name), &tensor);
  }
  for (const auto& [name, place] : weights.places()) {
    if (!wanted.contains(name) && !is_redundant(name, place, weights, model)) unused.push_back(name);
  }
  if (!missing.empty() || !unused.empty()) {
    std::string sides;
    if (!missing.empty()) sides += str(missing.size(), " of the model are not in the folder: ", listed(missing));
    if (!unused.empty()) {
      sides += str(sides.empty() ? "" : "; ", unused.size(), " of the folder are not in the model: ", listed(unused));
    }
    input_error(what, ": its tensors are not those that config.json describes: ", sides);
  }
  std::vector<io::TensorSpec> specs;
  for (const auto& [name, tensor] : wanted) {
    const Weights::Place& place = *weights.find(name);
    const std::string where = str(place.file->path().string(), ": tensor ", shown(name));
    const io::DType dtype = place.entry->dtype;
    RMOE_CHECK(dtype == io::DType::kF32 || dtype == io::DType::kBF16 || dtype == io::DType::kF16, where, " has dtype ",
               enum_name(dtype), ", expected F32, BF16 or F16");
    RMOE_CHECK(place.entry->shape == tensor->shape, where, " has shape ", place.entry->shape, ", expected ",
               tensor->shape, " by config.json");
    specs.push_back({tensor->name, io::DType::kF32, tensor->shape});
  }
  io::SafetensorsWriter writer(file, specs, {{"format", "pt"}});
  for (const auto& [name, tensor] : wanted) {
    const Weights::Place& place = *weights.find(name);
    convert(*place.file, *place.entry, at::kFloat,
            [&](std::span<const std::byte> bytes) { writer.write_part(tensor->name, bytes); });
  }
  writer.finish();
}

void run_to_weights(const fs::path& file, const ModelConfig& model, ModelType type, io::DType dtype,
                    int64_t shard_bytes, const fs::path& folder) {
  RMOE_CHECK(shard_bytes > 0, "export: shards of ", shard_bytes, " bytes, expected at least 1");
  const io::SafetensorsFile run = io::SafetensorsFile::open(file);
  struct Item {
    std::string name;
    const io::TensorEntry* entry;
  };
  std::vector<std::vector<Item>> shards(1);
  int64_t filled = 0, total = 0;
  const std::vector<RunTensor> tensors = run_tensors(model);
  RMOE_CHECK(run.entries().size() == tensors.size(), file.string(), ": has ", run.entries().size(),
             " tensors, the model of config.toml has ", tensors.size());
  for (const RunTensor& tensor : tensors) {
    const io::TensorEntry& entry = run.at(tensor.name);
    RMOE_CHECK(!tensor.state, file.string(), ": tensor ", tensor.name,
               " is a state that training keeps and routing reads, which model type ", enum_name(type),
               " has no place for");
    RMOE_CHECK(entry.dtype == io::DType::kF32, file.string(), ": tensor ", tensor.name, " has dtype ",
               enum_name(entry.dtype), ", expected F32");
    RMOE_CHECK(entry.shape == tensor.shape, file.string(), ": tensor ", tensor.name, " has shape ", entry.shape,
               ", expected ", tensor.shape);
    const int64_t bytes = entry.numel() * io::dtype_bits(dtype) / 8;
    if (filled > 0 && filled + bytes > shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back({tensor_name(type, tensor.name), &entry});
    filled += bytes;
    total += bytes;
  }
  Json map = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    char name[64];
    std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    const std::string file_name = shards.size() == 1 ? kFile : name;
    std::vector<io::TensorSpec> specs;
    for (const Item& item : shards[i]) specs.push_back({item.name, dtype, item.entry->shape});
    io::SafetensorsWriter writer(folder / file_name, specs, {{"format", "pt"}});
    for (const Item& item : shards[i]) {
      convert(run, *item.entry, torch_type(dtype),
              [&](std::span<const std::byte> bytes) { writer.write_part(item.name, bytes); });
      map[item.name] = file_name;
    }
    writer.finish();
  }
  if (shards.size() == 1) return;
  const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  write_file_atomic(folder / kIndex, json_text(index, 2) + "\n");
}

}  // namespace rmoe::hf
