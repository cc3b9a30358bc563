// Everything works on a device whose memory the host cannot touch, gives what the CPU gives, and a training step never
// waits for the device.
#include <filesystem>

#include <gtest/gtest.h>

#include "rmoe/analysis/analyze.h"
#include "rmoe/base/error.h"
#include "rmoe/eval/commands.h"
#include "rmoe/eval/generate.h"
#include "rmoe/ops/device.h"
#include "rmoe/ops/dropout.h"
#include "rmoe/ops/gate.h"
#include "rmoe/ops/tensor_file.h"
#include "rmoe/train/plan.h"
#include "rmoe/train/run.h"
#include "rmoe/train/trainer.h"
#include "tests/device/modes.h"
#include "tests/support/temp_dir.h"
#include "tests/support/text_data.h"
#include "tests/support/tiny.h"

namespace rmoe {
namespace {

namespace fs = std::filesystem;
using testing::Mode;
using testing::test_device;
using testing::tiny_config;

at::Device far_device() { return device_named(test_device()); }

class FarDevice : public testing::OnFarDevice {};

TEST_F(FarDevice, TheHostCannotTouchItsMemory) {
  if (!testing::is_far()) GTEST_SKIP() << "of the far device";
  const Tensor x = at::ones({3}, far_device());
  EXPECT_DEATH(std::exit(static_cast<const volatile float*>(x.const_data_ptr())[0] > 0 ? 0 : 0), "");
  testing::take_waits();
  EXPECT_EQ((x + 1).sum().item<float>(), 6);
  EXPECT_EQ(testing::take_waits(), 1);
}

TEST_F(FarDevice, ItsMemoryIsCountedAndPlanned) {
  const at::Device device = far_device();
  constexpr int64_t kBytes = 4 << 20;
  const int64_t before = tensor_bytes(device);
  const Tensor x = at::empty({kBytes / 4}, at::TensorOptions(device).dtype(at::kFloat));
  EXPECT_EQ(tensor_bytes(device) - before, kBytes);
  EXPECT_GE(memory_peak_bytes(device), before + kBytes);
  RunConfig config = tiny_config(Family::kSpan, true);
  config.train.device = test_device();
  const TrainPlan plan = plan_training(config);
  EXPECT_GT(plan.activation_bytes, 0);
  EXPECT_GT(plan.peak_bytes,
            plan.parameter_bytes + plan.gradient_bytes + plan.optimizer_bytes + *plan.activation_bytes);
  EXPECT_GE(plan.machine_bytes, *plan.peak_bytes);
}

TEST(DeviceNames, AreCheckedWithAHint) {
  EXPECT_TRUE(device_named("cpu").is_cpu());
  for (const char* name : {"", "gpu", "cuda:", "cuda:x", "meta", "cpu,cuda", "far:1"}) {
    try {
      device_named(name);
      ADD_FAILURE() << name;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Exit::kBadInput);
      EXPECT_NE(std::string(e.what()).find(str("device '", name, "'")), std::string::npos) << e.what();
    }
  }
}

TEST(DeviceNames, Tf32IsForCuda) {
  RunConfig config = tiny_config(Family::kLlama, false);
  config.train.dtype = Precision::kTf32;
  EXPECT_THROW(Trainer{config}, Error);
}

TEST_F(FarDevice, DropoutDrawsTheSameMask) {
  for (const Mode mode : {Mode::kFormulas, Mode::kKernels}) {
    const testing::ModeScope scope(mode);
    for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
      const Tensor x = at::randn({37, 29}, at::kDouble).to(dtype);
      for (const int64_t first : {int64_t{0}, int64_t{12345}, (int64_t{1} << 32) - 500}) {
        Tensor ours = x.clone(), there = x.to(far_device());
        dropout_(ours, 0.3, DropoutKey{0xfedcba9876543210u}, first);
        dropout_(there, 0.3, DropoutKey{0xfedcba9876543210u}, first);
        EXPECT_TRUE(at::equal(there.cpu(), ours)) << dtype << " " << first;
      }
    }
  }
}

struct Case {
  const char* name;
  Family family;
  std::vector<std::string> flags;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

RunConfig config_of(const Case& c, const char* device) {
  RunConfig config = tiny_config(c.family, false);
  bind(config, parse_flags(c.flags));
  config.train.device = device;
  config.train.schedule.warmup = 1;
  config.train.optimizer.lr = 1e-2;
  return config;
}

const Case kCases[] = {
    {"span_smoe", Family::kSpan, {}},
    {"span_gru_dropout", Family::kSpan, {"--model.moe.stage={kind = \"gru\", width = 8}", "--model.dropout=0.2"}},
    {"span_lstm_micro", Family::kSpan, {"--model.moe.stage={kind = \"lstm\", width = 8}", "--train.accumulate=2"}},
    {"span_recompute", Family::kSpan, {"--train.recompute=layer"}},
    {"llama_smoe", Family::kLlama, {}},
    {"llama_gru", Family::kLlama, {"--model.moe.stage={kind = \"gru\", width = 8}"}},
    {"llama_rnn_bf16",
     Family::kLlama,
     {"--model.moe.stage={kind = \"rnn\", width = 8}", "--model.moe.expert_width=16", "--train.dtype=bf16"}},
    {"llama_state_gate",
     Family::kLlama,
     {"--model.moe.stage={kind = \"gru\", width = 8}", "--model.moe.state_gate=true"}},
    {"llama_capacity", Family::kLlama, {"--model.moe.capacity=1.1"}},
    {"llama_wide", Family::kLlama, {"--model.width=32", "--model.moe.expert_width=24"}},  // grouped products
    {"llama_dense", Family::kLlama, {"--model.dense_layers=3"}},
};

class EveryModel : public FarDevice, public ::testing::WithParamInterface<std::tuple<Case, Mode>> {
 protected:
  const Case case_ = std::get<0>(GetParam());
  const testing::ModeScope mode_{std::get<1>(GetParam())};
};

TEST_P(EveryModel, TrainsAsOnTheCpu) {
  const double tolerance = case_.name == std::string("llama_rnn_bf16") ? 2e-2 : 2e-4;
  Trainer here(config_of(case_, "cpu")), there(config_of(case_, test_device()));
  EXPECT_EQ(there.model().device(), far_device());
  for (int step = 0; step < 4; ++step) {
    const StepSums a = here.step(), b = there.step();
    EXPECT_NEAR(b.loss, a.loss, tolerance) << step;
    EXPECT_NEAR(b.balance, a.balance, tolerance) << step;
    EXPECT_NEAR(b.gradient_norm, a.gradient_norm, tolerance * std::max(1.0, a.gradient_norm)) << step;
    EXPECT_EQ(b.steps, 1);
    EXPECT_EQ(b.routing.tokens, a.routing.tokens);
    EXPECT_EQ(b.routing.dropped, a.routing.dropped);
  }
}

TEST_P(EveryModel, AStepNeverWaitsForTheDevice) {
  if (!testing::is_far()) GTEST_SKIP() << "the far device counts";
  Trainer trainer(config_of(case_, test_device()));
  for (int step = 0; step < 2; ++step) trainer.step();
  testing::take_waits();
  for (int step = 0; step < 3; ++step) trainer.advance();
  const auto waits = testing::take_waiting_ops();
  EXPECT_TRUE(waits.empty()) << ::testing::PrintToString(waits);
  EXPECT_EQ(trainer.take_sums().steps, 3);
  EXPECT_GT(testing::take_waits(), 0);
}

std::string case_name(const ::testing::TestParamInfo<std::tuple<Case, Mode>>& tested) {
  const auto& [c, mode] = tested.param;
  return std::string(c.name) + (mode == Mode::kFormulas ? "_by_formulas" : "_by_kernels");
}

INSTANTIATE_TEST_SUITE_P(All, EveryModel,
                         ::testing::Combine(::testing::ValuesIn(kCases),
                                            ::testing::Values(Mode::kFormulas, Mode::kKernels)),
                         case_name);

TEST_F(FarDevice, WhatIsNotFiniteChangesNoWeightAndIsSaidWithItsStep) {
  Trainer trainer(config_of(kCases[4], test_device()));
  trainer.step();
  const Tensor weight = trainer.params().all()[0].value;
  const Tensor good = weight.detach().cpu();
  {
    const at::NoGradGuard no_grad;
    const_cast<Param&>(trainer.params().all().back()).value.fill_(std::numeric_limits<float>::quiet_NaN());
  }
  for (int step = 0; step < 3; ++step) trainer.advance();
  try {
    trainer.take_sums();
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::kDiverged);
    EXPECT_NE(std::string(e.what()).find("train: step 2: the loss is"), std::string::npos) << e.what();
  }
  EXPECT_TRUE(at::equal(weight.detach().cpu(), good));
}

TEST_F(FarDevice, ARunGoesOnOnAnotherDeviceAndIsReadOnAny) {
  const TempDir dir;
  testing::write_text_data(dir.path() / "data", 6000);
  for (const Family family : {Family::kSpan, Family::kLlama}) {
    RunConfig config = tiny_config(family, true);
    config.data.path = (dir.path() / "data").string();
    config.model.vocab_size = 0;
    config.train.steps = 4;
    config.train.log_every = 1;
    config.train.eval.tokens = 200;
    config.train.sample.length = 10;
    const std::string run = (dir.path() / enum_name(family)).string();
    config.train.device = test_device();
    train(config, run, Resume::kNever);
    config.train.steps = 6;
    config.train.device = "cpu";
    EXPECT_EQ(train(config, run, Resume::kMust).steps, 6);
    config.train.steps = 8;
    config.train.device = test_device();
    EXPECT_EQ(train(config, run, Resume::kMust).steps, 8);

    const auto traced = [&](const char* device) {
      const std::string file = (dir.path() / (std::string(device) + ".npy")).string();
      return EvalCommand{.run = run,
                         .tokens = 300,
                         .device = device,
                         .trace = {.file = file, .fields = {.tokens = true, .probs = true, .states = true}}};
    };
    const EvalReport here = run_eval(traced("cpu")), there = run_eval(traced(test_device()));
    EXPECT_NEAR(there.nats, here.nats, 1e-3);
    EXPECT_EQ(there.expert_fraction, here.expert_fraction);
    const auto text = [&](const char* device) {
      return run_generate({.run = run, .prompt = "a", .tokens = 12, .device = device},
                          [](std::string_view) { return true; })
          .text;
    };
    EXPECT_EQ(text(test_device()), text("cpu"));
    const auto analysis = [&](const char* device) {
      return analysis::analyze({.runs = {run}, .tokens = 300, .gradient_batches = 1, .device = device});
    };
    const Json a = analysis("cpu"), b = analysis(test_device());
    EXPECT_NEAR(b["runs"][0]["loss"].get<double>(), a["runs"][0]["loss"].get<double>(), 1e-4);
    EXPECT_NEAR(b["runs"][0]["gradients"]["whole"].get<double>(), a["runs"][0]["gradients"]["whole"].get<double>(),
                1e-3);
  }
}

}  // namespace
}  // namespace rmoe
