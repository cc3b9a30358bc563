#include "rmoe/bench/workload.h"

#include <chrono>
#include <filesystem>
#include <optional>

#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/autograd/autograd.h>

#include "rmoe/base/error.h"
#include "rmoe/bench/temporary.h"
#include "rmoe/eval/evaluate.h"
#include "rmoe/eval/generate.h"
#include "rmoe/eval/trace.h"
#include "rmoe/models/size.h"
#include "rmoe/ops/device.h"
#include "rmoe/ops/region.h"
#include "rmoe/train/trainer.h"

namespace rmoe::bench {
namespace {

constexpr int64_t kPromptTokens = 64, kNewTokens = 128;  // of decoding

// Until the device is done.
template <class F>
double seconds_of(at::Device device, F&& f) {
  synchronize(device);
  const auto start = std::chrono::steady_clock::now();
  f();
  synchronize(device);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

at::ScalarType torch_type(Precision precision) { return precision == Precision::kBf16 ? at::kBFloat16 : at::kFloat; }

Tensor random_tokens(const RunConfig& c, at::IntArrayRef sizes) {
  auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(c.train.seed));
  return at::randint(c.model.vocab_size, sizes, generator, at::TensorOptions().dtype(at::kLong));
}

data::TokenFile random_file(const RunConfig& c, int64_t tokens) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "random.tok";
  data::TokenWriter writer(path, c.model.vocab_size, 0);
  const Tensor ids_T = random_tokens(c, {tokens});
  writer.append({ids_T.const_data_ptr<int64_t>(), static_cast<size_t>(tokens)});
  writer.commit();
  return data::TokenFile::open(path);  // mapped: it outlives its name
}

double tokens_of(const RunConfig& c) { return static_cast<double>(c.train.batch * c.train.block); }

// Training steps on random tokens, in the trainer that `rmoe train` uses.
class Step : public Workload {
 public:
  explicit Step(const RunConfig& c) : trainer_(c, random_file(c, kSteps * c.train.batch * (c.train.block + 1) + 1)) {}

  double run() override {
    const Region region("step");
    return seconds_of(trainer_.model().device(), [&] { trainer_.step(); });
  }

 private:
  static constexpr int64_t kSteps = 16;
  Trainer trainer_;
};

// The second of two MoE layers alone, forward and backward: unlike the first it has a state to go on from.
struct LayerParts {
  static ModelConfig config_of(ModelConfig c) {
    c.layers = 2;
    c.dense_layers = 0;
    c.moe.every = 1;
    return c;
  }
  LayerParts(const ModelConfig& c, ParamTable& table)
      : layers(nn::make_moe_layers(config_of(c), kind(c), ParamScope(table) / "model")) {}
  static nn::ExpertKind kind(const ModelConfig& c) {
    return c.family == Family::kSpan ? nn::ExpertKind::kRelu : nn::ExpertKind::kSwiglu;
  }
  nn::MoeLayers layers;
};

class Layer : public Workload {
 public:
  explicit Layer(const RunConfig& c)
      : device_(device_named(c.train.device)),
        params_(static_cast<uint64_t>(c.train.seed), at::kFloat, device_),
        parts_(c.model, params_) {
    const int64_t T = c.train.batch * c.train.block;
    x_TD_ = at::randn({T, c.model.width}, at::detail::createCPUGenerator(1)).to(device_, torch_type(c.train.dtype));
    grad_TD_ = at::ones_like(x_TD_);
    x_TD_.requires_grad_();
    context_ = {.training = true, .tokens_T = random_tokens(c, {T}).to(device_), .sequences = c.train.batch};
    const at::NoGradGuard no_grad;
    carry_ = parts_.layers.blocks[0]->forward(x_TD_, {}, context_, DropoutKey{1}).carry;
    for (Tensor* state : {&carry_.state_TP, &carry_.cell_TP}) {
      if (state->defined()) state->requires_grad_();
    }
  }

  double run() override {
    return seconds_of(device_, [&] {
      const auto result = parts_.layers.blocks[1]->forward(x_TD_, carry_, context_, DropoutKey{2});
      std::vector<Tensor> outputs{result.y_TD}, grads{grad_TD_};
      if (const Tensor& state_TP = result.carry.state_TP; state_TP.defined() && state_TP.requires_grad()) {
        outputs.push_back(state_TP);
        if (!state_grad_.defined()) state_grad_ = at::ones_like(state_TP);
        grads.push_back(state_grad_);
      }
      torch::autograd::backward(outputs, grads);
      for (Param& param : params_.all()) param.value.mutable_grad() = Tensor();
      for (Tensor* leaf : {&x_TD_, &carry_.state_TP, &carry_.cell_TP}) {
        if (leaf->defined()) leaf->mutable_grad() = Tensor();
      }
    });
  }

 private:
  at::Device device_;
  ParamTable params_;
  LayerParts parts_;
  Tensor x_TD_, grad_TD_, state_grad_;
  routing::RouteContext context_;
  routing::RouterCarry carry_;
};

// A model for inference, as `rmoe generate` holds it.
class Inference : public Workload {
 public:
  explicit Inference(const RunConfig& c)
      : dtype_(torch_type(c.train.dtype)),
        params_(static_cast<uint64_t>(c.train.seed), at::kFloat, device_named(c.train.device)),
        model_(make_model(c.model, params_)) {
    if (dtype_ == at::kBFloat16) store_weights_as(params_, dtype_);
  }

 protected:
  at::ScalarType dtype_;
  ParamTable params_;
  std::unique_ptr<Model> model_;
};

class Decode : public Inference {
 public:
  explicit Decode(const RunConfig& c) : Inference(c), prompt_(random_tokens(c, {kPromptTokens})) {}

  double run() override {
    // The first token comes from the prompt: after it, so many more.
    const GenerateOptions options{.max_new = kNewTokens + 1, .temperature = 0, .dtype = dtype_};
    const std::span<const int64_t> ids(prompt_.const_data_ptr<int64_t>(), static_cast<size_t>(kPromptTokens));
    return generate(*model_, ids, options, [](int64_t) { return true; }).seconds;
  }

 private:
  Tensor prompt_;
};

class Prompt : public Inference {
 public:
  explicit Prompt(const RunConfig& c) : Inference(c), tokens_BS_(random_tokens(c, {c.train.batch, c.train.block})) {}

  double run() override {
    const c10::InferenceMode inference;
    return seconds_of(model_->device(), [&] {
      const ForwardOptions options{
          .dtype = dtype_, .remember = Remember::kKeysValues, .last_logits_only = true, .generating = true};
      model_->forward(tokens_BS_, {}, options);
    });
  }

 private:
  Tensor tokens_BS_;
};

// `rmoe eval` on random tokens, with or without --trace.
class Evaluation : public Inference {
 public:
  Evaluation(const RunConfig& c, Tracing trace)
      : Inference(c), tokens_(random_file(c, c.train.batch * c.train.block + 1)), trace_(trace) {
    options_ = {.block = c.train.block, .batch = c.train.batch, .dtype = dtype_};
    fields_.tokens = fields_.logits = fields_.scores = fields_.probs = trace == Tracing::kAll;
    fields_.states = trace == Tracing::kAll && c.model.moe.stage.kind() != "none";
  }

  double run() override {
    const TemporaryFolder folder;
    return seconds_of(model_->device(), [&] {
      EvalOptions options = options_;
      std::optional<TraceRecorder> recorder;
      if (trace_ != Tracing::kOff) {
        recorder.emplace(TraceOptions{.file = (folder.path() / "trace.npy").string(), .fields = fields_}, *model_,
                         Json::object());
        options.watch = [&](const EvalPiece& piece) {
          recorder->add(piece.forward.trace, piece.tokens_T, piece.positions_T, 0);
        };
      }
      evaluate(*model_, tokens_, options);
      if (recorder) recorder->finish();
    });
  }

 private:
  data::TokenFile tokens_;
  Tracing trace_;
  EvalOptions options_;
  io::TraceFields fields_;
};

// Bytes of the matrices that one token is multiplied with.
double weight_bytes(const RunConfig& c) {
  ParamTable table;
  make_model(c.model, table);
  double bytes = 0;
  for (const Param& p : table.all()) {
    if (p.is_buffer() || !p.traits.matmul) continue;
    const auto dtype = belongs_to_routing(p) ? at::kFloat : torch_type(c.train.dtype);
    bytes += static_cast<double>(p.count()) * p.traits.active * static_cast<double>(c10::elementSize(dtype));
  }
  return bytes;
}

}  // namespace

WorkloadSize workload_size(WorkloadKind kind, const RunConfig& c) {
  if (kind == WorkloadKind::kLayer) {
    ParamTable table;
    const LayerParts parts(c.model, table);
    // Both layers do the same work.
    return {.params = table.count(), .tokens = tokens_of(c), .flops = 3 * tokens_of(c) * table.matmul_flops() / 2};
  }
  const int64_t context = kind == WorkloadKind::kDecode ? 2 * (kPromptTokens + kNewTokens / 2) : c.train.block;
  const ModelSize size = model_size(c.model, context);
  WorkloadSize out{.params = size.params, .tokens = tokens_of(c)};
  switch (kind) {
    case WorkloadKind::kLayer:
      break;
    case WorkloadKind::kStep:
      out.flops = 3 * out.tokens * size.forward_flops;
      break;
    case WorkloadKind::kDecode:
      out.tokens = static_cast<double>(kNewTokens);
      out.flops = out.tokens * size.forward_flops;
      out.bytes = out.tokens * weight_bytes(c);
      break;
    case WorkloadKind::kEval:
      out.flops = out.tokens * size.forward_flops;
      break;
    case WorkloadKind::kPrompt: {
      const double head = 2 * static_cast<double>(c.model.width * c.model.vocab_size);
      out.flops = out.tokens * (size.forward_flops - head) + static_cast<double>(c.train.batch) * head;
      break;
    }
  }
  return out;
}

std::unique_ptr<Workload> make_workload(WorkloadKind kind, const RunConfig& config, Tracing trace) {
  switch (kind) {
    case WorkloadKind::kLayer:
      return std::make_unique<Layer>(config);
    case WorkloadKind::kStep:
      return std::make_unique<Step>(config);
    case WorkloadKind::kDecode:
      return std::make_unique<Decode>(config);
    case WorkloadKind::kPrompt:
      return std::make_unique<Prompt>(config);
    case WorkloadKind::kEval:
      return std::make_unique<Evaluation>(config, trace);
  }
  RMOE_ASSERT(false, "no such workload");
  return nullptr;
}

RunConfig resolved(RunConfig config) {
  constexpr int64_t kBytes = 256;  // of a config that leaves the vocabulary to its data
  if (config.model.vocab_size == 0) config.model.vocab_size = kBytes;
  config.train.steps = std::max(config.train.steps, int64_t{1} << 40);
  return config;
}

}  // namespace rmoe::bench
