// A steady training step takes no fresh memory: what one step frees is there for the next.
#include <sys/resource.h>

#include <gtest/gtest.h>

#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/ops/runtime.h"
#include "rmoe/train/trainer.h"
#include "tests/support/tiny.h"

namespace rmoe {
namespace {

int64_t page_faults() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

class SteadyStep : public ::testing::TestWithParam<std::tuple<Family, Precision>> {};

TEST_P(SteadyStep, FaultsNoPage) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "AddressSanitizer's allocator keeps nothing";
#endif
  if (std::get<1>(GetParam()) == Precision::kBf16 && kernels::cpu_isa() < kernels::Isa::kAvx512Bf16) {
    GTEST_SKIP() << "products in bf16 are the library's, which takes memory of its own";
  }
  RunConfig config = testing::tiny_config(std::get<0>(GetParam()), /*recurrent=*/true);
  ModelConfig& m = config.model;
  m.vocab_size = 500;
  m.width = 64;
  m.dense_width = m.moe.expert_width = 96;
  m.span.span = 64;
  m.dropout = 0.1;
  config.train.block = 64;
  config.train.dtype = std::get<1>(GetParam());
  configure_runtime(config.train.threads);
  Trainer trainer(config);
  // Lists of the tensor library and the heap grow to their sizes in the first steps, small blocks find their places in
  // some more.
  int64_t faults = 0;
  int clean = 0;
  for (int stretch = 0; stretch < 60 && clean < 3; ++stretch) {
    const int64_t before = page_faults();
    for (int step = 0; step < 5; ++step) trainer.step();
    faults = page_faults() - before;
    clean = faults == 0 ? clean + 1 : 0;
  }
  EXPECT_EQ(clean, 3) << "the last five steps faulted " << faults << " pages";
}

INSTANTIATE_TEST_SUITE_P(, SteadyStep,
                         ::testing::Combine(::testing::Values(Family::kLlama, Family::kSpan),
                                            ::testing::Values(Precision::kFp32, Precision::kBf16)),
                         [](const auto& param) {
                           return std::string(enum_name(std::get<0>(param.param))) + "_" +
                                  enum_name(std::get<1>(param.param));
                         });

}  // namespace
}  // namespace rmoe
