#include "rmoe/ops/tensor_file.h"

#include <algorithm>

#include "rmoe/base/error.h"
#include "rmoe/io/safetensors.h"

namespace rmoe {
namespace {

constexpr std::pair<at::ScalarType, io::DType> kTypes[] = {
    {at::kFloat, io::DType::kF32}, {at::kDouble, io::DType::kF64}, {at::kBFloat16, io::DType::kBF16},
    {at::kHalf, io::DType::kF16},  {at::kLong, io::DType::kI64},   {at::kInt, io::DType::kI32},
    {at::kByte, io::DType::kU8},   {at::kBool, io::DType::kBool}};

io::DType file_type(at::ScalarType type, const std::string& name) {
  for (const auto& [torch_type, dtype] : kTypes) {
    if (torch_type == type) return dtype;
  }
  input_error("tensor ", name, ": cannot be stored as ", c10::toString(type));
}

at::ScalarType torch_type(const io::TensorEntry& entry, const std::filesystem::path& path) {
  for (const auto& [type, dtype] : kTypes) {
    if (dtype == entry.dtype) return type;
  }
  input_error(path.string(), ": tensor ", entry.name, " has dtype ", enum_name(entry.dtype), ", which is not read");
}

// A file may have sizes that torch cannot count with because another one is 0: [0, 2^62, 2^62] takes no bytes, but its
// strides do not fit int64.
void check_shape(const io::TensorEntry& entry, const std::filesystem::path& path) {
  constexpr size_t kMostDimensions = 64;  // torch's own limit
  RMOE_CHECK(entry.shape.size() <= kMostDimensions, path.string(), ": tensor ", entry.name, " has ", entry.shape.size(),
             " dimensions, expected at most ", kMostDimensions);
  int64_t bits = io::dtype_bits(entry.dtype);
  for (const int64_t size : entry.shape) {
    RMOE_CHECK(!__builtin_mul_overflow(bits, std::max<int64_t>(size, 1), &bits), path.string(), ": tensor ", entry.name,
               " has shape ", at::IntArrayRef(entry.shape), ", which is too large for a tensor");
  }
}

std::string shorten(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < names.size() && i < 5; ++i) text += (i ? ", " : "") + names[i];
  return names.size() > 5 ? rmoe::str(text, " and ", names.size() - 5, " more") : text;
}

}  // namespace

void save_tensors(const std::filesystem::path& path, const NamedTensors& tensors,
                  const std::map<std::string, std::string>& metadata) {
  std::vector<io::TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) {
    specs.push_back({name, file_type(tensor.scalar_type(), name), tensor.sizes().vec()});
  }
  io::SafetensorsWriter writer(path, specs, metadata);
  for (const auto& [name, tensor] : tensors) {
    const Tensor rows = tensor.detach().cpu().contiguous();
    writer.write(name, {static_cast<const std::byte*>(rows.const_data_ptr()), static_cast<size_t>(rows.nbytes())});
  }
  writer.finish();
}

void load_tensors(const std::filesystem::path& path, const NamedTensors& targets) {
  const io::SafetensorsFile file = io::SafetensorsFile::open(path);
  std::vector<std::string> missing, unused;
  std::map<std::string, const Tensor*> wanted;
  for (const auto& [name, tensor] : targets) {
    wanted[name] = &tensor;
    if (!file.find(name)) missing.push_back(name);
  }
  for (const io::TensorEntry& entry : file.entries()) {
    if (!wanted.contains(entry.name)) unused.push_back(entry.name);
  }
  if (!missing.empty() || !unused.empty()) {
    std::string what;
    if (!missing.empty()) what += rmoe::str(missing.size(), " missing in the file: ", shorten(missing));
    if (!unused.empty())
      what += rmoe::str(what.empty() ? "" : "; ", unused.size(), " not in the model: ", shorten(unused));
    throw Error(Exit::kBadInput, rmoe::str(path.string(), ": its tensors are not the model's: ", what));
  }
  at::NoGradGuard no_grad;
  for (const io::TensorEntry& entry : file.entries()) {
    check_shape(entry, path);
    const Tensor& target = *wanted[entry.name];
    RMOE_CHECK(target.sizes() == at::IntArrayRef(entry.shape), path.string(), ": tensor ", entry.name, " has shape ",
               at::IntArrayRef(entry.shape), ", expected ", target.sizes());
    RMOE_CHECK(target.scalar_type() == torch_type(entry, path), path.string(), ": tensor ", entry.name, " has dtype ",
               enum_name(entry.dtype), ", expected ", enum_name(file_type(target.scalar_type(), entry.name)));
    const Tensor rows = at::empty(entry.shape, target.options().device(at::kCPU));
    file.read(entry, {static_cast<std::byte*>(rows.data_ptr()), static_cast<size_t>(rows.nbytes())});
    target.detach().copy_(rows);
  }
}

std::map<std::string, Tensor> read_tensors(const std::filesystem::path& path) {
  const io::SafetensorsFile file = io::SafetensorsFile::open(path);
  std::map<std::string, Tensor> result;
  for (const io::TensorEntry& entry : file.entries()) {
    check_shape(entry, path);
    const Tensor rows = at::empty(entry.shape, torch_type(entry, path));
    file.read(entry, {static_cast<std::byte*>(rows.data_ptr()), static_cast<size_t>(rows.nbytes())});
    result[entry.name] = rows;
  }
  return result;
}

}  // namespace rmoe
