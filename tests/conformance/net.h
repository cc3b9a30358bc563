// A small network for the conformance suite: MoE layers, three if not said otherwise, between which tokens of a
// sequence mix causally,
//   x <- x + 0.5 * (mean of x over the positions up to this one);  x <- x + MoE(x)
// in fp64, with the real pipeline and experts. What a forward pass depends on is all in its arguments.
#pragma once

#include <gtest/gtest.h>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/nn/moe_block.h"
#include "rmoe/nn/recompute.h"
#include "tests/support/gradcheck.h"

namespace rmoe::testing {

constexpr int64_t kLayers = 3, kWidth = 6, kExperts = 4, kTopK = 2, kVocab = 11;

// MoE options as flags, e.g. "--stage.kind=gru". Throws what bind throws.
inline ModelConfig net_config(const std::vector<std::string>& flags, int64_t layers = kLayers) {
  ModelConfig config;
  config.vocab_size = kVocab;
  config.layers = layers;
  config.width = kWidth;
  config.heads = 1;
  config.moe.experts = kExperts;
  config.moe.top_k = kTopK;
  config.moe.expert_width = 5;
  config.moe.balance.clear();
  bind(config.moe, parse_flags(flags));
  config.moe.validate();
  return config;
}

struct Batch {
  Tensor x_BSD, tokens_BS, valid_BS;  // valid: undefined for all

  static Batch random(int64_t sequences, int64_t length, uint64_t seed) {
    at::Generator generator = at::detail::createCPUGenerator(seed);
    return {randn({sequences, length, kWidth}, seed),
            at::randint(0, kVocab, {sequences, length}, generator, at::kLong),
            {}};
  }
  Batch rows(int64_t begin, int64_t count) const {
    const auto part = [&](const Tensor& t) { return t.defined() ? t.narrow(0, begin, count) : t; };
    return {part(x_BSD), part(tokens_BS), part(valid_BS)};
  }
  Batch columns(int64_t begin, int64_t count) const {
    const auto part = [&](const Tensor& t) { return t.defined() ? t.narrow(1, begin, count) : t; };
    return {part(x_BSD), part(tokens_BS), part(valid_BS)};
  }
};

struct NetOptions {
  bool training = false;
  bool generating = false;
  bool recompute = false;
  DropoutKey key = {5};
  std::vector<Tensor> replay_TK = {};
};

struct NetResult {
  Tensor y_BSD;
  routing::RouterCarry carry;
  routing::RoutingTrace trace;
};

// The layers' inputs of the positions read so far, with their graph: what a KV cache is to attention.
using NetCache = std::vector<Tensor>;

class Net {
 public:
  explicit Net(const std::vector<std::string>& flags, uint64_t seed = 1, at::ScalarType dtype = at::kDouble,
               int64_t layers = kLayers, at::Device device = at::kCPU)
      : config(net_config(flags, layers)),
        table(seed, dtype, device),
        layers_(nn::make_moe_layers(config, nn::ExpertKind::kRelu, ParamScope(table))) {
    // The gate on the state starts at zero, where its state would have no say.
    const at::NoGradGuard no_grad;
    for (size_t i = 0; config.moe.state_gate && i < table.all().size(); ++i) {
      Param& param = table.all()[i];
      if (param.name.ends_with(".weight2")) param.value.copy_(randn(param.shape, seed + i) * 0.5);
    }
  }

  const routing::Pipeline& pipeline() const { return *layers_.pipeline; }
  routing::Pipeline& pipeline() { return *layers_.pipeline; }

  NetResult run(const Batch& batch, const NetOptions& options = {}, NetCache* cache = nullptr) const {
    return run_layers(0, config.layers, batch, batch.x_BSD, {}, options, cache);
  }

  // Layers [begin, end) on x, with the carry of the layers before.
  NetResult run_layers(int64_t begin, int64_t end, const Batch& batch, Tensor x, routing::RouterCarry carry,
                       const NetOptions& options = {}, NetCache* cache = nullptr) const {
    routing::RouteContext context{.training = options.training,
                                  .generating = options.generating,
                                  .tokens_T = batch.tokens_BS.flatten(),
                                  .valid_T = batch.valid_BS.defined() ? batch.valid_BS.flatten() : Tensor(),
                                  .sequences = batch.tokens_BS.size(0)};
    NetResult result;
    result.carry = std::move(carry);
    if (cache) cache->resize(static_cast<size_t>(config.layers));
    for (int64_t i = begin; i < end; ++i) {
      const auto place = static_cast<size_t>(i);
      if (!options.replay_TK.empty()) context.replay_TK = options.replay_TK.at(place);
      Tensor past;
      if (cache) {
        past = (*cache)[place];
        (*cache)[place] = past.defined() ? at::cat({past, x}, 1) : x;
      }
      const nn::LayerFunction layer = [this, place, context, past, key = options.key.at(place)](
                                          const Tensor& in, routing::RouterCarry carried) {
        return this->layer(place, in, past, std::move(carried), context, key);
      };
      auto out =
          options.recompute ? nn::recomputed(layer, x, std::move(result.carry)) : layer(x, std::move(result.carry));
      x = std::move(out.x);
      result.carry = std::move(out.carry);
      result.trace.push_back(std::move(*out.routing));
    }
    result.y_BSD = std::move(x);
    return result;
  }

  std::vector<Tensor> gradients() const {
    std::vector<Tensor> grads;
    for (const Param& param : table.all()) {
      grads.push_back(param.value.grad().defined() ? param.value.grad().clone() : Tensor());
    }
    return grads;
  }
  void clear_gradients() {
    for (Param& param : table.all()) param.value.mutable_grad() = Tensor();
  }

  ModelConfig config;
  ParamTable table;

 private:
  nn::LayerResult layer(size_t place, const Tensor& x_BSD, const Tensor& past, routing::RouterCarry carry,
                        const routing::RouteContext& context, DropoutKey key) const {
    const Tensor all = past.defined() ? at::cat({past, x_BSD}, 1) : x_BSD;
    const int64_t S = x_BSD.size(1);
    const Tensor count = at::arange(1, all.size(1) + 1, all.options()).view({1, -1, 1});
    const Tensor mean = (all.cumsum(1) / count).narrow(1, all.size(1) - S, S);
    const Tensor mixed = x_BSD + 0.5 * mean;
    auto moe = layers_.blocks[place]->forward(mixed.reshape({-1, kWidth}), std::move(carry), context, key);
    return {mixed + moe.y_TD.view(mixed.sizes()), std::move(moe.carry), std::move(moe.routing)};
  }

  nn::MoeLayers layers_;
};

// A loss of fixed random weights on the outputs, so that errors in single elements cannot cancel. Sums over tokens, and
// the weight of an element depends on its place in the whole batch (first sequence, first position).
inline Tensor net_loss(const Tensor& y_BSD, int64_t sequence = 0, int64_t position = 0) {
  const Tensor all = randn({16, 16, kWidth}, 77).to(y_BSD.device());
  const Tensor weights = all.narrow(0, sequence, y_BSD.size(0)).narrow(1, position, y_BSD.size(1));
  return (y_BSD * weights).sum() + (y_BSD.square() * weights).sum() / 2;
}

inline void expect_same_gradients(const Net& net, const std::vector<Tensor>& expected, const std::vector<Tensor>& got,
                                  const std::string& what, double tolerance = 1e-10) {
  ASSERT_EQ(expected.size(), got.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const std::string& name = net.table.all()[i].name;
    const auto largest = [](const Tensor& t) {
      return t.defined() && t.numel() > 0 ? t.abs().max().item<double>() : 0;
    };
    const double scale = std::max(largest(expected[i]), 1e-3);
    // A gradient of zeros and none at all are the same.
    if (!expected[i].defined() || !got[i].defined()) {
      EXPECT_LE(std::max(largest(expected[i]), largest(got[i])), tolerance) << what << ": " << name;
      continue;
    }
    EXPECT_LE((expected[i] - got[i]).abs().max().item<double>(), tolerance * scale) << what << ": " << name;
  }
}

// Gradients of f() in every trained parameter along one random direction each, against central differences.
inline void expect_directional_gradients(Net& net, const std::function<Tensor()>& f, const std::string& what,
                                         double tolerance = 2e-6) {
  net.clear_gradients();
  f().backward();
  const auto grads = net.gradients();
  net.clear_gradients();
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < grads.size(); ++i) {
    Param& param = net.table.all()[i];
    if (!param.traits.trainable) {
      EXPECT_FALSE(grads[i].defined()) << what << ": " << param.name << " is frozen and got a gradient";
      continue;
    }
    constexpr double kStep = 1e-5;
    const Tensor direction = randn(param.value.sizes(), 1000 + i), start = param.value.detach().clone();
    const double slope = grads[i].defined() ? (grads[i] * direction).sum().item<double>() : 0;
    const auto value_at = [&](double offset) {
      param.value.copy_(start + offset * direction);
      return f().item<double>();
    };
    const double expected = (value_at(kStep) - value_at(-kStep)) / (2 * kStep);
    param.value.copy_(start);
    EXPECT_NEAR(slope, expected, tolerance * std::max({1.0, std::abs(expected), std::abs(slope)}))
        << what << ": " << param.name;
  }
}

}  // namespace rmoe::testing
