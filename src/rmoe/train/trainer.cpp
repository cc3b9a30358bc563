#include "rmoe/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "rmoe/base/error.h"
#include "rmoe/base/rng.h"
#include "rmoe/io/safetensors.h"
#include "rmoe/ops/device.h"
#include "rmoe/ops/linear_cross_entropy.h"
#include "rmoe/ops/region.h"
#include "rmoe/ops/runtime.h"

namespace rmoe {
namespace {

using Batcher = std::variant<data::StreamBatcher, data::WindowBatcher, data::RandomBatcher, data::InstructionBatcher>;

Batcher make_batcher(const RunConfig& c, const data::TokenFile& tokens) {
  const auto seed = static_cast<uint64_t>(c.train.seed);
  if (c.model.family == Family::kSpan) return data::StreamBatcher(tokens, c.train.batch, c.train.block, seed);
  return data::WindowBatcher(tokens, c.train.batch, c.train.block, seed);
}

// Tokens of a training batch: inputs [B, S] and targets [B*S], views of the batch's own memory.
struct TokenBatch {
  explicit TokenBatch(data::Batch& batch)
      : all(at::from_blob(batch.tokens.data(), {batch.batch, batch.length + 1}, at::kLong)),
        inputs(all.narrow(1, 0, batch.length).contiguous()) {
    const int64_t rows = batch.batch * batch.length;
    targets = batch.targets.empty() ? all.narrow(1, 1, batch.length).flatten()
                                    : at::from_blob(batch.targets.data(), {rows}, at::kLong);
    if (std::find(batch.valid.begin(), batch.valid.end(), 0) == batch.valid.end()) return;
    valid_BS = at::from_blob(batch.valid.data(), {batch.batch, batch.length}, at::kByte).to(at::kBool);
  }
  Tensor all, inputs, targets;
  Tensor valid_BS;  // undefined: all are
};

// A copy of a block cache, for a forward pass that leaves no trace.
Memory copy_of(const Memory& memory) {
  Memory copy;
  copy.position = memory.position;
  for (const LayerMemory& layer : memory.layers) copy.layers.emplace_back().hidden_BSD = layer.hidden_BSD;
  return copy;
}

}  // namespace

void GradientSources::add(const GradientSources& other) {
  steps += other.steps;
  whole += other.whole;
  lm += other.lm;
  balance += other.balance;
}

void StepSums::add(const StepSums& step) {
  steps += step.steps;
  loss += step.loss;
  balance += step.balance;
  gradient_norm += step.gradient_norm;
  gradients.add(step.gradients);
  routing.add(step.routing);
}

Json StepSums::json() const {
  return {
      {"steps", steps},
      {"loss", loss},
      {"balance", balance},
      {"gradient_norm", gradient_norm},
      {"gradients",
       {{"steps", gradients.steps}, {"whole", gradients.whole}, {"lm", gradients.lm}, {"balance", gradients.balance}}},
      {"routing",
       {{"tokens", routing.tokens},
        {"counts", routing.counts},
        {"dropped", routing.dropped},
        {"entropy", routing.entropy}}}};
}

StepSums StepSums::from_json(const Json& json) {
  StepSums sums;
  json.at("steps").get_to(sums.steps);
  json.at("loss").get_to(sums.loss);
  json.at("balance").get_to(sums.balance);
  json.at("gradient_norm").get_to(sums.gradient_norm);
  if (json.contains("gradients")) {  // checkpoints of before they were measured have none
    const Json& gradients = json.at("gradients");
    gradients.at("steps").get_to(sums.gradients.steps);
    gradients.at("whole").get_to(sums.gradients.whole);
    gradients.at("lm").get_to(sums.gradients.lm);
    gradients.at("balance").get_to(sums.gradients.balance);
  }
  const Json& routing = json.at("routing");
  routing.at("tokens").get_to(sums.routing.tokens);
  routing.at("counts").get_to(sums.routing.counts);
  routing.at("dropped").get_to(sums.routing.dropped);
  routing.at("entropy").get_to(sums.routing.entropy);
  return sums;
}

Trainer::Trainer(const RunConfig& config, data::TokenFile train_tokens)
    : Trainer(config, train_tokens, make_batcher(config, train_tokens)) {}

Trainer::Trainer(const RunConfig& config, std::shared_ptr<const data::InstructionSet> instructions)
    : Trainer(config, std::nullopt,
              data::InstructionBatcher(std::move(instructions), config.train.batch, config.train.block,
                                       config.data.instruct.pack, static_cast<uint64_t>(config.train.seed))) {}

Trainer::Trainer(const RunConfig& config)
    : Trainer(config, std::nullopt,
              data::RandomBatcher(config.model.vocab_size, config.train.batch, config.train.block,
                                  static_cast<uint64_t>(config.train.seed))) {}

Trainer::Trainer(const RunConfig& config, std::optional<data::TokenFile> tokens, Batcher batcher)
    : config_(config),
      device_(device_named(config.train.device)),
      params_(mix(static_cast<uint64_t>(config.train.seed), kInitStream, 0), at::kFloat, device_),
      model_(make_model(config.model, params_)),
      frozen_(freeze(params_, model_->routing(), config.train.freeze)),
      optimizer_(params_, config.train.optimizer),
      tokens_(std::move(tokens)),
      batcher_(std::move(batcher)),
      memories_(static_cast<size_t>(config.train.accumulate)) {
  allow_tf32(config.train.dtype == Precision::kTf32, device_);
  if (!config.train.balance_frozen) model_->routing().set_frozen(frozen_.routers);
}

void Trainer::fit_routers() {
  RMOE_CHECK(!on_instructions(), "train: router '", config_.model.moe.router.kind(),
             "' counts the tokens of the training data, which instruction data have no file of; start from a run by "
             "train.init");
  if (!tokens_) return model_->routing().fit(at::ones({config_.model.vocab_size}, at::kLong));
  constexpr int64_t kPiece = int64_t{1} << 20;
  Tensor counts_V = at::zeros({config_.model.vocab_size}, at::kLong);
  Tensor ids = at::empty({std::min(kPiece, tokens_->size())}, at::kLong);
  for (int64_t begin = 0; begin < tokens_->size(); begin += kPiece) {
    const int64_t count = std::min(kPiece, tokens_->size() - begin);
    tokens_->read(begin, count, ids.mutable_data_ptr<int64_t>());
    counts_V += at::bincount(ids.narrow(0, 0, count), {}, counts_V.size(0));
  }
  model_->routing().fit(counts_V);
}

at::ScalarType Trainer::dtype() const { return config_.train.dtype == Precision::kBf16 ? at::kBFloat16 : at::kFloat; }

double Trainer::learning_rate() const {
  return config_.train.optimizer.lr * config_.train.schedule.factor(steps_, config_.train.steps);
}

data::Batch Trainer::batch(int64_t micro) const {
  const int64_t rows = config_.train.batch / config_.train.accumulate;
  return std::visit([&](const auto& b) { return b.get(steps_, micro * rows, (micro + 1) * rows); }, batcher_);
}

DropoutKey Trainer::dropout_key(int64_t micro) const {
  return {mix(static_cast<uint64_t>(config_.train.seed), kDropoutStream,
              static_cast<uint64_t>(steps_ * config_.train.accumulate + micro))};
}

Tensor Trainer::positions(int64_t micro) const {
  const int64_t tokens = config_.train.batch / config_.train.accumulate * config_.train.block;
  return at::arange(micro * tokens, (micro + 1) * tokens, at::kLong);
}

ForwardOptions Trainer::forward_options(int64_t micro, const Tensor& tokens_BS, const Tensor& valid_BS) const {
  return {
      .training = true,
      .dropout_key = dropout_key(micro),
      .dtype = dtype(),
      .remember = config_.model.family == Family::kSpan && !on_instructions() ? Remember::kHidden : Remember::kNothing,
      .hidden_only = true,
      .recompute = config_.train.recompute == Recompute::kLayer,
      .valid_BS = valid_BS,
      .replay_TK = replay ? replay(tokens_BS.flatten(), positions(micro)) : std::vector<Tensor>{}};
}

routing::BatchCounts Trainer::count_batch() const {
  at::NoGradGuard no_grad;
  routing::BatchCounts counts;
  for (int64_t micro = 0; micro < config_.train.accumulate; ++micro) {
    data::Batch batch = this->batch(micro);
    const TokenBatch tokens(batch);
    Memory memory = batch.fresh ? Memory{} : copy_of(memories_[static_cast<size_t>(micro)]);
    const auto options = forward_options(micro, tokens.inputs, tokens.valid_BS);
    const auto trace = model_->forward(tokens.inputs, std::move(memory), options).trace;
    for (size_t layer = 0; layer < trace.size(); ++layer) {
      if (micro == 0) counts.push_back(at::zeros_like(trace[layer].chosen_N));
      counts[layer] += trace[layer].chosen_N;
    }
  }
  return counts;
}

std::vector<Tensor> Trainer::router_gradients(const Tensor& loss) {
  std::vector<Tensor> gradients, saved;
  if (!loss.requires_grad()) return gradients;
  // By backward(), which recomputed layers need, with the gradients of the step so far put aside.
  for (Param& p : params_.all()) {
    saved.push_back(p.value.grad());
    p.value.mutable_grad() = Tensor();
  }
  loss.backward({}, /*retain_graph=*/true);
  size_t i = 0;
  for (Param& p : params_.all()) {
    if (p.value.requires_grad() && belongs_to_routing(p)) gradients.push_back(p.value.grad());
    p.value.mutable_grad() = saved[i++];
  }
  return gradients;
}

GradientSources Trainer::gradient_sources(const std::vector<Tensor>& of_balance) const {
  at::NoGradGuard no_grad;
  const auto square = [](const Tensor& x) {
    return x.defined() ? x.to(at::kDouble).square().sum().item<double>() : 0.0;
  };
  double whole = 0, lm = 0, balance = 0;
  size_t i = 0;
  for (const Param& p : params_.all()) {
    if (!p.value.requires_grad() || !belongs_to_routing(p)) continue;
    const Tensor total = p.value.grad(), part = i < of_balance.size() ? of_balance[i] : Tensor();
    ++i;
    whole += square(total);
    balance += square(part);
    // Gradients add up, so what is not the balance losses' is the language model's.
    lm += total.defined() && part.defined() ? square(total - part) : square(total.defined() ? total : part);
  }
  return {1, std::sqrt(whole), std::sqrt(lm), std::sqrt(balance)};
}

Trainer::Shares Trainer::shares() const {
  const auto count = static_cast<size_t>(config_.train.accumulate);
  Shares shares{.loss = std::vector(count, 1 / static_cast<double>(count)), .balance = {}};
  if (!on_instructions()) {
    shares.balance = shares.loss;
    return shares;
  }
  // Tokens that count, known before any forward pass.
  std::vector<double> targets, valid;
  for (int64_t micro = 0; micro < config_.train.accumulate; ++micro) {
    const data::Batch batch = this->batch(micro);
    const auto ignored = std::count(batch.targets.begin(), batch.targets.end(), -100);
    targets.push_back(static_cast<double>(std::ssize(batch.targets) - ignored));
    valid.push_back(static_cast<double>(std::count(batch.valid.begin(), batch.valid.end(), 1)));
  }
  const auto divided = [](std::vector<double> counts) {
    const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
    for (double& part : counts) part /= total;
    return counts;
  };
  return {.loss = divided(std::move(targets)), .balance = divided(std::move(valid))};
}

void Trainer::advance() {
  const int64_t accumulate = config_.train.accumulate;
  const Shares shares = this->shares();
  routing::Pipeline& routing = model_->routing();
  if (steps_ == 0 && !started_ && routing.wants_token_counts()) fit_routers();
  routing::Statistics statistics;
  std::optional<routing::BatchCounts> batch_counts;
  if (accumulate > 1 && routing.wants_batch_counts()) batch_counts = count_batch();
  const int64_t every = config_.train.gradient_sources_every;
  const bool by_source = every > 0 && (steps_ + 1) % every == 0;
  std::vector<Tensor> of_balance;  // by parameter of the routers
  Tensor sums;                     // fp64 [2]: loss and balance
  for (int64_t micro = 0; micro < accumulate; ++micro) {
    const double share = shares.loss[static_cast<size_t>(micro)];
    const double balance_share = shares.balance[static_cast<size_t>(micro)];
    data::Batch batch = this->batch(micro);
    const TokenBatch tokens(batch);
    Memory& memory = memories_[static_cast<size_t>(micro)];
    if (batch.fresh) memory = {};
    const int64_t bytes_before = tensor_bytes(device_);
    std::optional<Region> region(std::in_place, "forward");
    const auto options = forward_options(micro, tokens.inputs, tokens.valid_BS);
    auto result = model_->forward(tokens.inputs, std::move(memory), options);
    memory = std::move(result.memory);
    region.emplace("loss");
    const Linear head = model_->head();
    const Tensor loss = linear_cross_entropy(result.hidden_TD, head.weight_OI, head.bias_O, tokens.targets.to(device_),
                                             {.scale = share})
                            .loss;
    const Tensor balance = routing.loss(result.trace, batch_counts ? &*batch_counts : nullptr);
    activation_bytes_ = tensor_bytes(device_) - bytes_before;
    {
      const at::NoGradGuard no_grad;
      const Tensor both = at::stack({loss.to(at::kDouble), balance.to(device_, at::kDouble) * balance_share});
      sums = sums.defined() ? sums + both : both;
    }
    region.emplace("statistics");
    if (config_.train.routing_stats) routing_.add(result.trace);
    statistics.add(routing.statistics(result.trace));
    if (watch) watch(result.trace, tokens.inputs.flatten(), positions(micro));
    if (device_.is_cpu() && !sums.isfinite().all().item<bool>()) {
      diverged(steps_ + 1, sums.sum().item<double>(), 0);
    }
    if (by_source) {
      region.emplace("gradient by source");
      const std::vector<Tensor> gradients = router_gradients(balance * balance_share);
      of_balance.resize(gradients.size());
      for (size_t i = 0; i < gradients.size(); ++i) {
        if (!gradients[i].defined()) continue;
        of_balance[i] = of_balance[i].defined() ? of_balance[i] + gradients[i] : gradients[i];
      }
    }
    region.emplace("backward");
    (loss + balance * balance_share).backward();
  }
  Tensor norm;
  {
    const Region region("gradient norm");
    norm = optimizer_.gradient_norm().to(device_);
  }
  add_sums(sums, norm);
  if (by_source) pending_.gradients.add(gradient_sources(of_balance));
  {
    const Region region("optimizer");
    optimizer_.step(learning_rate(), norm);
    optimizer_.zero_gradients();
  }
  ++steps_;
  std::vector<Tensor> kept;
  for (const Tensor& buffer : frozen_.buffers) kept.push_back(buffer.clone());
  routing.update(statistics, {.step = steps_, .steps = config_.train.steps});
  for (size_t i = 0; i < kept.size(); ++i) frozen_.buffers[i].copy_(kept[i]);
}

void Trainer::add_sums(const Tensor& sums, const Tensor& norm) {
  const at::NoGradGuard no_grad;
  const Tensor step = at::cat({sums, norm.reshape({1})}), finite = step.isfinite().all();
  if (device_.is_cpu() && !finite.item<bool>()) {
    diverged(steps_ + 1, sums.sum().item<double>(), norm.item<double>());
  }
  ++pending_.steps;
  totals_ = totals_.defined() ? totals_ + step : step;
  if (device_.is_cpu()) return;
  const Tensor here = at::stack({at::full_like(norm, steps_ + 1), sums.sum(), norm});
  const Tensor so_far = failed_.defined() ? failed_ : at::zeros_like(here);
  failed_ = at::where(so_far[0].gt(0).logical_or(finite), so_far, here);
}

StepSums Trainer::take_sums() {
  StepSums sums = std::exchange(pending_, {});
  sums.routing = routing_.take();
  if (failed_.defined()) {
    const Tensor failed = std::exchange(failed_, {}).cpu();
    const auto* value = failed.const_data_ptr<double>();
    if (value[0] > 0) diverged(static_cast<int64_t>(value[0]), value[1], value[2]);
  }
  if (totals_.defined()) {
    const Tensor totals = std::exchange(totals_, {}).cpu();
    const auto* value = totals.const_data_ptr<double>();
    sums.loss = value[0], sums.balance = value[1], sums.gradient_norm = value[2];
  }
  return sums;
}

void Trainer::diverged(int64_t step, double loss, double norm) const {
  const bool finite = std::isfinite(loss);
  throw Error(Exit::kDiverged,
              str("train: step ", step, ": the ", finite ? "gradient norm" : "loss", " is ", finite ? norm : loss,
                  "; no checkpoint was touched"),
              "lower train.optimizer.lr, lengthen train.schedule.warmup or set train.optimizer.clip");
}

namespace {

std::string memory_name(size_t micro, size_t layer) { return str("micro_", micro, ".layer_", layer); }

}  // namespace

void Trainer::save(const PathOf& path_of) const {
  save_tensors(path_of("model.safetensors"), params_.stored(), {{"format", "pt"}});
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

void Trainer::start_from(const std::filesystem::path& checkpoint_dir) {
  RMOE_ASSERT(steps_ == 0, "the weights of another run are a start");
  const auto path = checkpoint_dir / "model.safetensors";
  const auto file = io::SafetensorsFile::open(path);
  NamedTensors tensors = params_.stored();
  // The state of a balance that the other run did not have starts as in a new model.
  for (const Param& p : params_.all()) {
    if (p.is_buffer() && !file.find(p.name)) std::erase_if(tensors, [&](const auto& t) { return t.first == p.name; });
  }
  load_tensors(path, tensors);
  started_ = true;
}

void Trainer::load(const std::filesystem::path& checkpoint_dir, int64_t step) {
  load_tensors(checkpoint_dir / "model.safetensors", params_.stored());
  // An imported run starts at step 0, where moments are zero and no file holds them.
  const auto moments = checkpoint_dir / "optimizer.safetensors";
  if (step > 0 || std::filesystem::exists(moments)) load_tensors(moments, optimizer_.state());
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
      memories_[micro].layers[layer].hidden_BSD = found->second.to(device_);
    }
  }
}

}  // namespace rmoe
