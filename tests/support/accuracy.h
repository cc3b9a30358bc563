// Whether a kernel is as accurate as the plain formula in the same dtype (flash-attention's criterion).
#pragma once

#include <gtest/gtest.h>

#include "rmoe/ops/torch.h"

namespace rmoe::testing {

// exact: the formula in fp64; plain: the formula in the kernel's dtype; ours: the kernel. Our largest error is at most
// twice the plain formula's, or within a few units in the last place of the largest value, where that is more.
inline void expect_as_accurate(const char* what, const Tensor& ours, const Tensor& plain, const Tensor& exact) {
  ASSERT_EQ(ours.defined(), exact.defined()) << what;
  if (!exact.defined()) return;
  ASSERT_EQ(ours.sizes(), exact.sizes()) << what;
  if (exact.numel() == 0) return;
  const auto error = [&](const Tensor& t) { return (t.to(at::kDouble) - exact).abs().max().item<double>(); };
  const double unit = ours.scalar_type() == at::kBFloat16 ? 0x1p-8 : 0x1p-22;
  const double floor = unit * exact.abs().max().item<double>();
  EXPECT_LE(error(ours), std::max(2 * error(plain), floor)) << what << ", plain formula: " << error(plain);
  EXPECT_FALSE(ours.isnan().any().item<bool>()) << what;
}

}  // namespace rmoe::testing
