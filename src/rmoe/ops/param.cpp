#include "rmoe/ops/param.h"

#include <cmath>

#include <ATen/CPUGeneratorImpl.h>

#include "rmoe/base/error.h"
#include "rmoe/base/rng.h"

namespace rmoe {

Init matrix_init(int64_t fan_in, double deviation) {
  return deviation > 0 ? Init::normal(deviation) : Init::uniform(1 / std::sqrt(static_cast<double>(fan_in)));
}

Init bias_init(int64_t fan_in, double deviation) {
  return deviation > 0 ? Init::zeros() : matrix_init(fan_in, deviation);
}

int64_t Param::count() const { return c10::multiply_integers(shape); }

std::vector<std::pair<std::string, Tensor>> Param::stored() const {
  if (traits.stored.names.empty()) return {{name, value}};
  const auto parts = static_cast<int64_t>(traits.stored.names.size());
  RMOE_ASSERT(shape.at(0) % parts == 0, name, ": first dimension ", shape.at(0), " in ", parts, " parts");
  std::vector<std::pair<std::string, Tensor>> result;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t rows = shape[0] / parts;
    Tensor part = value.defined() ? value.narrow(0, i * rows, rows) : Tensor();
    if (part.defined() && traits.stored.drop_dim) part = part.squeeze(0);
    result.emplace_back(traits.stored.names[i], part);
  }
  return result;
}

ParamTable::ParamTable(uint64_t seed, at::ScalarType dtype, at::Device device) {
  make_ = [=](const Param& param) {
    at::NoGradGuard no_grad;
    if (param.is_buffer()) return at::zeros(param.shape, at::TensorOptions(device).dtype(*param.traits.buffer));
    // Drawn in fp32 on the CPU for every dtype and device, so that they all start from the same numbers.
    const uint64_t stream = hash_text(param.name);
    at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(mix(seed, stream, 0));
    Tensor start = at::empty(param.shape, at::kFloat);
    switch (param.init.kind) {
      case Init::Kind::kConstant:
        start.fill_(param.init.value);
        break;
      case Init::Kind::kNormal:
        start.normal_(0, param.init.value, generator);
        break;
      case Init::Kind::kUniform:
        start.uniform_(-param.init.value, param.init.value, generator);
        break;
    }
    return start.to(at::TensorOptions(device).dtype(dtype)).requires_grad_(param.traits.trainable);
  };
}

Tensor ParamTable::add(std::string name, Shape shape, Init init, ParamTraits traits) {
  const bool is_new = names_.insert(name).second;
  RMOE_ASSERT(is_new, "parameter ", name, " is declared twice");
  for (int64_t size : shape) RMOE_CHECK(size > 0, "parameter ", name, ": every size must be positive, got ", size);
  Param param{std::move(name), std::move(shape), init, std::move(traits), {}};
  if (make_) param.value = make_(param);
  params_.push_back(std::move(param));
  return params_.back().value;
}

std::vector<std::pair<std::string, Tensor>> ParamTable::stored() const {
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const Param& p : params_) {
    for (auto& part : p.stored()) tensors.push_back(std::move(part));
  }
  return tensors;
}

int64_t ParamTable::count() const {
  int64_t total = 0;
  for (const Param& p : params_) total += p.is_buffer() ? 0 : p.count();
  return total;
}

int64_t ParamTable::active_count() const {
  double total = 0;
  for (const Param& p : params_) {
    if (!p.is_buffer()) total += static_cast<double>(p.count()) * p.traits.active;
  }
  return std::llround(total);
}

double ParamTable::matmul_flops() const {
  double total = 0;
  for (const Param& p : params_) {
    if (p.traits.matmul && p.shape.size() >= 2) {
      total += 2 * static_cast<double>(p.count()) * p.traits.active * p.traits.uses;
    }
  }
  return total;
}

}  // namespace rmoe
