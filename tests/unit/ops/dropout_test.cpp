#include "rmoe/ops/dropout.h"

#include "rmoe/base/error.h"
#include "tests/support/gradcheck.h"
#include "tests/support/isas.h"

namespace rmoe {
namespace {

TEST(Dropout, DropsTheShareItIsToldAndScalesTheRest) {
  for (const double p : {0.05, 0.1, 0.5, 0.9}) {
    const Tensor out = dropout(at::ones({1000, 1000}), p, DropoutKey{3});
    const double kept = (out != 0).to(at::kDouble).mean().item<double>();
    EXPECT_NEAR(kept, 1 - p, 5 * std::sqrt(p * (1 - p) / 1e6)) << p;
    EXPECT_FLOAT_EQ(out.max().item<float>(), static_cast<float>(1 / (1 - p)));
  }
}

TEST(Dropout, SameKeySameMaskForAnyThreadCountAndDtype) {
  const Tensor x = at::ones({70001});
  const auto drawn = [&] { return dropout(x, 0.3, DropoutKey{11}) != 0; };
  const Tensor mask = testing::with_threads(1, drawn);
  EXPECT_TRUE(testing::with_threads(3, drawn).equal(mask));
  EXPECT_TRUE((dropout(x.to(at::kBFloat16), 0.3, DropoutKey{11}) != 0).equal(mask));
  EXPECT_TRUE((dropout(x.to(at::kDouble), 0.3, DropoutKey{11}) != 0).equal(mask));
}

TEST(Dropout, DifferentKeysAndSitesAreIndependent) {
  const Tensor x = at::ones({1000000});
  const DropoutKey key{5};
  const Tensor a = dropout(x, 0.5, key) != 0;
  for (const DropoutKey other : {DropoutKey{6}, key.at(0), key.at(1), DropoutKey{5 | uint64_t{1} << 40}}) {
    const double agree = (a == (dropout(x, 0.5, other) != 0)).to(at::kDouble).mean().item<double>();
    EXPECT_NEAR(agree, 0.5, 0.003);
  }
}

TEST(Dropout, NeighboursAreUncorrelated) {
  const Tensor keep = (dropout(at::ones({1000000}), 0.5, DropoutKey{5}) != 0).to(at::kDouble) - 0.5;
  for (const int64_t lag : {1, 2, 16, 128, 4096}) {
    const double correlation =
        4 * (keep.narrow(0, 0, 1000000 - lag) * keep.narrow(0, lag, 1000000 - lag)).mean().item<double>();
    EXPECT_NEAR(correlation, 0, 0.006) << "lag " << lag;
  }
}

TEST(Dropout, ContinuesAnyRangeOfTheStreamIn64Bits) {
  Tensor whole = at::ones({2000});
  const int64_t first = (int64_t{1} << 32) - 1000;  // crosses the boundary of 32-bit indices
  dropout_(whole, 0.5, {9}, first);
  Tensor part = at::ones({700});
  dropout_(part, 0.5, {9}, first + 1300);
  EXPECT_TRUE(part.equal(whole.narrow(0, 1300, 700)));
  Tensor start = at::ones({1000});
  dropout_(start, 0.5, {9}, 0);
  EXPECT_FALSE(start.equal(whole.narrow(0, 1000, 1000)));
}

TEST(Dropout, GradientUsesTheSameMask) {
  const Tensor x = testing::randn({20, 30}, 1).requires_grad_(true);
  const Tensor y = dropout(x, 0.4, DropoutKey{2});
  y.sum().backward();
  EXPECT_TRUE(at::allclose(x.grad() * x, y));
}

TEST(Dropout, ZeroProbabilityChangesNothing) {
  const Tensor x = at::ones({10});
  EXPECT_TRUE(dropout(x, 0, DropoutKey{1}).is_same(x));
  EXPECT_THROW(dropout(x, 1.0, DropoutKey{1}), Error);
  EXPECT_THROW(dropout(x, -0.1, DropoutKey{1}), Error);
}

}  // namespace
}  // namespace rmoe
