// Every stage x head x score function x selection that is allowed keeps the promises of design and documentation. The
// kinds come from the registries, so that a plug-in added as one file is tested here without being named.
#include <map>
#include <set>

#include <torch/csrc/autograd/autograd.h>

#include "rmoe/ops/device.h"
#include "rmoe/ops/tensor_file.h"
#include "tests/conformance/net.h"
#include "tests/support/far_device.h"
#include "tests/support/temp_dir.h"

namespace rmoe {
namespace {

using routing::Routing;
using testing::Batch;
using testing::Net;
using testing::net_loss;
using testing::NetCache;
using testing::NetOptions;
using testing::NetResult;
using Flags = std::vector<std::string>;

constexpr int64_t kSequences = 4, kLength = 3;

// What a plug-in needs to be at all at the suite's sizes.
Flags options_of(const std::string& plural, const std::string& kind) {
  static const std::map<std::string, Flags> options = {
      {"stages/gru", {"--stage.width=5"}},
      {"stages/rnn", {"--stage.width=5"}},
      {"stages/lstm", {"--stage.width=5"}},
      {"stages/additive", {"--stage.width=5"}},
      {"routers/compete", {"--router.rate=1"}},
      {"routers/mlp", {"--router.width=5"}},
      {"routers/xmoe", {"--router.width=3"}},
      {"routers/hyper", {"--router.width=4"}},
      {"routers/stable", {"--router.width=3"}},
      {"selections/group_limited", {"--selection.groups=2", "--selection.keep_groups=1"}},
      {"selections/top_p", {"--selection.p=0.6"}},
  };
  const auto found = options.find(plural + "/" + kind);
  return found == options.end() ? Flags{} : found->second;
}

Flags joined(Flags a, const Flags& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::string text(const Flags& flags) {
  std::string all;
  for (const std::string& flag : flags) all += (all.empty() ? "" : " ") + flag;
  return all;
}

// Why the pipeline refuses these flags, or nothing.
std::string refusal(const Flags& flags) {
  try {
    ParamTable counting;
    nn::make_moe_layers(testing::net_config(flags), nn::ExpertKind::kRelu, ParamScope(counting));
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::kBadInput) << e.what();
    return e.what();
  }
  return "";
}

Tensor used(const Routing& r) { return r.ids_TK.ge(0); }

// --- one test per promise, for one combination ---

void expect_sound_routing(const Net& net, const NetResult& result) {
  const int64_t N = net.pipeline().experts();
  for (const Routing& r : result.trace) {
    const int64_t T = r.tokens();
    EXPECT_EQ(r.logits_TN.sizes(), at::IntArrayRef({T, N}));
    EXPECT_EQ(r.probs_TN.sizes(), at::IntArrayRef({T, N}));
    EXPECT_EQ(r.ids_TK.sizes(), r.weights_TK.sizes());
    EXPECT_EQ(r.ids_TK.scalar_type(), at::kLong);
    EXPECT_EQ(r.counts_N.scalar_type(), at::kLong);
    EXPECT_TRUE(r.ids_TK.lt(N).all().item<bool>());
    EXPECT_TRUE(r.ids_TK.ge(-1).all().item<bool>());
    if (r.full) {
      EXPECT_TRUE(used(r).all().item<bool>());
    }
    std::vector<int64_t> counts(static_cast<size_t>(N), 0);
    for (int64_t t = 0; t < T; ++t) {
      std::set<int64_t> chosen;
      for (int64_t k = 0; k < r.ids_TK.size(1); ++k) {
        const auto id = r.ids_TK[t][k].item<int64_t>();
        if (id < 0) {
          EXPECT_EQ(r.weights_TK[t][k].item<double>(), 0) << "an unused slot has a weight";
          continue;
        }
        EXPECT_TRUE(chosen.insert(id).second) << "token " << t << " has expert " << id << " twice";
        ++counts[static_cast<size_t>(id)];
      }
    }
    for (int64_t n = 0; n < N; ++n) EXPECT_EQ(r.counts_N[n].item<int64_t>(), counts[static_cast<size_t>(n)]);
    const Tensor sums = r.probs_TN.sum(1), none = r.scores_TN.eq(0).all(1);
    EXPECT_TRUE(at::allclose(sums, at::where(none, 0.0, 1.0).to(sums.scalar_type()), 0, 1e-12));
  }
}

void expect_weights_sum_to_one(const Flags& flags, const NetResult& result) {
  const auto score = testing::net_config(flags).moe.score.create();
  if (!score->normalized()) return;
  for (const Routing& r : result.trace) {
    const Tensor any = used(r).any(1).to(at::kDouble);
    EXPECT_TRUE(at::allclose(r.weights_TK.sum(1), any, 0, 1e-12));
  }
}

std::vector<Tensor> gradients_of(Net& net, const std::function<void()>& backward) {
  net.clear_gradients();
  backward();
  auto grads = net.gradients();
  net.clear_gradients();
  return grads;
}

void expect_same_choice(const NetResult& a, const NetResult& b) {
  for (size_t i = 0; i < a.trace.size(); ++i) {
    EXPECT_TRUE(a.trace[i].ids_TK.equal(b.trace[i].ids_TK)) << "layer " << i;
    EXPECT_TRUE(a.trace[i].weights_TK.equal(b.trace[i].weights_TK)) << "layer " << i;
  }
}

void expect_save_and_load(const Flags& flags, Net& net, const Batch& batch, const Tensor& y) {
  const TempDir dir;
  save_tensors(dir.path() / "net.safetensors", net.table.stored());
  Net other(flags, 2);
  load_tensors(dir.path() / "net.safetensors", other.table.stored());
  EXPECT_TRUE(other.run(batch).y_BSD.equal(y));
  // The count of the formula (a table that allocates nothing) is the count of what was built.
  ParamTable counting;
  nn::make_moe_layers(net.config, nn::ExpertKind::kRelu, ParamScope(counting));
  int64_t built = 0;
  for (const Param& param : net.table.all()) built += param.is_buffer() ? 0 : param.value.numel();
  EXPECT_EQ(counting.count(), built);
}

void expect_recorded_choices_replay(Net& net, const Batch& batch, const NetResult& plain,
                                    const std::vector<Tensor>& grads, bool training = false) {
  NetOptions replay{.training = training};
  for (const Routing& r : plain.trace) replay.replay_TK.push_back(r.chosen_TK);
  Tensor y;
  const auto again = gradients_of(net, [&] {
    const auto result = net.run(batch, replay);
    expect_same_choice(plain, result);
    y = result.y_BSD;
    net_loss(y).backward();
  });
  EXPECT_TRUE(y.equal(plain.y_BSD));
  testing::expect_same_gradients(net, grads, again, "replayed");
}

void expect_pipeline_pieces(Net& net, const Batch& batch, const NetResult& plain, const std::vector<Tensor>& grads) {
  for (const int64_t cut : {1, 2}) {
    const auto pieces = gradients_of(net, [&] {
      const auto first = net.run_layers(0, cut, batch, batch.x_BSD, {});
      // By value: what crosses the boundary has no graph, as if it came from another process.
      const auto received = [](const Tensor& t) {
        return t.defined() ? t.detach().clone().requires_grad_(t.requires_grad()) : t;
      };
      const Tensor x = received(first.y_BSD);
      routing::RouterCarry carry = first.carry;
      carry.state_TP = received(carry.state_TP);
      carry.cell_TP = received(carry.cell_TP);
      for (Tensor& scores : carry.scores_TN) scores = received(scores);
      const auto second = net.run_layers(cut, testing::kLayers, batch, x, carry);
      EXPECT_TRUE(second.y_BSD.equal(plain.y_BSD));
      net_loss(second.y_BSD).backward();
      torch::autograd::variable_list roots, root_grads;
      const auto back = [&](const Tensor& sent, const Tensor& got) {
        if (!sent.defined() || !got.grad().defined()) return;
        roots.push_back(sent);
        root_grads.push_back(got.grad());
      };
      back(first.y_BSD, x);
      back(first.carry.state_TP, carry.state_TP);
      back(first.carry.cell_TP, carry.cell_TP);
      for (size_t i = 0; i < carry.scores_TN.size(); ++i) back(first.carry.scores_TN[i], carry.scores_TN[i]);
      torch::autograd::backward(roots, root_grads);
    });
    testing::expect_same_gradients(net, grads, pieces, "two pipeline pieces, cut at " + std::to_string(cut));
  }
}

void expect_micro_batches(Net& net, const Batch& batch, const std::vector<Tensor>& grads) {
  for (const int64_t pieces : {2, 4}) {
    const int64_t rows = kSequences / pieces;
    const auto split = gradients_of(net, [&] {
      for (int64_t i = 0; i < pieces; ++i) {
        net_loss(net.run(batch.rows(i * rows, rows)).y_BSD, i * rows).backward();
      }
    });
    testing::expect_same_gradients(net, grads, split, std::to_string(pieces) + " micro-batches");
  }
}

void expect_token_by_token(Net& net, const Batch& batch, const NetResult& plain, const std::vector<Tensor>& grads) {
  const auto single = gradients_of(net, [&] {
    NetCache cache;
    Tensor loss = at::zeros({}, at::kDouble);
    for (int64_t s = 0; s < kLength; ++s) {
      const auto result = net.run(batch.columns(s, 1), {.generating = true}, &cache);
      EXPECT_TRUE(at::allclose(result.y_BSD, plain.y_BSD.narrow(1, s, 1), 1e-11, 1e-11)) << "position " << s;
      loss = loss + net_loss(result.y_BSD, 0, s);
    }
    loss.backward();
  });
  testing::expect_same_gradients(net, grads, single, "token by token");
}

void expect_tokens_are_independent(const Net& net, const Batch& batch, const NetResult& plain) {
  const at::NoGradGuard no_grad;
  const Tensor order = at::tensor({2, 0, 3, 1}, at::kLong);
  const Batch shuffled{batch.x_BSD.index_select(0, order), batch.tokens_BS.index_select(0, order), {}};
  EXPECT_TRUE(at::allclose(net.run(shuffled).y_BSD, plain.y_BSD.index_select(0, order), 1e-11, 1e-11));
  Batch changed = batch;
  changed.x_BSD = batch.x_BSD.clone();
  changed.x_BSD.select(1, kLength - 1).add_(1);
  changed.tokens_BS = batch.tokens_BS.clone();
  changed.tokens_BS.select(1, kLength - 1).add_(1).remainder_(testing::kVocab);
  const Tensor past = net.run(changed).y_BSD.narrow(1, 0, kLength - 1);
  EXPECT_TRUE(at::allclose(past, plain.y_BSD.narrow(1, 0, kLength - 1), 1e-11, 1e-11)) << "the future was seen";
}

void expect_edges(const Flags& flags, Net& net, const Batch& batch) {
  // No token at all.
  const auto none =
      net.run({at::zeros({0, kLength, testing::kWidth}, at::kDouble), at::zeros({0, kLength}, at::kLong), {}});
  EXPECT_EQ(none.y_BSD.sizes(), at::IntArrayRef({0, kLength, testing::kWidth}));
  EXPECT_EQ(none.trace[0].counts_N.sum().item<int64_t>(), 0);
  // All tokens on the same two experts, so that two get none.
  NetOptions forced;
  const Tensor same = at::tensor({1, 3}, at::kLong).expand({kSequences * kLength, 2}).contiguous();
  forced.replay_TK.assign(static_cast<size_t>(testing::kLayers), same);
  net.clear_gradients();
  net_loss(net.run(batch, forced).y_BSD).backward();
  for (const Param& param : net.table.all()) {
    if (!param.value.grad().defined()) continue;
    EXPECT_TRUE(param.value.grad().isfinite().all().item<bool>()) << param.name;
    if (param.name.find(".experts.") == std::string::npos) continue;
    EXPECT_EQ(param.value.grad()[0].abs().max().item<double>(), 0) << param.name << ": expert without tokens";
    EXPECT_EQ(param.value.grad()[2].abs().max().item<double>(), 0) << param.name << ": expert without tokens";
  }
  net.clear_gradients();
  // One expert for all.
  forced.replay_TK.assign(static_cast<size_t>(testing::kLayers), at::full({kSequences * kLength, 1}, 2, at::kLong));
  const auto one = net.run(batch, forced);
  EXPECT_EQ(one.trace[1].counts_N[2].item<int64_t>(), kSequences * kLength);
  EXPECT_TRUE(one.y_BSD.isfinite().all().item<bool>());
  // K = N.
  const Flags all = joined(flags, {"--top_k=" + std::to_string(net.pipeline().experts())});
  if (refusal(all).empty()) {
    Net every(all);
    expect_sound_routing(every, every.run(batch));
    net_loss(every.run(batch).y_BSD).backward();
    for (const Param& param : every.table.all()) {
      if (!param.value.grad().defined()) continue;
      EXPECT_TRUE(param.value.grad().isfinite().all().item<bool>()) << param.name;
    }
  }
}

// With all weights zero every expert has the same score: the choice is the same each time, for a ranking selection the
// lowest ids.
void expect_ties_are_broken_alike(const Flags& flags, const Batch& batch) {
  Net net(flags);
  const at::NoGradGuard no_grad;
  for (Param& param : net.table.all()) {
    if (!param.is_buffer()) param.value.zero_();
  }
  const auto first = net.run(batch), second = net.run(batch);
  expect_same_choice(first, second);
  expect_sound_routing(net, first);
  const auto& c = net.pipeline().combination();
  if (!c.ranks || !c.reads_feature) return;
  for (const Routing& r : first.trace) {
    EXPECT_TRUE(r.ids_TK.equal(at::arange(r.ids_TK.size(1)).expand_as(r.ids_TK))) << r.ids_TK;
  }
}

// In training there is noise, competition, capacity, transport: the same numbers again for the same key.
void expect_training_promises(Net& net, const Batch& batch) {
  const auto loss = [&](const NetResult& result) { return net_loss(result.y_BSD) + net.pipeline().loss(result.trace); };
  NetResult plain;
  const auto grads = gradients_of(net, [&] {
    plain = net.run(batch, {.training = true});
    net_loss(plain.y_BSD).backward();
  });
  plain.y_BSD = plain.y_BSD.detach();
  expect_sound_routing(net, plain);
  expect_recorded_choices_replay(net, batch, plain, grads, /*training=*/true);
  const auto with_losses = gradients_of(net, [&] { loss(net.run(batch, {.training = true})).backward(); });
  const auto recomputed = gradients_of(net, [&] {
    const auto result = net.run(batch, {.training = true, .recompute = true});
    EXPECT_TRUE(result.y_BSD.equal(plain.y_BSD));
    loss(result).backward();
  });
  testing::expect_same_gradients(net, with_losses, recomputed, "recomputed in training", 1e-12);
}

// Where the host cannot touch what is computed on. In training, too, with what is drawn, balanced and counted.
void expect_the_same_on_a_far_device(const Flags& flags, const Batch& batch, const NetResult& plain,
                                     const std::vector<Tensor>& grads) {
  const at::Device far = device_named(testing::kFarDevice);
  Net net(flags, 1, at::kDouble, testing::kLayers, far);
  const Batch there{batch.x_BSD.to(far), batch.tokens_BS.to(far), {}};
  NetResult result;
  std::vector<Tensor> gradients = gradients_of(net, [&] {
    result = net.run(there);
    net_loss(result.y_BSD).backward();
  });
  EXPECT_TRUE(at::allclose(result.y_BSD.detach().cpu(), plain.y_BSD, 1e-10, 1e-12)) << "far device";
  for (size_t i = 0; i < plain.trace.size(); ++i) {
    EXPECT_TRUE(at::equal(result.trace[i].ids_TK.cpu(), plain.trace[i].ids_TK)) << "far device, layer " << i;
  }
  for (Tensor& grad : gradients) grad = grad.defined() ? grad.cpu() : grad;
  testing::expect_same_gradients(net, grads, gradients, "far device");
  const auto train = [&](Net& n, const Batch& b) {
    const NetResult trained = n.run(b, {.training = true});
    const Tensor loss = n.pipeline().loss(trained.trace);
    if (n.pipeline().wants_token_counts()) n.pipeline().fit(at::ones({testing::kVocab}, at::kLong));
    n.pipeline().update(n.pipeline().statistics(trained.trace), {.step = 1, .steps = 2});
    return std::pair(trained.y_BSD.detach().cpu(), loss.detach().cpu());
  };
  Net here(flags);
  for (int step = 0; step < 2; ++step) {
    const auto [y, loss] = train(net, there);
    const auto [expected_y, expected_loss] = train(here, batch);
    EXPECT_TRUE(at::allclose(y, expected_y, 1e-10, 1e-12)) << "far device, training step " << step;
    EXPECT_TRUE(at::allclose(loss.to(at::kDouble), expected_loss.to(at::kDouble), 1e-6, 1e-8)) << "far device";
  }
}

void expect_conformance(const Flags& flags) {
  SCOPED_TRACE(text(flags));
  Net net(flags);
  const Batch batch = Batch::random(kSequences, kLength, 3);
  const auto& combination = net.pipeline().combination();
  NetResult plain;
  const auto grads = gradients_of(net, [&] {
    plain = net.run(batch);
    net_loss(plain.y_BSD).backward();
  });
  plain.y_BSD = plain.y_BSD.detach();
  expect_sound_routing(net, plain);
  expect_weights_sum_to_one(flags, plain);
  expect_same_choice(plain, net.run(batch));
  EXPECT_TRUE(net.run(batch).y_BSD.equal(plain.y_BSD)) << "two runs differ";
  // Where gradients are cut on purpose, finite differences say something else: see truncation_test.cpp.
  const bool cut = text(flags).find("detach = true") != std::string::npos ||
                   text(flags).find("gradient_layers") != std::string::npos;
  if (!cut) {
    const auto loss = [&] { return net_loss(net.run(batch.rows(0, 2)).y_BSD); };
    testing::expect_directional_gradients(net, loss, "gradient");
  }
  expect_save_and_load(flags, net, batch, plain.y_BSD);
  const auto recomputed = gradients_of(net, [&] {
    const auto result = net.run(batch, {.recompute = true});
    EXPECT_TRUE(result.y_BSD.equal(plain.y_BSD));
    net_loss(result.y_BSD).backward();
  });
  testing::expect_same_gradients(net, grads, recomputed, "recomputed", 1e-13);
  expect_recorded_choices_replay(net, batch, plain, grads);
  expect_pipeline_pieces(net, batch, plain, grads);
  if (combination.per_token) {
    expect_micro_batches(net, batch, grads);
    expect_token_by_token(net, batch, plain, grads);
    expect_tokens_are_independent(net, batch, plain);
  } else if (!net.pipeline().causal()) {
    EXPECT_THROW(net.run(batch, {.generating = true}), Error);
  }
  expect_training_promises(net, batch);
  expect_the_same_on_a_far_device(flags, batch, plain, grads);
  expect_edges(flags, net, batch);
  expect_ties_are_broken_alike(flags, batch);
}

// Every score function and selection behind one stage and head.
class Product : public ::testing::TestWithParam<std::tuple<std::string, std::string>> {};

TEST_P(Product, KeepsEveryPromise) {
  const auto [stage, router] = GetParam();
  const Flags front = joined(joined({"--stage.kind=" + stage}, options_of("stages", stage)),
                             joined({"--router.kind=" + router}, options_of("routers", router)));
  int64_t allowed = 0;
  std::set<std::string> reasons;
  for (const std::string& score : routing::ScoreRegistry::catalogue().names()) {
    for (const std::string& selection : routing::SelectionRegistry::catalogue().names()) {
      const Flags flags = joined(joined(front, {"--score.kind=" + score, "--selection.kind=" + selection}),
                                 options_of("selections", selection));
      const std::string why = refusal(flags);
      if (!why.empty()) {
        reasons.insert(why);
        continue;
      }
      ++allowed;
      expect_conformance(flags);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
  for (const std::string& why : reasons) EXPECT_GT(why.size(), 20U) << why;
  if (allowed == 0) {
    EXPECT_EQ(reasons.size(), 1U) << "nothing is allowed behind this stage and head, for different reasons";
  }
  RecordProperty("allowed", static_cast<int>(allowed));
}

INSTANTIATE_TEST_SUITE_P(All, Product,
                         ::testing::Combine(::testing::ValuesIn(routing::StageRegistry::catalogue().names()),
                                            ::testing::ValuesIn(routing::RouterRegistry::catalogue().names())),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param) + "_" + std::get<1>(param_info.param);
                         });

// Options of stages, transforms, sharing and expert kinds, each in front of a few heads.
struct Variant {
  const char* name;
  Flags flags;
};

class Variants : public ::testing::TestWithParam<Variant> {};

TEST_P(Variants, KeepEveryPromise) {
  for (const Flags& tail : {Flags{"--router.kind=linear"}, Flags{"--router.kind=cosine", "--score.kind=sigmoid"},
                            Flags{"--router.kind=mlp", "--router.width=5", "--selection.kind=top_p"}}) {
    const Flags flags = joined(GetParam().flags, tail);
    if (refusal(flags).empty()) expect_conformance(flags);
  }
  EXPECT_EQ(refusal(joined(GetParam().flags, {"--router.kind=linear"})), "");
}

const Flags kGru = {"--stage.kind=gru", "--stage.width=5"}, kLstm = {"--stage.kind=lstm", "--stage.width=5"};

INSTANTIATE_TEST_SUITE_P(
    Options, Variants,
    ::testing::Values(
        Variant{"s_proj", joined(kGru, {"--stage.project=false"})},
        Variant{"s_proj_lstm", joined(kLstm, {"--stage.project=false"})},
        Variant{"np", joined(kGru, {"--stage.pass=false"})}, Variant{"np_lstm", joined(kLstm, {"--stage.pass=false"})},
        Variant{"detach", joined(kGru, {"--stage.gradient_layers=1"})},
        Variant{"truncated", joined(kLstm, {"--stage.gradient_layers=2"})},
        Variant{"cells", joined(kGru, {"--stage.layers_per_cell=2"})},
        Variant{"residual", joined(kGru, {"--transforms=[{kind = \"residual\", alpha = 0.5}]"})},
        Variant{"residual_detach", joined(kGru, {"--stage.pass=false",
                                                 "--transforms=[{kind = \"residual\", alpha = 1.0, detach = true}]"})},
        Variant{"learned_residual", {"--transforms=[{kind = \"learned_residual\"}]"}},
        Variant{"two_transforms",
                joined(kLstm, {"--transforms=[{kind = \"learned_residual\"}, {kind = \"residual\"}]"})},
        Variant{"noise_is_for_training", {"--transforms=[{kind = \"noisy\"}, {kind = \"jitter\"}]"}},
        Variant{"capacity", joined(kGru, {"--capacity=0.5"})},
        Variant{"sinkhorn", {"--balance=[{kind = \"sinkhorn\"}]"}}, Variant{"one_head_for_all", {"--router_group=0"}},
        Variant{"a_head_per_two_layers", joined(kGru, {"--router_group=2"})},
        Variant{"zero_computation", {"--null_experts=1", "--copy_experts=2", "--top_k=3"}},
        Variant{"zero_computation_gru", joined(kGru, {"--null_experts=2", "--copy_experts=1"})},
        Variant{"state_gate", joined(kGru, {"--state_gate=true"})},
        Variant{"state_gate_lstm_shared_heads", joined(kLstm, {"--state_gate=true", "--router_group=2"})},
        Variant{"state_gate_residual",
                joined(kGru, {"--state_gate=true", "--transforms=[{kind = \"residual\"}]", "--stage.project=false"})},
        Variant{"state_gate_additive", {"--stage.kind=additive", "--stage.width=5", "--state_gate=true"}},
        Variant{"additive_plain", {"--stage.kind=additive", "--stage.width=5", "--stage.mlp_layers=0"}}),
    [](const auto& param_info) { return param_info.param.name; });

// What contradicts is refused, with the reason.
TEST(Refusals, NameTheReason) {
  const std::vector<std::pair<Flags, std::string>> cases = {
      {{"--router.kind=hash", "--stage.kind=gru"}, "hash"},
      {{"--router.kind=hash", "--stage.kind=gru", "--state_gate=true"}, "hash"},
      {{"--state_gate=true"}, "state_gate"},
      {{"--score.kind=relu"}, "relu"},
      {{"--selection.kind=positive"}, "positive"},
      {{"--selection.kind=top_p", "--score.kind=sigmoid"}, "top_p"},
      {{"--balance=[{kind = \"relu_l1\"}]"}, "relu_l1"},
      {{"--balance=[{kind = \"bias\"}]", "--selection.kind=top_p"}, "bias"},
      {{"--capacity=1.0", "--selection.kind=expert_choice"}, "capacity"},
      {{"--top_k=5"}, "top_k"},
      {{"--balance=[{kind = \"bias\"}, {kind = \"sinkhorn\"}]"}, "steer"},
      {{"--balance=[{kind = \"bias\"}]", "--router.kind=hash"}, "hash"},
      {{"--router.kind=hash", "--selection.grow_to=4"}, "hash"},
      {{"--balance=[{kind = \"switch\"}, {kind = \"switch\"}]"}, "twice"},
  };
  for (const auto& [flags, word] : cases) {
    const std::string why = refusal(flags);
    EXPECT_NE(why.find(word), std::string::npos) << text(flags) << ": " << why;
  }
}

}  // namespace
}  // namespace rmoe
