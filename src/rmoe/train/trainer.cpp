#include "rmoe/train/trainer.h"

#include <algorithm>
#include <cmath>

#include "rmoe/base/error.h"
#include "rmoe/base/rng.h"

namespace rmoe {
namespace {

std::variant<data::StreamBatcher, data::WindowBatcher> make_batcher(const RunConfig& c, data::TokenFile tokens) {
  const auto seed = static_cast<uint64_t>(c.train.seed);
  if (c.model.family == Family::kSpan)
    return data::StreamBatcher(std::move(tokens), c.train.batch, c.train.block, seed);
  return data::WindowBatcher(std::move(tokens), c.train.batch, c.train.block, seed);
}

// Mean entropy of the gate over tokens and layers.
double gate_entropy(const routing::RoutingTrace& trace) {
  at::NoGradGuard no_grad;
  double sum = 0;
  for (const routing::Routing& routing : trace) {
    const Tensor probs_TN = routing.probs_TN.detach();
    sum += -at::xlogy(probs_TN, probs_TN).sum(-1).mean().item<double>();
  }
  return trace.empty() ? 0 : sum / static_cast<double>(trace.size());
}

std::vector<std::vector<int64_t>> expert_counts(const routing::RoutingTrace& trace) {
  std::vector<std::vector<int64_t>> counts;
  for (const routing::Routing& routing : trace) {
    const Tensor c = routing.counts_N.cpu();
    counts.emplace_back(c.const_data_ptr<int64_t>(), c.const_data_ptr<int64_t>() + c.numel());
  }
  return counts;
}

void add_counts(std::vector<std::vector<int64_t>>& into, const std::vector<std::vector<int64_t>>& counts) {
  if (into.empty()) into.resize(counts.size());
  for (size_t layer = 0; layer < counts.size(); ++layer) {
    into[layer].resize(counts[layer].size());
    for (size_t e = 0; e < counts[layer].size(); ++e) into[layer][e] += counts[layer][e];
  }
}

}  // namespace

void StepSums::add(const StepSums& step) {
  steps += step.steps;
  loss += step.loss;
  balance += step.balance;
  gradient_norm += step.gradient_norm;
  entropy += step.entropy;
  add_counts(counts, step.counts);
}

Trainer::Trainer(const RunConfig& config, data::TokenFile train_tokens)
    : config_(config),
      params_(mix(static_cast<uint64_t>(config.train.seed), kInitStream, 0), at::kFloat),
      model_(make_model(config.model, params_)),
      balance_(config.model.moe.balance),
      optimizer_(params_, config.train.optimizer),
      batcher_(make_batcher(config, std::move(train_tokens))),
      memories_(static_cast<size_t>(config.train.accumulate)) {}

at::ScalarType Trainer::dtype() const { return config_.train.dtype == Precision::kBf16 ? at::kBFloat16 : at::kFloat; }

double Trainer::learning_rate() const {
  return config_.train.optimizer.lr * config_.train.schedule.factor(steps_, config_.train.steps);
}

data::Batch Trainer::batch(int64_t micro) const {
  const int64_t rows = config_.train.batch / config_.train.accumulate;
  return std::visit([&](const auto& b) { return b.get(steps_, micro * rows, (micro + 1) * rows); }, batcher_);
}

StepSums Trainer::step() {
  const auto seed = static_cast<uint64_t>(config_.train.seed);
  const int64_t accumulate = config_.train.accumulate;
  const bool block_cache = config_.model.family == Family::kSpan;
  StepSums sums;
  sums.steps = 1;
  for (int64_t micro = 0; micro < accumulate; ++micro) {
    data::Batch batch = this->batch(micro);
    const Tensor tokens = at::from_blob(batch.tokens.data(), {batch.batch, batch.length + 1}, at::kLong);
    Memory& memory = memories_[static_cast<size_t>(micro)];
    if (batch.fresh) memory = {};
    const DropoutKey key{mix(seed, kDropoutStream, static_cast<uint64_t>(steps_ * accumulate + micro))};
    auto result = model_->forward(tokens.narrow(1, 0, batch.length).contiguous(), std::move(memory),
                                  {.training = true,
                                   .dropout_key = key,
                                   .dtype = dtype(),
                                   .remember = block_cache ? Remember::kHidden : Remember::kNothing});
    memory = std::move(result.memory);
    const Tensor targets = tokens.narrow(1, 1, batch.length).flatten();
    const Tensor loss = at::cross_entropy_loss(result.logits_TV.to(at::kFloat), targets);
    const Tensor balance = balance_(result.trace);
    const auto share = 1 / static_cast<double>(accumulate);
    sums.loss += loss.item<double>() * share;
    sums.balance += balance.item<double>() * share;
    sums.entropy += gate_entropy(result.trace) * share;
    add_counts(sums.counts, expert_counts(result.trace));
    if (!std::isfinite(sums.loss + sums.balance)) break;
    ((loss + balance) * share).backward();
  }
  const bool finite = std::isfinite(sums.loss + sums.balance);
  if (finite) sums.gradient_norm = optimizer_.gradient_norm();
  if (!finite || !std::isfinite(sums.gradient_norm)) {
    throw Error(Exit::kDiverged,
                str("train: step ", steps_ + 1, ": the ", finite ? "gradient norm" : "loss", " is ",
                    finite ? sums.gradient_norm : sums.loss + sums.balance, "; no checkpoint was touched"),
                "lower train.optimizer.lr, lengthen train.schedule.warmup or set train.optimizer.clip");
  }
  optimizer_.step(learning_rate(), sums.gradient_norm);
  optimizer_.zero_gradients();
  ++steps_;
  return sums;
}

namespace {

NamedTensors stored(const ParamTable& params) {
  NamedTensors tensors;
  for (const Param& param : params.all()) {
    for (auto& part : param.stored()) tensors.push_back(std::move(part));
  }
  return tensors;
}

std::string memory_name(size_t micro, size_t layer) { return str("micro_", micro, ".layer_", layer); }

}  // namespace

void Trainer::save(const PathOf& path_of) const {
  save_tensors(path_of("model.safetensors"), stored(params_), {{"format", "pt"}});
  save_tensors(path_of("optimizer.safetensors"), optimizer_.state());
  NamedTensors memory;
  for (size_t micro = 0; micro < memories_.size(); ++micro) {
    for (size_t layer = 0; layer < memories_[micro].layers.size(); ++layer) {
      const Tensor& hidden = memories_[micro].layers[layer].hidden_BSD;
      if (hidden.defined()) memory.emplace_back(memory_name(micro, layer), hidden);
    }
  }
  if (!memory.empty()) save_tensors(path_of("memory.safetensors"), memory);
}

void Trainer::load(const std::filesystem::path& checkpoint_dir, int64_t step) {
  load_tensors(checkpoint_dir / "model.safetensors", stored(params_));
  load_tensors(checkpoint_dir / "optimizer.safetensors", optimizer_.state());
  optimizer_.set_steps(step);
  steps_ = step;
  const auto memory_file = checkpoint_dir / "memory.safetensors";
  if (!std::filesystem::exists(memory_file)) return;
  const auto tensors = read_tensors(memory_file);
  for (size_t micro = 0; micro < memories_.size(); ++micro) {
    memories_[micro].layers.resize(static_cast<size_t>(config_.model.layers));
    for (size_t layer = 0; layer < memories_[micro].layers.size(); ++layer) {
      const auto found = tensors.find(memory_name(micro, layer));
      RMOE_CHECK(found != tensors.end(), memory_file.string(), ": tensor ", memory_name(micro, layer), " is missing");
      memories_[micro].layers[layer].hidden_BSD = found->second;
    }
  }
}

}  // namespace rmoe
