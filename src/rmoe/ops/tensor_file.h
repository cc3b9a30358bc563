// Tensors to and from safetensors files.
#pragma once

#include <filesystem>
#include <map>

#include "rmoe/ops/torch.h"

namespace rmoe {

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

// Writes CPU or device tensors of any layout; the file holds them row-major. Error(kIo) naming the file.
void save_tensors(const std::filesystem::path& path, const NamedTensors& tensors,
                  const std::map<std::string, std::string>& metadata = {});

// Copies the file's tensors into `targets` in place. Every target must be in the file with its dtype and shape, and
// every tensor of the file must have a target; otherwise Error(kBadInput) that lists both sides.
void load_tensors(const std::filesystem::path& path, const NamedTensors& targets);

// All tensors of a file, copied.
std::map<std::string, Tensor> read_tensors(const std::filesystem::path& path);

}  // namespace rmoe
