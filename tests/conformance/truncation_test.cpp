// Truncation of the state's gradient and detached residual scores change gradients and nothing else. The oracle is the
// whole network written plainly in one place, with its detach() where the options ask for one.
#include <cmath>

#include "tests/conformance/net.h"

namespace rmoe {
namespace {

using testing::Batch;
using testing::Net;
using testing::net_loss;

constexpr int64_t kDepth = 5;  // deep enough for two cuts with m = 2, and one that leaves a rest with m = 3
constexpr double kAlpha = 0.5;

enum class Residual { kNone, kPlain, kDetached };

struct Truncation {
  std::string stage;
  int64_t gradient_layers;  // m; 0: never
  Residual residual;
};

Net make_net(const Truncation& t) {
  std::vector<std::string> flags = {"--stage.kind=" + t.stage, "--stage.width=5",
                                    "--stage.gradient_layers=" + std::to_string(t.gradient_layers)};
  if (t.residual != Residual::kNone) {
    flags.push_back(std::string("--transforms=[{kind = \"residual\", alpha = 0.5, detach = ") +
                    (t.residual == Residual::kDetached ? "true" : "false") + "}]");
  }
  return Net(flags, 1, at::kDouble, kDepth);
}

class Plain {
 public:
  Plain(const Net& net, const Truncation& options) : net_(net), options_(options) {}

  Tensor run(const Tensor& x_BSD) const {
    const int64_t S = x_BSD.size(1), D = testing::kWidth;
    const Tensor position = at::arange(1, S + 1, at::kDouble).view({1, S, 1});
    Tensor x = x_BSD, h, c, before;  // before: the previous layer's own logits
    for (int64_t i = 0; i < kDepth; ++i) {
      const int64_t m = options_.gradient_layers;
      if (m > 0 && i % m == 0 && h.defined()) h = h.detach();
      if (m > 0 && i % m == 0 && c.defined()) c = c.detach();
      x = x + 0.5 * x.cumsum(1) / position;
      const Tensor x_TD = x.reshape({-1, D});
      const Tensor own = stage(i, x_TD, h, c).matmul(layer(i, "weight2").t());
      Tensor logits = own;
      if (options_.residual != Residual::kNone) {
        if (before.defined()) logits = logits + kAlpha * before;
        before = options_.residual == Residual::kDetached ? own.detach() : own;
      }
      x = x + experts(i, x_TD, logits).view(x.sizes());
    }
    return x;
  }

 private:
  const Tensor& named(const std::string& name) const {
    for (const Param& param : net_.table.all()) {
      if (param.name == name) return param.value;
    }
    throw std::runtime_error("no parameter " + name);
  }
  const Tensor& layer(int64_t i, const std::string& name) const {
    return named("layers." + std::to_string(i) + ".block_sparse_moe." + name);
  }

  // The feature that the head reads; h and c move on by a layer.
  Tensor stage(int64_t i, const Tensor& x_TD, Tensor& h, Tensor& c) const {
    if (options_.stage == "additive") return additive(i, x_TD, h);
    const Tensor u = x_TD.matmul(layer(i, "weight1").t());
    if (!h.defined()) h = at::zeros_like(u);
    if (!c.defined()) c = at::zeros_like(u);
    const int64_t gates = options_.stage == "gru" ? 3 : options_.stage == "lstm" ? 4 : 1;
    const auto read = (u.matmul(cell("weight_ih").t()) + cell("bias_ih")).chunk(gates, 1);
    const auto kept = (h.matmul(cell("weight_hh").t()) + cell("bias_hh")).chunk(gates, 1);
    if (options_.stage == "rnn") {
      h = (read[0] + kept[0]).tanh();
    } else if (options_.stage == "gru") {
      const Tensor reset = (read[0] + kept[0]).sigmoid(), update = (read[1] + kept[1]).sigmoid();
      h = (1 - update) * (read[2] + reset * kept[2]).tanh() + update * h;
    } else {
      const Tensor in = (read[0] + kept[0]).sigmoid(), forget = (read[1] + kept[1]).sigmoid();
      c = forget * c + in * (read[2] + kept[2]).tanh();
      h = (read[3] + kept[3]).sigmoid() * c.tanh();
    }
    return h;
  }
  const Tensor& cell(const std::string& name) const { return named("rnn_router." + name); }

  Tensor additive(int64_t i, const Tensor& x_TD, Tensor& h) const {
    const auto linear = [&](const std::string& name, const Tensor& in) {
      return in.matmul(layer(i, "router." + name + ".weight").t()) + layer(i, "router." + name + ".bias");
    };
    Tensor r = linear("down_proj", x_TD);
    if (h.defined()) r = r + layer(i, "router.router_states_scale") * h;
    h = r;
    const Tensor mean_square = r.square().mean(1, /*keepdim=*/true);
    Tensor feature = r / (mean_square + 1e-5).sqrt() * layer(i, "router.rmsnorm_eda.weight");
    for (const char* name : {"router_mlp.0", "router_mlp.2"}) {
      const Tensor z = linear(name, feature);
      feature = z * 0.5 * (1 + (z / std::sqrt(2.0)).erf());
    }
    return feature;
  }

  // Every expert answers every token; those beyond the K best weigh nothing.
  Tensor experts(int64_t i, const Tensor& x_TD, const Tensor& logits) const {
    const auto best = logits.topk(testing::kTopK, 1);
    const Tensor weights = at::zeros_like(logits).scatter(1, std::get<1>(best), std::get<0>(best).softmax(1));
    Tensor y = at::zeros_like(x_TD);
    for (int64_t n = 0; n < testing::kExperts; ++n) {
      const Tensor inner = x_TD.matmul(layer(i, "experts.w1.weight")[n].t()) + layer(i, "experts.w1.bias")[n];
      const Tensor answer = inner.relu().matmul(layer(i, "experts.w2.weight")[n].t()) + layer(i, "experts.w2.bias")[n];
      y = y + weights.select(1, n).unsqueeze(1) * answer;
    }
    return y;
  }

  const Net& net_;
  Truncation options_;
};

struct Outcome {
  Tensor y, x_grad;
  std::vector<Tensor> grads;
};

template <class F>
Outcome outcome(Net& net, const Batch& batch, F&& forward) {
  Outcome result;
  Batch leaf = batch;
  leaf.x_BSD = batch.x_BSD.clone().requires_grad_();
  net.clear_gradients();
  result.y = forward(leaf);
  net_loss(result.y).backward();
  result.x_grad = leaf.x_BSD.grad();
  result.grads = net.gradients();
  net.clear_gradients();
  return result;
}

Outcome of_net(const Truncation& t, const Batch& batch) {
  Net net = make_net(t);
  return outcome(net, batch, [&](const Batch& b) { return net.run(b).y_BSD; });
}

class Truncated : public ::testing::TestWithParam<std::tuple<std::string, int64_t, Residual>> {
 protected:
  Truncation options() const { return {std::get<0>(GetParam()), std::get<1>(GetParam()), std::get<2>(GetParam())}; }
};

TEST_P(Truncated, HasTheGradientOfTheNetworkWithItsStatesDetached) {
  const Batch batch = Batch::random(2, 3, 3);
  Net net = make_net(options());
  const Plain plain(net, options());
  const Outcome expected = outcome(net, batch, [&](const Batch& b) { return plain.run(b.x_BSD); });
  const Outcome got = outcome(net, batch, [&](const Batch& b) { return net.run(b).y_BSD; });
  EXPECT_TRUE(at::allclose(got.y, expected.y, 1e-12, 1e-12));
  EXPECT_TRUE(at::allclose(got.x_grad, expected.x_grad, 1e-11, 1e-11));
  testing::expect_same_gradients(net, expected.grads, got.grads, "truncated");
  const Outcome again = outcome(net, batch, [&](const Batch& b) { return net.run(b, {.recompute = true}).y_BSD; });
  testing::expect_same_gradients(net, expected.grads, again.grads, "truncated and recomputed");
}

const char* suffix(Residual residual) {
  return residual == Residual::kNone ? "" : residual == Residual::kPlain ? "_residual" : "_detached_residual";
}

INSTANTIATE_TEST_SUITE_P(All, Truncated,
                         ::testing::Combine(::testing::Values("gru", "rnn", "lstm", "additive"),
                                            ::testing::Values(0, 1, 2, 3, kDepth),
                                            ::testing::Values(Residual::kNone, Residual::kPlain, Residual::kDetached)),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param) + "_m" + std::to_string(std::get<1>(param_info.param)) +
                                  suffix(std::get<2>(param_info.param));
                         });

// Without this, an option that does nothing would pass where it should do nothing.
TEST(Truncation, ChangesTheGradientAndNotTheOutput) {
  const Batch batch = Batch::random(2, 3, 3);
  for (const char* stage : {"gru", "rnn", "lstm", "additive"}) {
    const Outcome whole = of_net({stage, 0, Residual::kPlain}, batch);
    std::vector<Outcome> cut;
    for (const int64_t m : {1, 2, 3}) cut.push_back(of_net({stage, m, Residual::kPlain}, batch));
    cut.push_back(of_net({stage, 0, Residual::kDetached}, batch));
    for (size_t a = 0; a < cut.size(); ++a) {
      EXPECT_TRUE(cut[a].y.equal(whole.y)) << stage;
      EXPECT_FALSE(at::allclose(cut[a].x_grad, whole.x_grad)) << stage << ", " << a;
      for (size_t b = 0; b < a; ++b)
        EXPECT_FALSE(at::allclose(cut[a].x_grad, cut[b].x_grad)) << stage << ", " << a << b;
    }
    // No layer stands on a multiple of m beyond the first.
    EXPECT_TRUE(of_net({stage, kDepth, Residual::kPlain}, batch).x_grad.equal(whole.x_grad)) << stage;
  }
}

}  // namespace
}  // namespace rmoe
