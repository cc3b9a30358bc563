// Balance losses in front of sampled pipelines: value and gradient do not depend on micro-batching (where the
// definition says so), padding, recomputation or evaluation passes; and the errors that people meet silently elsewhere
// would be seen here.
#include <algorithm>
#include <cmath>
#include <map>

#include "rmoe/config/run.h"
#include "rmoe/ops/affine.h"
#include "rmoe/ops/tensor_file.h"
#include "tests/conformance/net.h"
#include "tests/support/temp_dir.h"

namespace rmoe {
namespace {

using routing::Routing;
using testing::Batch;
using testing::Net;
using testing::NetOptions;
using Flags = std::vector<std::string>;

Flags joined(Flags a, const Flags& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Pipelines to stand behind every balance: a sample of the product.
const std::vector<Flags>& pipelines() {
  static const std::vector<Flags> all = {
      {"--router.kind=linear"},
      {"--stage.kind=gru", "--stage.width=5", "--score.kind=sigmoid"},
      {"--stage.kind=lstm", "--stage.width=4", "--router.kind=cosine", "--score.kind=softmax"},
      {"--router.kind=mlp", "--router.width=5", "--selection.kind=group_limited", "--selection.groups=2",
       "--selection.keep_groups=1"},
      {"--stage.kind=additive", "--stage.width=4", "--score.kind=sqrt_softplus"},
      {"--stage.kind=rnn", "--stage.width=4", "--score.kind=relu", "--selection.kind=positive"},
  };
  return all;
}

Flags with_balance(const Flags& front, const std::string& kind) {
  return joined(front, {"--balance=[{kind = \"" + kind + "\", weight = 0.5}]"});
}

bool allowed(const Flags& flags) {
  try {
    ParamTable counting;
    nn::make_moe_layers(testing::net_config(flags), nn::ExpertKind::kRelu, ParamScope(counting));
    return true;
  } catch (const Error&) {
    return false;
  }
}

std::vector<Tensor> buffers(const Net& net) {
  std::vector<Tensor> values;
  for (const Param& param : net.table.all()) {
    if (param.is_buffer()) values.push_back(param.value.clone());
  }
  return values;
}

bool equal(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!a[i].equal(b[i])) return false;
  }
  return a.size() == b.size();
}

struct ValueAndGradients {
  double value;
  std::vector<Tensor> gradients;
};

ValueAndGradients balance_of(Net& net, const Batch& batch, const NetOptions& options = {},
                             const routing::BatchCounts* counts = nullptr, double share = 1) {
  net.clear_gradients();
  const Tensor loss = net.pipeline().loss(net.run(batch, options).trace, counts) * share;
  if (loss.requires_grad()) loss.backward();
  ValueAndGradients result{loss.item<double>(), net.gradients()};
  net.clear_gradients();
  return result;
}

void expect_same(const Net& net, const ValueAndGradients& a, const ValueAndGradients& b, const std::string& what) {
  EXPECT_NEAR(a.value, b.value, 1e-11 * std::max(1.0, std::abs(a.value))) << what;
  testing::expect_same_gradients(net, a.gradients, b.gradients, what, 1e-9);
}

class EveryBalance : public ::testing::TestWithParam<std::string> {};

TEST_P(EveryBalance, DependsOnTheTokensAlone) {
  const Batch batch = Batch::random(4, 3, 3);
  int64_t tried = 0;
  for (const Flags& front : pipelines()) {
    const Flags flags = with_balance(front, GetParam());
    if (!allowed(flags)) continue;
    ++tried;
    Net net(flags);
    std::string name;
    for (const std::string& flag : flags) name += flag + " ";
    SCOPED_TRACE(name);
    const auto before = buffers(net);
    const auto plain = balance_of(net, batch);
    EXPECT_TRUE(std::isfinite(plain.value));
    testing::expect_directional_gradients(
        net, [&] { return net.pipeline().loss(net.run(batch).trace) + at::zeros({}, at::kDouble).requires_grad_(); },
        "gradient");
    expect_same(net, plain, balance_of(net, batch, {.recompute = true}), "recomputed");
    // Padding: two more positions of garbage behind each sequence.
    const Batch tail = Batch::random(4, 2, 9);
    const Batch padded{at::cat({batch.x_BSD, 100 * tail.x_BSD}, 1), at::cat({batch.tokens_BS, tail.tokens_BS}, 1),
                       at::cat({at::ones({4, 3}, at::kBool), at::zeros({4, 2}, at::kBool)}, 1)};
    expect_same(net, plain, balance_of(net, padded), "padded");
    // Zero tokens.
    EXPECT_EQ(balance_of(net, batch.rows(0, 0)).value, 0);
    EXPECT_TRUE(equal(before, buffers(net))) << "a forward pass wrote a buffer";
  }
  EXPECT_GT(tried, 0);
}

TEST_P(EveryBalance, SplitsIntoMicroBatchesWhereItsDefinitionSaysSo) {
  const Batch batch = Batch::random(4, 3, 3);
  for (const Flags& front : pipelines()) {
    const Flags flags = with_balance(front, GetParam());
    if (!allowed(flags)) continue;
    Net net(flags);
    const auto whole = balance_of(net, batch);
    routing::BatchCounts counts;
    for (const Routing& r : net.run(batch).trace) counts.push_back(r.chosen_N);
    for (const int64_t pieces : {2, 4}) {
      const int64_t rows = 4 / pieces;
      ValueAndGradients sum{0, {}};
      routing::Statistics statistics;
      for (int64_t i = 0; i < pieces; ++i) {
        const Batch piece = batch.rows(i * rows, rows);
        statistics.add(net.pipeline().statistics(net.run(piece).trace));
        const auto part = balance_of(net, piece, {}, net.pipeline().wants_batch_counts() ? &counts : nullptr,
                                     1 / static_cast<double>(pieces));
        sum.value += part.value;
        if (sum.gradients.empty()) {
          sum.gradients = part.gradients;
          continue;
        }
        for (size_t g = 0; g < part.gradients.size(); ++g) {
          if (part.gradients[g].defined()) sum.gradients[g] = sum.gradients[g] + part.gradients[g];
        }
      }
      // docs/balance.md says which.
      const bool invariant = GetParam() == "global_batch" || GetParam() == "sequence" || GetParam() == "z";
      if (invariant) expect_same(net, whole, sum, std::to_string(pieces) + " micro-batches");
      // What adapts sees the whole step's batch, however it was cut.
      Net other(flags);
      other.pipeline().update(statistics, {.step = 1, .steps = 10});
      Net once(flags);
      once.pipeline().update(once.pipeline().statistics(once.run(batch).trace), {.step = 1, .steps = 10});
      EXPECT_TRUE(equal(buffers(other), buffers(once))) << pieces << " micro-batches";
    }
  }
}

// Options that move the buffers far in a few steps.
Flags with_fast_balance(const Flags& front, const std::string& kind) {
  const std::string rate = kind == "bias" ? ", rate = 0.3" : kind == "relu_l1" ? ", start = 0.1, factor = 1.7" : "";
  return joined(front, {"--balance=[{kind = \"" + kind + "\", weight = 0.5" + rate + "}]"});
}

void move_buffers(Net& net, int64_t steps) {
  for (int64_t step = 1; step <= steps; ++step) {
    const Batch batch = Batch::random(4, 3, static_cast<uint64_t>(100 + step));
    const auto trace = net.run(batch, {.training = true}).trace;
    net.pipeline().update(net.pipeline().statistics(trace), {.step = step, .steps = 10});
  }
}

// In the middle of a training, where buffers are no longer zero: the loss of the task and of the balance together.
TEST_P(EveryBalance, TrainsTheSameWhenItsStateHasMoved) {
  const Batch batch = Batch::random(4, 3, 3);
  const bool steers = GetParam() == "bias" || GetParam() == "quantile" || GetParam() == "sinkhorn";
  bool chose_otherwise = false;
  for (const Flags& front : pipelines()) {
    const Flags flags = with_fast_balance(front, GetParam());
    if (!allowed(flags)) continue;
    std::string name;
    for (const std::string& flag : flags) name += flag + " ";
    SCOPED_TRACE(name);
    Net net(flags);
    move_buffers(net, 3);
    const auto before = buffers(net);
    const auto moved = [](const Tensor& buffer) { return buffer.any().item<bool>(); };
    EXPECT_TRUE(before.empty() || std::any_of(before.begin(), before.end(), moved));
    std::vector<Tensor> chosen;
    // The text is the first three positions; what is behind them counts as padding.
    const auto result_of = [&](const Batch& input, const NetOptions& options) {
      net.clear_gradients();
      const auto result = net.run(input, options);
      const Tensor loss = testing::net_loss(result.y_BSD.narrow(1, 0, 3)) + net.pipeline().loss(result.trace);
      loss.backward();
      if (chosen.empty()) {
        for (const Routing& r : result.trace) chosen.push_back(r.chosen_TK);
      }
      ValueAndGradients values{loss.item<double>(), net.gradients()};
      net.clear_gradients();
      return values;
    };
    const auto plain = result_of(batch, {.training = true});
    expect_same(net, plain, result_of(batch, {.training = true, .recompute = true}), "recomputed");
    expect_same(net, plain, result_of(batch, {.training = true, .replay_TK = chosen}), "replayed");
    const Batch tail = Batch::random(4, 2, 9);
    const Batch padded{at::cat({batch.x_BSD, 100 * tail.x_BSD}, 1), at::cat({batch.tokens_BS, tail.tokens_BS}, 1),
                       at::cat({at::ones({4, 3}, at::kBool), at::zeros({4, 2}, at::kBool)}, 1)};
    expect_same(net, plain, result_of(padded, {.training = true}), "padded");
    testing::expect_directional_gradients(
        net,
        [&] {
          const auto result = net.run(batch, {.training = true});
          return testing::net_loss(result.y_BSD) + net.pipeline().loss(result.trace);
        },
        "gradient");
    EXPECT_TRUE(equal(before, buffers(net))) << "a forward pass wrote a buffer";
    const auto task = [&](int64_t pieces) {
      const int64_t rows = 4 / pieces;
      net.clear_gradients();
      for (int64_t i = 0; i < pieces; ++i) {
        testing::net_loss(net.run(batch.rows(i * rows, rows), {.training = true}).y_BSD, i * rows).backward();
      }
      auto gradients = net.gradients();
      net.clear_gradients();
      return gradients;
    };
    // A token's choice depends on the buffers and on this token, but for sinkhorn, which weighs the whole batch.
    if (GetParam() != "sinkhorn") {
      testing::expect_same_gradients(net, task(1), task(2), "2 micro-batches");
      testing::expect_same_gradients(net, task(1), task(4), "4 micro-batches");
    }
    const auto fresh = Net(flags).run(batch).trace;
    for (size_t i = 0; i < chosen.size(); ++i) {
      chose_otherwise = chose_otherwise || !chosen[i].equal(fresh[i].chosen_TK);
    }
    // Another step from here, in one piece and in four.
    Net other(flags);
    move_buffers(other, 3);
    routing::Statistics whole = net.pipeline().statistics(net.run(batch).trace), sum;
    for (int64_t i = 0; i < 4; ++i) sum.add(other.pipeline().statistics(other.run(batch.rows(i, 1)).trace));
    net.pipeline().update(whole, {.step = 4, .steps = 10});
    other.pipeline().update(sum, {.step = 4, .steps = 10});
    EXPECT_TRUE(equal(buffers(net), buffers(other)));
    EXPECT_TRUE(before.empty() || !equal(before, buffers(net)));
  }
  EXPECT_EQ(chose_otherwise, steers);
}

INSTANTIATE_TEST_SUITE_P(All, EveryBalance, ::testing::ValuesIn(routing::BalanceRegistry::catalogue().names()),
                         [](const auto& param_info) { return param_info.param; });

// --- errors that are silent elsewhere ---

// A softmax applied to probabilities instead of logits flattens the weights; only the definition tells.
TEST(SilentErrors, ADoubleSoftmaxWouldBeSeen) {
  const Net net({"--router.kind=linear", "--balance=[]"});
  const Batch batch = Batch::random(2, 3, 3);
  const Routing r = net.run(batch).trace[0];
  const Tensor w_ND = net.table.all()[0].value.detach();
  const Tensor count = at::arange(1, 4, at::kDouble).view({1, -1, 1});
  const Tensor x_TD = (batch.x_BSD + 0.5 * batch.x_BSD.cumsum(1) / count).reshape({-1, testing::kWidth});
  for (int64_t t = 0; t < x_TD.size(0); ++t) {
    std::vector<double> logits;
    for (int64_t n = 0; n < testing::kExperts; ++n) logits.push_back(w_ND[n].dot(x_TD[t]).item<double>());
    double sum = 0;
    for (int64_t k = 0; k < testing::kTopK; ++k) {
      sum += std::exp(logits[static_cast<size_t>(r.ids_TK[t][k].item<int64_t>())]);
    }
    for (int64_t k = 0; k < testing::kTopK; ++k) {
      const double weight = std::exp(logits[static_cast<size_t>(r.ids_TK[t][k].item<int64_t>())]) / sum;
      EXPECT_NEAR(r.weights_TK[t][k].item<double>(), weight, 1e-12);
    }
  }
}

// The gradient of (task + weight * balance) is the task's plus weight times the balance's: once, not twice, also with
// recomputation, where a graph that is walked again would add its part again.
TEST(SilentErrors, DoubledBalanceGradientsWouldBeSeen) {
  const Batch batch = Batch::random(2, 3, 3);
  for (const bool recompute : {false, true}) {
    Net net({"--stage.kind=gru", "--stage.width=5", "--balance=[{kind = \"switch\", weight = 0.3}]"});
    const auto gradients = [&](bool task, bool balance) {
      net.clear_gradients();
      const auto result = net.run(batch, {.recompute = recompute});
      Tensor loss = at::zeros({}, at::kDouble);
      if (task) loss = loss + testing::net_loss(result.y_BSD);
      if (balance) loss = loss + net.pipeline().loss(result.trace);
      loss.backward();
      return net.gradients();
    };
    const auto task = gradients(true, false), balance = gradients(false, true), both = gradients(true, true);
    std::vector<Tensor> sum;
    for (size_t i = 0; i < both.size(); ++i) {
      const Tensor zero = at::zeros_like(net.table.all()[i].value);
      sum.push_back((task[i].defined() ? task[i] : zero) + (balance[i].defined() ? balance[i] : zero));
    }
    testing::expect_same_gradients(net, sum, both, recompute ? "recomputed" : "plain", 1e-12);
    testing::expect_directional_gradients(
        net, [&] { return net.pipeline().loss(net.run(batch, {.recompute = recompute}).trace); }, "balance");
  }
}

// bf16 holds integers up to 256 only: with more tokens per expert than that, counts in the model's dtype are wrong.
TEST(SilentErrors, CountsInBf16WouldBeSeen) {
  const Net net({"--router.kind=linear", "--balance=[{kind = \"switch\", weight = 1}]"}, 1, at::kFloat);
  Batch batch = Batch::random(3, 1201, 3);
  batch.x_BSD = batch.x_BSD.to(at::kBFloat16);
  const auto trace = net.run(batch).trace;
  double expected = 0;
  for (const Routing& r : trace) {
    ASSERT_EQ(r.counts_N.scalar_type(), at::kLong);
    EXPECT_EQ(r.counts_N.sum().item<int64_t>(), 3 * 1201 * testing::kTopK);
    EXPECT_EQ(r.probs_TN.scalar_type(), at::kFloat) << "routers compute in fp32";
    for (int64_t n = 0; n < testing::kExperts; ++n) {
      const auto count = r.ids_TK.eq(n).sum().item<int64_t>();
      EXPECT_EQ(r.counts_N[n].item<int64_t>(), count);
      expected += static_cast<double>(testing::kExperts * count) / (3 * 1201 * testing::kTopK) *
                  r.probs_TN.select(1, n).to(at::kDouble).mean().item<double>() / testing::kLayers;
    }
  }
  EXPECT_NEAR(net.pipeline().loss(trace).item<double>(), expected, 1e-5);
}

// The bias that balances is a buffer of fp32 that grows by `rate` per step, and a checkpoint has to hold it.
TEST(SilentErrors, ABiasSavedAsZerosWouldBeSeen) {
  const Flags flags = {"--router.kind=linear", "--balance=[{kind = \"bias\", rate = 0.3}]"};
  Net net(flags);
  const Batch batch = Batch::random(4, 3, 3);
  const auto start = buffers(net);
  ASSERT_EQ(start.size(), static_cast<size_t>(testing::kLayers));
  for (int64_t step = 1; step <= 3; ++step) {
    net.pipeline().update(net.pipeline().statistics(net.run(batch).trace), {.step = step, .steps = 10});
  }
  int64_t nonzero = 0;
  for (const Param& param : net.table.all()) {
    if (!param.is_buffer()) continue;
    EXPECT_EQ(param.value.scalar_type(), at::kFloat);
    nonzero += param.value.count_nonzero().item<int64_t>();
  }
  EXPECT_GT(nonzero, 0);
  const TempDir dir;
  save_tensors(dir.path() / "net.safetensors", net.table.stored());
  Net loaded(flags, 2);
  load_tensors(dir.path() / "net.safetensors", loaded.table.stored());
  EXPECT_TRUE(equal(buffers(net), buffers(loaded))) << "not the bias that was saved";
  EXPECT_TRUE(loaded.run(batch).y_BSD.equal(net.run(batch).y_BSD));
  // The choice is another one with the bias than without.
  Net fresh(flags);
  bool differs = false;
  const auto with = net.run(batch).trace, without = fresh.run(batch).trace;
  for (size_t i = 0; i < with.size(); ++i) differs = differs || !with[i].ids_TK.equal(without[i].ids_TK);
  EXPECT_TRUE(differs);
  // And the weights are those of the scores without the bias.
  const Routing& r = with[0];
  EXPECT_TRUE(at::allclose(r.weights_TK, r.logits_TN.gather(1, r.ids_TK).softmax(-1)));
}

// Capacity drops the lowest scores of each expert, counts them, and keeps the other weights.
TEST(Capacity, DropsTheLowestScoresFirst) {
  const Net net({"--router.kind=linear", "--capacity=0.5", "--balance=[]"});
  const Net free({"--router.kind=linear", "--balance=[]"});
  const Batch batch = Batch::random(4, 5, 3);
  const Routing r = net.run(batch, {.training = true}).trace[0], all = free.run(batch, {.training = true}).trace[0];
  const int64_t T = 20, K = testing::kTopK, N = testing::kExperts, capacity = (T * K / 2 + N - 1) / N;
  int64_t dropped = 0;
  for (int64_t n = 0; n < N; ++n) {
    std::vector<double> kept, gone;
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t k = 0; k < K; ++k) {
        if (all.ids_TK[t][k].item<int64_t>() != n) continue;
        const double score = all.scores_TN[t][n].item<double>();
        const bool stays = r.ids_TK[t][k].item<int64_t>() == n;
        (stays ? kept : gone).push_back(score);
        EXPECT_EQ(r.weights_TK[t][k].item<double>(), stays ? all.weights_TK[t][k].item<double>() : 0.0);
      }
    }
    EXPECT_EQ(static_cast<int64_t>(kept.size()), std::min<int64_t>(capacity, std::ssize(kept) + std::ssize(gone)));
    if (!gone.empty()) {
      EXPECT_GE(*std::min_element(kept.begin(), kept.end()), *std::max_element(gone.begin(), gone.end()));
    }
    EXPECT_EQ(r.counts_N[n].item<int64_t>(), std::ssize(kept));
    dropped += std::ssize(gone);
  }
  EXPECT_GT(dropped, 0);
  EXPECT_EQ(r.dropped.item<int64_t>(), dropped);
  // Evaluation drops nothing.
  EXPECT_TRUE(net.run(batch).trace[0].full);
}

}  // namespace
}  // namespace rmoe
