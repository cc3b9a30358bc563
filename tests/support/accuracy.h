// Whether a kernel is as accurate as the plain formula in the same dtype (flash-attention's criterion).
#pragma once

#include <string>

#include <gtest/gtest.h>

#include "rmoe/ops/torch.h"

namespace rmoe::testing {

// exact: the formula in fp64; plain: the formula in the kernel's dtype; ours: the kernel. Our largest error is at most
// twice the plain formula's, or within a few units in the last place of the largest value, where that is more. The
// largest of many errors is a matter of luck, of the plain formula's library too: four times is let pass where the root
// of the mean square is at most twice the plain formula's.
inline void expect_as_accurate(const std::string& what, const Tensor& ours, const Tensor& plain, const Tensor& exact) {
  ASSERT_EQ(ours.defined(), exact.defined()) << what;
  if (!exact.defined()) return;
  ASSERT_EQ(ours.sizes(), exact.sizes()) << what;
  if (exact.numel() == 0) return;
  const auto errors = [&](const Tensor& t) { return (t.to(at::kDouble) - exact).abs(); };
  const auto largest = [](const Tensor& e) { return e.max().item<double>(); };
  const auto rms = [](const Tensor& e) { return e.square().mean().sqrt().item<double>(); };
  const Tensor of_ours = errors(ours), of_plain = errors(plain);
  const double times = rms(of_ours) <= 2 * rms(of_plain) ? 4 : 2;
  const double unit = ours.scalar_type() == at::kBFloat16 ? 0x1p-8
                      : ours.scalar_type() == at::kFloat  ? 0x1p-21
                                                          : 0x1p-51;
  const double floor = unit * largest(exact.abs());
  EXPECT_LE(largest(of_ours), std::max(times * largest(of_plain), floor))
      << what << ", plain formula: " << largest(of_plain) << ", roots of the mean squares: " << rms(of_ours) << " and "
      << rms(of_plain);
  EXPECT_FALSE(ours.isnan().any().item<bool>()) << what;
}

}  // namespace rmoe::testing
