// `rmoe analyze` against plain computations on small runs.
#include "rmoe/analysis/analyze.h"

#include <cmath>

#include <gtest/gtest.h>

#include "rmoe/analysis/model/weights.h"
#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/base/log.h"
#include "rmoe/data/token_file.h"
#include "rmoe/eval/commands.h"
#include "rmoe/eval/run.h"
#include "rmoe/io/metrics.h"
#include "rmoe/ops/linear_cross_entropy.h"
#include "rmoe/train/run.h"
#include "rmoe/train/trainer.h"
#include "tests/support/temp_dir.h"
#include "tests/support/text_data.h"
#include "tests/support/tiny.h"

namespace rmoe::analysis {
namespace {

using rmoe::testing::tiny_config;

TEST(ExpertSimilarity, EqualsAPlainComputation) {
  const Tensor w1 = at::randn({3, 4, 5}), w2 = at::randn({3, 5, 4}), w3 = at::randn({3, 4, 5});
  const Tensor got = expert_similarity(w1, w2, w3);
  for (int64_t a = 0; a < 3; ++a) {
    for (int64_t b = 0; b < 3; ++b) {
      double sum = 0;
      const auto product = [&](const Tensor& w, bool inner_last) {
        std::vector<double> x(5, 0), y(5, 0);
        for (int64_t d = 0; d < 5; ++d) {
          for (int64_t f = 0; f < 4; ++f) {
            x[static_cast<size_t>(d)] += (inner_last ? w[a][d][f] : w[a][f][d]).item<double>();
            y[static_cast<size_t>(d)] += (inner_last ? w[b][d][f] : w[b][f][d]).item<double>();
          }
        }
        double xx = 0, yy = 0, xy = 0;
        for (size_t d = 0; d < 5; ++d) xx += x[d] * x[d], yy += y[d] * y[d], xy += x[d] * y[d];
        return xy / std::sqrt(xx * yy);
      };
      sum = product(w1, false) + product(w2, true) + product(w3, false);
      EXPECT_NEAR(got[a][b].item<double>(), sum, 1e-5);
    }
  }
  const MeanSimilarity mean = mean_similarity(got);
  EXPECT_NEAR(mean.all, got.mean().item<double>(), 1e-12);
  EXPECT_NEAR(mean.others, (got.sum() - 9).item<double>() / 6, 1e-9);
}

TEST(ExpertSimilarity, IsTheNumberOfMatricesForEqualExperts) {
  const Tensor one = at::randn({1, 4, 5}).expand({3, 4, 5});
  const MeanSimilarity mean = mean_similarity(expert_similarity(one, one.transpose(1, 2), {}));
  EXPECT_NEAR(mean.all, 2, 1e-6);
  EXPECT_NEAR(mean.others, 2, 1e-6);
  Tensor apart = at::zeros({2, 1, 2});
  apart[0][0][0] = apart[1][0][1] = 3;
  EXPECT_NEAR(mean_similarity(expert_similarity(apart, {}, {})).others, 0, 1e-12);
}

class Analyze : public ::testing::TestWithParam<std::tuple<Family, bool>> {
 protected:
  Analyze() {
    set_log_level(Level::kQuiet);
    rmoe::testing::write_text_data(dir_.path() / "data", 1600);
    train(config(), dir_.path() / "run", Resume::kNever);
    run_ = (dir_.path() / "run").string();
  }
  bool recurrent() const { return std::get<1>(GetParam()); }
  RunConfig config() const {
    RunConfig config = tiny_config(std::get<0>(GetParam()), recurrent());
    config.data.path = (dir_.path() / "data").string();
    config.model.vocab_size = 0;
    config.train.steps = 4;
    config.train.log_every = 2;
    config.train.gradient_sources_every = 2;
    config.train.eval.tokens = 50;
    config.train.checkpoint.every = 2;
    config.train.sample.length = 0;
    return config;
  }
  Json analyzed(const AnalyzeCommand& command) const { return analyze(command).at("runs").at(0); }
  static double norm(const std::vector<Tensor>& gradients) {
    double squares = 0;
    for (const Tensor& g : gradients) squares += g.defined() ? g.to(at::kDouble).square().sum().item<double>() : 0;
    return std::sqrt(squares);
  }
  TempDir dir_;
  std::string run_;
};

TEST_P(Analyze, AgreesWithEvaluationAndWithItsOwnTrace) {
  const std::string trace = (dir_.path() / "t.npy").string();
  const EvalReport report =
      run_eval({.run = run_, .threads = 1, .trace = {.file = trace, .fields = io::TraceFields::parse("tokens,probs")}});
  const Json from_text = analyzed({.runs = {run_}, .threads = 1});
  EXPECT_NEAR(from_text.at("bits_per_character").get<double>(), *report.bits_per_character, 1e-9);
  EXPECT_NEAR(from_text.at("gate_entropy").at("mean").get<double>(), *report.gate_entropy, 1e-5);
  EXPECT_NEAR(from_text.at("selection").at("imbalance").get<double>(), *report.load_imbalance, 1e-9);
  const Json from_trace = analyzed({.runs = {run_}, .traces = {trace}, .threads = 1});
  const Json alone = analyzed({.runs = {trace}, .threads = 1});
  for (const char* key : {"mutual_information", "gate_entropy", "balance", "selection", "paths"}) {
    EXPECT_EQ(from_text.at(key), from_trace.at(key)) << key;
    EXPECT_EQ(from_text.at(key), alone.at(key)) << key;
  }
  EXPECT_EQ(from_text.at("token_kinds"), from_trace.at("token_kinds"));
  EXPECT_TRUE(alone.at("token_kinds").is_null());
  EXPECT_TRUE(alone.at("router_weights").is_null());
}

TEST_P(Analyze, RouterWeightsAndSimilarityAreThoseOfTheCheckpoint) {
  const Json result = analyzed({.runs = {run_}, .tokens = 20, .threads = 1});
  const LoadedRun run = load_run(run_);
  const char* name = recurrent() ? "weight2" : "gate.weight";
  for (const Param& p : run.params.all()) {
    if (!p.name.ends_with(str("block_sparse_moe.", name))) continue;
    const int64_t layer = moe_layer_of(run.config.model, p.name);
    const Json& got = result.at("router_weights").at("layers").at(static_cast<size_t>(layer));
    const Tensor w = p.value.detach().to(at::kDouble);
    EXPECT_NEAR(got.at("norm").get<double>(), std::sqrt(w.square().sum().item<double>()), 1e-9);
    EXPECT_NEAR(got.at("deviation").get<double>(), std::sqrt(w.var().item<double>()), 1e-9);
  }
  const Json& similarity = result.at("expert_similarity");
  ASSERT_EQ(similarity.at("checkpoints").size(), 2U);  // of the steps 2 and 4
  EXPECT_EQ(similarity.at("checkpoints").at(0).at("step"), 2);
  EXPECT_EQ(similarity.at("matrices"), std::get<0>(GetParam()) == Family::kSpan ? 2 : 3);
  const Json earlier = analyzed({.runs = {run_}, .checkpoint = "2", .tokens = 20, .threads = 1});
  const auto at_two = [](const Json& r) {
    return r.at("expert_similarity").at("checkpoints").at(0).at("layers").get<std::vector<double>>();
  };
  ASSERT_EQ(at_two(result).size(), at_two(earlier).size());
  for (size_t l = 0; l < at_two(result).size(); ++l) EXPECT_NEAR(at_two(result)[l], at_two(earlier)[l], 1e-9);
}

// One backward pass for each loss, on the same tokens.
TEST_P(Analyze, GradientsEqualSeparateBackwardPasses) {
  const Json result = analyzed({.runs = {run_}, .tokens = 20, .gradient_batches = 1, .threads = 1});
  LoadedRun run = load_run(run_);
  const auto tokens = data::TokenFile::open(dir_.path() / "data" / "valid.tok");
  const int64_t block = run.config.train.block, rows = run.config.train.batch;
  Tensor ids = at::empty({rows * block + 1}, at::kLong);
  tokens.read(0, rows * block + 1, ids.mutable_data_ptr<int64_t>());
  const Tensor inputs = ids.narrow(0, 0, rows * block).view({rows, block}).contiguous();
  const auto backward = [&](int which) {
    for (Param& p : run.params.all()) p.value.mutable_grad() = Tensor();
    const auto forward = run.model->forward(inputs, {}, {.training = true, .hidden_only = true});
    const Linear head = run.model->head();
    const Tensor lm =
        linear_cross_entropy(forward.hidden_TD, head.weight_OI, head.bias_O, ids.narrow(0, 1, rows * block)).loss;
    const Tensor balance = run.model->routing().loss(forward.trace);
    (which == 0 ? lm + balance : which == 1 ? lm : balance).backward();
    std::vector<Tensor> gradients;
    for (const Param& p : run.params.all()) {
      if (!p.is_buffer() && belongs_to_routing(p)) gradients.push_back(p.value.grad());
    }
    return norm(gradients);
  };
  const Json& g = result.at("gradients");
  EXPECT_NEAR(g.at("whole").get<double>(), backward(0), 1e-4 * backward(0));
  EXPECT_NEAR(g.at("lm").get<double>(), backward(1), 1e-4 * backward(1));
  EXPECT_NEAR(g.at("balance").get<double>(), backward(2), 1e-4 * backward(2));
  EXPECT_EQ(g.at("drop_ratio"), 0.0);
  ASSERT_EQ(g.at("training").size(), 2U);
  EXPECT_EQ(g.at("training").at(1).at("step"), 4);
}

TEST_P(Analyze, StateGradientIsCutBetweenLayers) {
  const Json result = analyzed({.runs = {run_}, .tokens = 20, .gradient_batches = 1, .threads = 1});
  if (!recurrent()) {
    EXPECT_TRUE(result.at("state_gradient").is_null());
    return;
  }
  const auto whole = result.at("state_gradient").at("layers").get<std::vector<double>>();
  const auto cut = result.at("state_gradient").at("cut").get<std::vector<double>>();
  ASSERT_EQ(whole.size(), 2U);
  EXPECT_NEAR(whole[1], cut[1], 1e-5 * cut[1]);  // nothing comes after the last layer
  EXPECT_GT(std::abs(whole[0] - cut[0]), 1e-3 * cut[0]);

  // Cut, a state acts through its own gate alone: d loss / d h = (d loss / d logits) W.
  LoadedRun run = load_run(run_);
  const auto tokens = data::TokenFile::open(dir_.path() / "data" / "valid.tok");
  const int64_t block = run.config.train.block, rows = run.config.train.batch;
  Tensor ids = at::empty({rows * block + 1}, at::kLong);
  tokens.read(0, rows * block + 1, ids.mutable_data_ptr<int64_t>());
  const auto forward = run.model->forward(ids.narrow(0, 0, rows * block).view({rows, block}).contiguous(), {},
                                          {.training = true, .hidden_only = true, .cut_state = true});
  const Linear head = run.model->head();
  for (const auto& r : forward.trace) r.weights_TK.retain_grad();
  linear_cross_entropy(forward.hidden_TD, head.weight_OI, head.bias_O, ids.narrow(0, 1, rows * block)).loss.backward();
  for (const Param& p : run.params.all()) {
    const int64_t layer = moe_layer_of(run.config.model, p.name);
    if (!p.name.ends_with("weight2") || layer < 0) continue;
    const auto& r = forward.trace[static_cast<size_t>(layer)];
    // Through softmax over the chosen: d logits_k = w_k (g_k - sum_j w_j g_j).
    const Tensor w = r.weights_TK.detach(), g = r.weights_TK.grad();
    const Tensor logits_TK = w * (g - (w * g).sum(1, true));
    const Tensor logits_TN = at::zeros_like(r.probs_TN).scatter(1, r.ids_TK, logits_TK);
    const double expected = at::norm(logits_TN.mm(p.value.detach())).item<double>();
    EXPECT_NEAR(cut[static_cast<size_t>(layer)], expected, 1e-4 * expected);
  }
}

TEST_P(Analyze, MeasuringGradientsChangesNoTraining) {
  RunConfig plain = config();
  plain.train.gradient_sources_every = 0;
  train(plain, dir_.path() / "plain", Resume::kNever);
  const auto with = io::read_metrics(dir_.path() / "run" / "metrics.jsonl");
  const auto without = io::read_metrics(dir_.path() / "plain" / "metrics.jsonl");
  ASSERT_EQ(with.size(), without.size());
  for (size_t i = 0; i < with.size(); ++i) EXPECT_EQ(with[i].at("loss"), without[i].at("loss"));
  for (const Json& line : without) {
    if (line.at("kind") != "train") continue;
    EXPECT_TRUE(line.at("router_grad_norm").is_null());
  }
}

TEST_P(Analyze, LiveGradientsAddUpOverMicroBatchesAndScaleWithTheWeight) {
  const auto first_step = [&](double weight, int64_t accumulate) {
    RunConfig c = config();
    c.train.gradient_sources_every = 1;
    c.train.accumulate = accumulate;
    c.model.moe.balance[0].weight = weight;
    Trainer trainer(
        [&] {
          c.model.vocab_size = 256;
          return c;
        }(),
        data::TokenFile::open(dir_.path() / "data" / "train.tok"));
    return trainer.step();
  };
  const StepSums one = first_step(0.01, 1), two = first_step(0.02, 1), none = first_step(0, 1);
  EXPECT_NEAR(two.gradients.balance / one.gradients.balance, 2, 1e-3);
  EXPECT_NEAR(one.gradients.lm, none.gradients.whole, 1e-3 * none.gradients.whole);
  EXPECT_EQ(none.gradients.balance, 0);
  EXPECT_NEAR(none.gradients.lm, none.gradients.whole, 1e-9);
  EXPECT_NEAR(first_step(0, 2).gradients.lm, none.gradients.lm, 1e-3 * none.gradients.lm);
}

TEST_P(Analyze, ATraceOfAnotherModelIsRefused) {
  const std::string trace = (dir_.path() / "t.npy").string();
  run_eval({.run = run_, .tokens = 30, .threads = 1, .trace = {.file = trace}});
  RunConfig other = config();
  other.model.moe.top_k = 1;
  train(other, dir_.path() / "other", Resume::kNever);
  try {
    analyze({.runs = {(dir_.path() / "other").string()}, .traces = {trace}, .threads = 1});
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::kBadInput);
    EXPECT_NE(error.message().find("another model"), std::string::npos);
  }
  // Without scores in the trace, what reads them is not there.
  EXPECT_TRUE(analyzed({.runs = {trace}, .threads = 1}).at("mutual_information").is_null());
}

INSTANTIATE_TEST_SUITE_P(All, Analyze,
                         ::testing::Combine(::testing::Values(Family::kSpan, Family::kLlama), ::testing::Bool()),
                         [](const auto& param_info) {
                           return rmoe::testing::tiny_name(std::get<0>(param_info.param),
                                                           std::get<1>(param_info.param));
                         });

}  // namespace
}  // namespace rmoe::analysis
