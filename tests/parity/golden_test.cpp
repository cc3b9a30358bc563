// Both model families with both routers against the independent PyTorch script of tests/golden: logits, losses, every
// gradient, and the losses of ten optimizer steps.
#include "tests/support/golden.h"

#include <gtest/gtest.h>

#include "rmoe/train/optimizer.h"

namespace rmoe {
namespace {

using testing::Golden;
using testing::GoldenModel;

struct Case {
  const char* file;
  at::ScalarType dtype;
  double tolerance;
};

class GoldenParity : public ::testing::TestWithParam<Case> {};
class GoldenBlocks : public ::testing::TestWithParam<Case> {};
class GoldenTraining : public ::testing::TestWithParam<Case> {};

void expect_close(const Tensor& got, const Tensor& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(got.sizes(), expected.sizes()) << what;
  const double error = (got.detach().to(at::kDouble) - expected).abs().max().item<double>();
  const double scale = std::max(expected.abs().max().item<double>(), 1e-3);
  EXPECT_LE(error, tolerance * scale) << what;
}

struct Step {
  ForwardResult result;
  Tensor loss, balance;
};

Step run(const Golden& golden, const GoldenModel& m, int64_t index, Memory memory, at::ScalarType dtype) {
  const Tensor tokens = golden["tokens"][index];
  const int64_t length = tokens.size(1) - 1;
  const bool span = golden.config.family == Family::kSpan;
  Step step;
  step.result = m.model->forward(tokens.narrow(1, 0, length).contiguous(), std::move(memory),
                                 {.dtype = dtype, .remember = span ? Remember::kHidden : Remember::kNothing});
  step.loss = at::cross_entropy_loss(step.result.logits_TV, tokens.narrow(1, 1, length).flatten());
  step.balance = m.model->routing().loss(step.result.trace);
  return step;
}

void expect_gradients(const Golden& golden, GoldenModel& m, const std::string& prefix, double tolerance) {
  int64_t compared = 0;
  for (Param& param : m.table.all()) {
    const Tensor grad = param.value.grad();
    Param view = param;
    view.value = grad;
    for (const auto& [name, part] : view.stored()) {
      const auto expected = golden.tensors.find(prefix + name);
      ASSERT_EQ(expected != golden.tensors.end(), grad.defined()) << name;
      if (!grad.defined()) continue;
      expect_close(part, expected->second, tolerance, prefix + name);
      ++compared;
    }
  }
  const auto stored = std::count_if(golden.tensors.begin(), golden.tensors.end(),
                                    [&](const auto& entry) { return entry.first.starts_with(prefix); });
  EXPECT_EQ(compared, stored);
}

TEST_P(GoldenParity, LogitsLossRoutingAndGradients) {
  const auto [file, dtype, tolerance] = GetParam();
  const Golden golden = testing::load_golden(file);
  GoldenModel m(golden, dtype);
  Step step = run(golden, m, 0, {}, dtype);
  expect_close(step.result.logits_TV.view(golden["logits"].sizes()), golden["logits"], tolerance, "logits");
  expect_close(step.loss, golden["loss"], tolerance, "loss");
  expect_close(step.balance, golden["balance"] * 0.01, tolerance, "balance");
  int64_t moe_layer = 0;
  for (int64_t layer = 0; layer < golden.config.layers; ++layer) {
    if (!golden.config.is_moe(layer)) continue;
    const routing::Routing& routing = step.result.trace[moe_layer++];
    EXPECT_TRUE(routing.ids_TK.equal(golden["ids." + std::to_string(layer)])) << "layer " << layer;
    expect_close(routing.weights_TK, golden["weights." + std::to_string(layer)], tolerance, "weights");
  }
  (step.loss + step.balance).backward();
  expect_gradients(golden, m, "grad.", 4 * tolerance);
}

TEST_P(GoldenBlocks, SecondBlockSeesTheCacheOfTheFirst) {
  const auto [file, dtype, tolerance] = GetParam();
  const Golden golden = testing::load_golden(file);
  GoldenModel m(golden, dtype);
  Step first = run(golden, m, 0, {}, dtype);
  Step second = run(golden, m, 1, std::move(first.result.memory), dtype);
  expect_close(second.result.logits_TV.view(golden["logits1"].sizes()), golden["logits1"], tolerance, "logits1");
  (second.loss + second.balance).backward();
  expect_gradients(golden, m, "grad1.", 4 * tolerance);
}

TEST_P(GoldenTraining, TenStepsOfTraining) {
  const auto [file, dtype, tolerance] = GetParam();
  const Golden golden = testing::load_golden(file);
  GoldenModel m(golden, dtype);
  const bool span = golden.config.family == Family::kSpan;
  OptimizerConfig config{.kind = span ? OptimizerKind::kAdam : OptimizerKind::kAdamW, .lr = 1e-3};
  config.beta2 = span ? 0.999 : 0.95;
  config.weight_decay = span ? 0 : 0.1;
  config.clip = span ? 0 : 1;
  Optimizer optimizer(m.table, config);
  Memory memory;
  for (int64_t i = 0; i < 10; ++i) {
    Step step = run(golden, m, i, std::move(memory), dtype);
    EXPECT_NEAR(step.loss.item<double>(), golden["losses"][i].item<double>(), 1e-8) << "step " << i;
    (step.loss + step.balance).backward();
    const Tensor norm = optimizer.gradient_norm();
    EXPECT_NEAR(norm.item<double>(), golden["grad_norms"][i].item<double>(), 1e-7) << "step " << i;
    optimizer.step(config.lr, norm);
    optimizer.zero_gradients();
    if (span) memory = std::move(step.result.memory);
  }
}

std::string case_name(const ::testing::TestParamInfo<Case>& param_info) {
  return std::string(param_info.param.file) + (param_info.param.dtype == at::kDouble ? "_fp64" : "_fp32");
}

constexpr double kExact = 1e-11, kSingle = 1e-5;
INSTANTIATE_TEST_SUITE_P(
    All, GoldenParity,
    ::testing::Values(Case{"span_smoe", at::kDouble, kExact}, Case{"span_rmoe", at::kDouble, kExact},
                      Case{"llama_smoe", at::kDouble, kExact}, Case{"llama_rmoe", at::kDouble, kExact},
                      Case{"span_smoe", at::kFloat, kSingle}, Case{"span_rmoe", at::kFloat, kSingle},
                      Case{"llama_smoe", at::kFloat, kSingle}, Case{"llama_rmoe", at::kFloat, kSingle}),
    case_name);
// Only the span family has a block cache.
INSTANTIATE_TEST_SUITE_P(All, GoldenBlocks,
                         ::testing::Values(Case{"span_smoe", at::kDouble, kExact},
                                           Case{"span_rmoe", at::kDouble, kExact},
                                           Case{"span_smoe", at::kFloat, kSingle},
                                           Case{"span_rmoe", at::kFloat, kSingle}),
                         case_name);
// In fp64 only: one routing flip moves later losses by more than fp32's error.
INSTANTIATE_TEST_SUITE_P(All, GoldenTraining,
                         ::testing::Values(Case{"span_smoe", at::kDouble, kExact},
                                           Case{"span_rmoe", at::kDouble, kExact},
                                           Case{"llama_smoe", at::kDouble, kExact},
                                           Case{"llama_rmoe", at::kDouble, kExact}),
                         case_name);

}  // namespace
}  // namespace rmoe
