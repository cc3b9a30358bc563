// The tensors of a Hugging Face folder, in one safetensors file or in shards, and how they get from there into a run's
// checkpoint and back: one after the other, in pieces of a few megabytes, so that a checkpoint may be larger than
// memory.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "rmoe/config/model.h"
#include "rmoe/hf/config.h"
#include "rmoe/io/safetensors.h"

namespace rmoe::hf {

// All tensors of a folder: model.safetensors, or what model.safetensors.index.json names.
class Weights {
 public:
  struct Place {
    const io::SafetensorsFile* file;
    const io::TensorEntry* entry;
  };

  // Error(kBadInput) naming the file: a file or an index that is malformed, names a file outside the folder, or
  // disagrees with what the files hold; weights as pickles only; none at all.
  static Weights open(const std::filesystem::path& folder);

  const Place* find(std::string_view name) const;
  int64_t count() const { return static_cast<int64_t>(places_.size()); }
  const std::map<std::string, Place, std::less<>>& places() const { return places_; }
  // What to call the whole in a message: the one file, or the index.
  const std::filesystem::path& path() const { return path_; }

 private:
  void add(const io::SafetensorsFile& file, std::string_view name);

  std::filesystem::path path_;
  std::vector<std::unique_ptr<io::SafetensorsFile>> files_;
  std::map<std::string, Place, std::less<>> places_;
};

// A tensor of a run's model.safetensors.
struct RunTensor {
  std::string name;
  std::vector<int64_t> shape;
  bool state = false;  // kept by training and read by the routing, without a gradient
};
// Those of a model, from the declarations alone. Sizes as in the config: see ModelConfig::validate.
std::vector<RunTensor> run_tensors(const ModelConfig& model);

// Writes the run's file (fp32) from the folder's tensors (fp32, bf16 or fp16). Error(kBadInput) listing both sides when
// a tensor of the model is not in the folder or one of the folder not in the model, and for shapes and element types
// that do not fit. A head that repeats tied embeddings, and stored rotary frequencies, are allowed where they say what
// the config says.
void weights_to_run(const Weights& weights, const Described& described, const std::filesystem::path& file);

// Writes model.safetensors, or shards of at most `shard_bytes` (but at least one tensor) and their index, into `folder`
// from the run's file. dtype: F32, BF16 or F16. Error(kBadInput) for a value that fp16 cannot hold.
void run_to_weights(const std::filesystem::path& file, const ModelConfig& model, ModelType type, io::DType dtype,
                    int64_t shard_bytes, const std::filesystem::path& folder);

}  // namespace rmoe::hf
