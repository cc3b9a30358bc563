// `rmoe bench` as functions: what is counted, the line protocol, what is refused.
#include <sstream>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/bench/op.h"
#include "rmoe/bench/workload.h"
#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/models/size.h"
#include "support/tiny.h"

namespace rmoe::bench {
namespace {

WorkloadCommand tiny(WorkloadKind kind, Family family, bool recurrent) {
  WorkloadCommand command;
  command.kind = kind;
  command.config = testing::tiny_config(family, recurrent);
  command.options = {.threads = 1, .rounds = 1, .quick = true};
  return command;
}

TEST(Workload, SizesAreThoseOfTheModel) {
  for (const bool recurrent : {false, true}) {
    const RunConfig c = testing::tiny_config(Family::kLlama, recurrent);
    const ModelSize size = model_size(c.model, c.train.block);
    const double T = static_cast<double>(c.train.batch * c.train.block);
    const WorkloadSize step = workload_size(WorkloadKind::kStep, c);
    EXPECT_EQ(step.params, size.params);
    EXPECT_EQ(step.tokens, T);
    EXPECT_DOUBLE_EQ(step.flops, 3 * T * size.forward_flops);
    // Of the last position of each text only is asked for logits.
    const double head = 2 * static_cast<double>(c.model.width * c.model.vocab_size);
    EXPECT_DOUBLE_EQ(workload_size(WorkloadKind::kPrompt, c).flops,
                     T * size.forward_flops - (T - static_cast<double>(c.train.batch)) * head);
  }
}

TEST(Workload, ALayersWorkIsThatOfItsMatrices) {
  RunConfig c = testing::tiny_config(Family::kLlama, false);
  const auto D = static_cast<double>(c.model.width), F = static_cast<double>(c.model.moe.expert_width);
  const auto K = static_cast<double>(c.model.moe.top_k), N = static_cast<double>(c.model.moe.experts);
  const double T = static_cast<double>(c.train.batch * c.train.block);
  EXPECT_NEAR(workload_size(WorkloadKind::kLayer, c).flops, 3 * T * 2 * (3 * K * D * F + D * N), 1e-6);
  bind(c, parse_flags({"--model.moe.stage={kind = \"gru\", width = 8}"}));
  const double P = 8;  // the head reads the state; then the projection and the cell's two matrices
  EXPECT_NEAR(workload_size(WorkloadKind::kLayer, c).flops, 3 * T * 2 * (3 * K * D * F + P * N + D * P + 6 * P * P),
              1e-6);
}

TEST(Workload, DecodingReadsTheWeightsThatATokenUses) {
  RunConfig c = testing::tiny_config(Family::kLlama, false);
  c.train.dtype = Precision::kFp32;
  const WorkloadSize fp32 = workload_size(WorkloadKind::kDecode, c);
  c.train.dtype = Precision::kBf16;
  const WorkloadSize bf16 = workload_size(WorkloadKind::kDecode, c);
  EXPECT_GT(fp32.bytes, bf16.bytes);
  EXPECT_LT(fp32.bytes, 2 * bf16.bytes);  // the routers' stay fp32
  EXPECT_EQ(fp32.tokens, bf16.tokens);
}

class Serve : public ::testing::TestWithParam<std::tuple<WorkloadKind, Family, bool>> {};

TEST_P(Serve, AnswersEveryLine) {
  const auto [kind, family, recurrent] = GetParam();
  const WorkloadCommand command = tiny(kind, family, recurrent);
  std::istringstream in("round\nround\n");
  std::ostringstream out;
  serve(command, in, out);
  std::istringstream lines(out.str());
  std::string line;
  ASSERT_TRUE(std::getline(lines, line));
  const Json ready = parse_json(line, "ready");
  EXPECT_TRUE(ready.at("ready").get<bool>());
  EXPECT_EQ(ready.at("workload"), workload_name(kind));
  EXPECT_EQ(ready.at("isa"), kernels::isa_name(kernels::cpu_isa()));
  EXPECT_EQ(ready.at("threads"), 1);
  EXPECT_GT(ready.at("peak_memory_bytes").get<int64_t>(), 0);
  EXPECT_GE(ready.at("warmup_s").get<double>(), ready.at("setup_s").get<double>() + ready.at("first_s").get<double>());
  int64_t rounds = 0;
  for (; std::getline(lines, line); ++rounds) {
    const Json round = parse_json(line, "round");
    EXPECT_GT(round.at("best_s").get<double>(), 0);
    EXPECT_LE(round.at("best_s").get<double>(), round.at("median_s").get<double>());
    EXPECT_GT(round.at("tokens_per_s").get<double>(), 0);
    EXPECT_GE(round.at("page_faults").get<double>(), 0);
  }
  EXPECT_EQ(rounds, 2);
}

INSTANTIATE_TEST_SUITE_P(, Serve,
                         ::testing::Combine(::testing::Values(WorkloadKind::kLayer, WorkloadKind::kStep,
                                                              WorkloadKind::kDecode, WorkloadKind::kPrompt,
                                                              WorkloadKind::kEval),
                                            ::testing::Values(Family::kSpan, Family::kLlama), ::testing::Bool()),
                         [](const auto& test) {
                           return workload_name(std::get<0>(test.param)) + "_" +
                                  testing::tiny_name(std::get<1>(test.param), std::get<2>(test.param));
                         });

TEST(Workload, EvaluatesWithEveryTrace) {
  for (const bool stage : {false, true}) {
    const RunConfig config = resolved(testing::tiny_config(Family::kSpan, stage));
    for (const Tracing trace : {Tracing::kOff, Tracing::kChoices, Tracing::kAll}) {
      EXPECT_GT(make_workload(WorkloadKind::kEval, config, trace)->run(), 0) << stage;
    }
  }
}

TEST(BenchOps, EveryOpHasCasesAndAFloor) {
  for (const auto& [name, op] : ops()) {
    EXPECT_GT(op.floor, 0) << name;
    ASSERT_FALSE(op.cases.empty()) << name;
    EXPECT_FALSE(op.dtypes.empty()) << name;
  }
}

TEST(BenchOps, UnknownNamesAreRefused) {
  OpCommand command;
  command.op = "liner";
  try {
    bench_op(command);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::kBadInput);
    EXPECT_EQ(error.help(), "did you mean 'linear'?");
  }
  command.op = "linear";
  command.filter = "no such case";
  EXPECT_THROW(bench_op(command), Error);
}

}  // namespace
}  // namespace rmoe::bench
