#include "rmoe/analysis/model/weights.h"

#include <charconv>
#include <cmath>
#include <limits>

#include <ATen/CPUGeneratorImpl.h>

#include "rmoe/base/error.h"
#include "rmoe/base/log.h"
#include "rmoe/io/checkpoint.h"
#include "rmoe/io/safetensors.h"

namespace rmoe::analysis {
namespace {

constexpr const char* kMatrices[] = {"w1", "w2", "w3"};

// Mean over the inner dimension, [N, D], each row of length 1.
Tensor unit_means(const Tensor& w, bool inner_last) {
  const Tensor mean_ND = w.detach().to(at::kDouble).mean(inner_last ? 2 : 1);
  return mean_ND / at::norm(mean_ND, 2, 1).clamp_min(1e-300).unsqueeze(1);
}

// Parameters of the experts of one MoE layer, by matrix; null where the experts have no such one.
struct ExpertParams {
  const Param* matrices[3] = {};
};

std::vector<ExpertParams> expert_params(const LoadedRun& run) {
  std::vector<ExpertParams> layers(static_cast<size_t>(run.model->routing().layers()));
  for (const Param& p : run.params.all()) {
    const int64_t layer = moe_layer_of(run.config.model, p.name);
    if (layer < 0) continue;
    for (size_t m = 0; m < 3; ++m) {
      if (p.name.ends_with(str(".experts.", kMatrices[m], ".weight"))) {
        layers[static_cast<size_t>(layer)].matrices[m] = &p;
      }
    }
  }
  return layers;
}

Tensor random_start(const Param& p, at::Generator& generator) {
  Tensor x = at::empty(p.shape, at::kFloat);
  switch (p.init.kind) {
    case Init::Kind::kConstant:
      return x.fill_(p.init.value);
    case Init::Kind::kNormal:
      return x.normal_(0, p.init.value, generator);
    case Init::Kind::kUniform:
      break;
  }
  return x.uniform_(-p.init.value, p.init.value, generator);
}

// The stored parts of a parameter, stacked again.
Tensor read_parameter(const io::SafetensorsFile& file, const Param& p) {
  std::vector<Tensor> parts;
  for (const auto& [name, target] : p.stored()) {
    const io::TensorEntry& entry = file.at(name);
    const at::ScalarType type = entry.dtype == io::DType::kBF16  ? at::kBFloat16
                                : entry.dtype == io::DType::kF16 ? at::kHalf
                                                                 : at::kFloat;
    RMOE_CHECK(type != at::kFloat || entry.dtype == io::DType::kF32, file.path().string(), ": ", name, " is ",
               enum_name(entry.dtype), "; expected F32, BF16 or F16");
    RMOE_CHECK(entry.shape == target.sizes().vec(), file.path().string(), ": ", name, " has another shape");
    Tensor part = at::empty(entry.shape, type);
    file.read(entry, {static_cast<std::byte*>(part.mutable_data_ptr()), static_cast<size_t>(entry.byte_size())});
    parts.push_back(std::move(part));
  }
  return p.traits.stored.drop_dim ? at::stack(parts) : at::cat(parts);
}

// Of each layer, with the matrices as `of` gives them.
template <class Of>
std::vector<Tensor> similarities(const std::vector<ExpertParams>& layers, Of&& of) {
  std::vector<Tensor> out;
  for (const ExpertParams& layer : layers) {
    Tensor w[3];
    for (size_t m = 0; m < 3; ++m) {
      if (layer.matrices[m]) w[m] = of(*layer.matrices[m]);
    }
    out.push_back(expert_similarity(w[0], w[1], w[2]));
  }
  return out;
}

Json finite(double value) { return std::isfinite(value) ? Json(value) : Json(); }

void put(Json& to, const std::vector<Tensor>& layers) {
  Json all = Json::array(), others = Json::array();
  for (const Tensor& similarity_NN : layers) {
    const MeanSimilarity mean = mean_similarity(similarity_NN);
    all.push_back(mean.all);
    others.push_back(finite(mean.others));
  }
  to["layers"] = all;
  to["layers_without_diagonal"] = others;
}

Json matrix_json(const Tensor& x_NN) {
  const Tensor x = x_NN.cpu().contiguous();
  const auto* data = x.const_data_ptr<double>();
  Json rows = Json::array();
  for (int64_t i = 0; i < x.size(0); ++i) {
    rows.push_back(std::vector<double>(data + i * x.size(1), data + (i + 1) * x.size(1)));
  }
  return rows;
}

Json similarity_json(const LoadedRun& run) {
  const std::vector<ExpertParams> layers = expert_params(run);
  Json out = Json::object();
  int64_t matrices = 0;
  for (const Param* p : layers.at(0).matrices) matrices += p != nullptr;
  out["matrices"] = matrices;
  const std::vector<Tensor> now = similarities(layers, [](const Param& p) { return p.value; });
  Json newest = Json::array();
  for (const Tensor& similarity_NN : now) newest.push_back(matrix_json(similarity_NN));
  out["newest"] = newest;
  auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(run.config.train.seed));
  const auto start = similarities(layers, [&](const Param& p) { return random_start(p, generator); });
  MeanSimilarity random;
  for (const Tensor& similarity_NN : start) {
    const MeanSimilarity mean = mean_similarity(similarity_NN);
    random.all += mean.all / static_cast<double>(start.size());
    random.others += mean.others / static_cast<double>(start.size());
  }
  out["random"] = random.all;
  out["random_without_diagonal"] = finite(random.others);
  Json checkpoints = Json::array();
  std::vector<int64_t> steps = io::list_checkpoints(run.dir);
  std::sort(steps.begin(), steps.end());
  for (const int64_t step : steps) {
    Json point = {{"step", step}};
    if (step == run.step) {
      put(point, now);
    } else {
      try {
        io::verify(io::checkpoint_dir(run.dir, step));
        const auto file = io::SafetensorsFile::open(io::checkpoint_dir(run.dir, step) / "model.safetensors");
        put(point, similarities(layers, [&](const Param& p) { return read_parameter(file, p); }));
      } catch (const Error& broken) {
        log_warn(broken.message(), "; this checkpoint is skipped");
        continue;
      }
    }
    checkpoints.push_back(std::move(point));
  }
  out["checkpoints"] = checkpoints;
  return out;
}

Json router_weights(const LoadedRun& run) {
  const int64_t N = run.model->routing().experts();
  Json layers = Json::array();
  for (int64_t i = 0; i < run.model->routing().layers(); ++i) layers.push_back(Json());
  for (const Param& p : run.params.all()) {
    const int64_t layer = moe_layer_of(run.config.model, p.name);
    const bool gate = !p.is_buffer() && p.shape.size() == 2 && p.shape[0] == N && belongs_to_routing(p);
    if (layer < 0 || !gate) continue;
    // Beside a head that reads x, the gate on the state is no router of its own.
    if (run.config.model.moe.state_gate && p.name.ends_with(".weight2")) continue;
    const Tensor w = p.value.detach().to(at::kDouble);
    layers[static_cast<size_t>(layer)] = {{"parameter", p.name},
                                          {"norm", at::norm(w).item<double>()},
                                          {"deviation", w.numel() > 1 ? Json(w.std().item<double>()) : Json()}};
  }
  return {{"layers", layers}};
}

}  // namespace

Tensor expert_similarity(const Tensor& w1_NFD, const Tensor& w2_NDF, const Tensor& w3_NFD) {
  at::NoGradGuard no_grad;
  std::vector<Tensor> parts;
  if (w1_NFD.defined()) parts.push_back(unit_means(w1_NFD, false));
  if (w2_NDF.defined()) parts.push_back(unit_means(w2_NDF, true));
  if (w3_NFD.defined()) parts.push_back(unit_means(w3_NFD, false));
  RMOE_ASSERT(!parts.empty(), "an expert without matrices");
  const Tensor all = at::cat(parts, 1);
  return all.mm(all.t());
}

MeanSimilarity mean_similarity(const Tensor& similarity_NN) {
  const auto n = static_cast<double>(similarity_NN.size(0));
  const double sum = similarity_NN.sum().item<double>(), own = similarity_NN.trace().item<double>();
  return {sum / n / n, n > 1 ? (sum - own) / (n * (n - 1)) : std::numeric_limits<double>::quiet_NaN()};
}

Json weight_analyses(const LoadedRun& run) {
  at::NoGradGuard no_grad;
  return {{"expert_similarity", similarity_json(run)}, {"router_weights", router_weights(run)}};
}

int64_t moe_layer_of(const ModelConfig& config, const std::string& parameter) {
  constexpr std::string_view kBefore = "model.layers.";
  if (!parameter.starts_with(kBefore) || parameter.find(".block_sparse_moe.") == std::string::npos) return -1;
  int64_t layer = 0;
  std::from_chars(parameter.data() + kBefore.size(), parameter.data() + parameter.size(), layer);
  int64_t moe = 0;
  for (int64_t i = 0; i < layer; ++i) moe += config.is_moe(i);
  return moe;
}

}  // namespace rmoe::analysis
