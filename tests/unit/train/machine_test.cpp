#include "rmoe/train/machine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>

#include <gtest/gtest.h>

#include "rmoe/kernels/cpu/peak.h"
#include "rmoe/ops/torch.h"

namespace rmoe {
namespace {

template <class Work>
double fastest_of_five(const Work& work) {
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

TEST(PeakLoop, DoesTheWorkItCounts) {
  for (const kernels::PeakLoop loop : {kernels::fp32_peak_loop(), kernels::bf16_peak_loop()}) {
    if (!loop.run) continue;
    EXPECT_DOUBLE_EQ(loop.run(2000), 2 * loop.run(1000)) << loop.name;
    const double one = fastest_of_five([&] { loop.run(50000); }), eight = fastest_of_five([&] { loop.run(400000); });
    EXPECT_GT(eight, 4 * one) << loop.name << ": the compiler removed the loop";
    // In each of 6.5e9 cycles a second no core does more than two 64-lane bf16 or two 16-lane fp32 multiply-adds, or a
    // 16th of a product of tiles.
    const double most = loop.name == std::string("amx") ? 2.0 * 16 * 16 * 32 / 16 : 2 * 64;
    EXPECT_LT(loop.run(400000) / eight, most * 6.5e9) << loop.name;
  }
}

TEST(MeasuredPeak, IsMeasuredOnceAndNotBelowAPlainMatrixProduct) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  for (const Precision precision : {Precision::kFp32, Precision::kBf16}) {
    const double peak = measured_peak_flops(precision);
    EXPECT_TRUE(std::isfinite(peak));
    EXPECT_EQ(measured_peak_flops(precision), peak);
    const Tensor a = at::ones({256, 256}, precision == Precision::kBf16 ? at::kBFloat16 : at::kFloat);
    const double seconds = fastest_of_five([&] { at::mm(a, a); });
    // Twice: other work on the machine may have slowed the measurement, or this.
    EXPECT_GT(2 * peak, 2.0 * 256 * 256 * 256 / seconds);
  }
  at::set_num_threads(threads);
}

TEST(MeasuredPeak, IsKeptPerNumberOfThreads) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const double one = measured_peak_flops(Precision::kFp32);
  at::set_num_threads(2);
  const double two = measured_peak_flops(Precision::kFp32);
  EXPECT_NE(one, two);
  at::set_num_threads(threads);
}

}  // namespace
}  // namespace rmoe
