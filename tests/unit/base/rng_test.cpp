#include "rmoe/base/rng.h"

#include <bit>
#include <cmath>
#include <map>
#include <set>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck.h>

namespace rmoe {
namespace {

TEST(Mix, IsFixedForEver) {
  // Data order, start values and dropout of saved runs depend on these.
  static_assert(mix(1, 2, 3) == mix(1, 2, 3));
  EXPECT_EQ(mix(0, 0, 0), 0x0ec5d5644f7742e1u);
  EXPECT_EQ(mix(1, kDropoutStream, 1000), 0x08b11c7ada0aee12u);
  EXPECT_EQ(hash_text("layers.0.weight"), 0xc4663c54d262f959u);
  const Permutation p(10, 7);
  std::vector<int64_t> order;
  for (int64_t i = 0; i < 10; ++i) order.push_back(p(i));
  EXPECT_EQ(order, (std::vector<int64_t>{4, 2, 6, 5, 3, 0, 9, 7, 1, 8}));
}

TEST(Mix, EveryInputBitChangesHalfOfTheOutput) {
  const auto flips = [](auto f) {
    double worst = 0;
    for (int bit = 0; bit < 64; ++bit) {
      double changed = 0;
      for (uint64_t i = 0; i < 200; ++i) changed += std::popcount(f(i, 0) ^ f(i, uint64_t{1} << bit));
      worst = std::max(worst, std::abs(changed / 200 - 32));
    }
    return worst;
  };
  // The mean of 200 binomial(64, 1/2) has a deviation of 0.28.
  EXPECT_LT(flips([](uint64_t i, uint64_t x) { return mix(i ^ x, 5, 9); }), 1.5);
  EXPECT_LT(flips([](uint64_t i, uint64_t x) { return mix(3, i ^ x, 9); }), 1.5);
  EXPECT_LT(flips([](uint64_t i, uint64_t x) { return mix(3, 5, i ^ x); }), 1.5);
}

TEST(Mix, UniformHasTheRightMomentsAndNeighboursAreUncorrelated) {
  constexpr int kCount = 200000;
  double sum = 0, squares = 0, products = 0, streams = 0;
  for (uint64_t i = 0; i < kCount; ++i) {
    const double x = uniform(mix(1, 2, i)) - 0.5;
    ASSERT_GE(x, -0.5);
    ASSERT_LT(x, 0.5);
    sum += x;
    squares += x * x;
    products += x * (uniform(mix(1, 2, i + 1)) - 0.5);
    streams += x * (uniform(mix(1, 3, i)) - 0.5);
  }
  EXPECT_NEAR(sum / kCount, 0, 4 * 0.289 / std::sqrt(kCount));
  EXPECT_NEAR(squares / kCount, 1.0 / 12, 1e-3);
  EXPECT_NEAR(products / kCount, 0, 4 / 12.0 / std::sqrt(kCount));
  EXPECT_NEAR(streams / kCount, 0, 4 / 12.0 / std::sqrt(kCount));
}

TEST(Mix, CountersOfOneStreamNeverCollide) {
  std::set<uint64_t> seen;
  for (uint64_t i = 0; i < 100000; ++i) seen.insert(mix(9, 9, i));
  EXPECT_EQ(seen.size(), 100000u);
}

TEST(UniformBelow, CoversTheRangeEvenly) {
  std::vector<int> counts(7);
  for (uint64_t i = 0; i < 70000; ++i) ++counts[static_cast<size_t>(uniform_below(mix(4, 4, i), 7))];
  for (const int count : counts) EXPECT_NEAR(count, 10000, 500);
  EXPECT_EQ(uniform_below(~uint64_t{0}, 1), 0);
  EXPECT_EQ(uniform_below(~uint64_t{0}, INT64_MAX), INT64_MAX - 1);
  EXPECT_EQ(uniform_below(0, INT64_MAX), 0);
}

TEST(Permutation, IsABijectionForEverySizeAndKey) {
  EXPECT_TRUE(rc::check([] {
    const auto n = *rc::gen::inRange<int64_t>(1, 3000);
    const Permutation p(n, *rc::gen::arbitrary<uint64_t>());
    std::vector<bool> seen(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      const int64_t to = p(i);
      RC_ASSERT(to >= 0 && to < n);
      RC_ASSERT(!seen[static_cast<size_t>(to)]);
      seen[static_cast<size_t>(to)] = true;
    }
  }));
}

TEST(Permutation, SmallSizesGiveEveryOrderEquallyOften) {
  for (const int64_t n : {2, 3, 4}) {
    std::map<std::vector<int64_t>, int> orders;
    constexpr int kKeys = 24000;
    for (uint64_t key = 0; key < kKeys; ++key) {
      const Permutation p(n, key);
      std::vector<int64_t> order;
      for (int64_t i = 0; i < n; ++i) order.push_back(p(i));
      ++orders[order];
    }
    const int factorial = n == 2 ? 2 : n == 3 ? 6 : 24;
    EXPECT_EQ(static_cast<int>(orders.size()), factorial);
    for (const auto& [order, count] : orders) {
      // Six rounds on two bits are not perfect: within a fifth of even.
      EXPECT_NEAR(count, kKeys / factorial, 0.2 * kKeys / factorial) << "n = " << n;
    }
  }
}

TEST(Permutation, LargeSizesSpreadNeighbours) {
  const int64_t n = 1000003;
  const Permutation p(n, 11);
  double gap = 0;
  for (int64_t i = 0; i < 20000; ++i) gap += static_cast<double>(std::abs(p(i + 1) - p(i)));
  EXPECT_NEAR(gap / 20000 / static_cast<double>(n), 1.0 / 3, 0.02);  // of two independent places
}

TEST(Permutation, RefusesBadSizesAndIndices) {
  EXPECT_THROW(Permutation(-1, 0), Error);
  EXPECT_THROW(Permutation(3, 0)(3), Error);
  EXPECT_THROW(Permutation(0, 0)(0), Error);
  EXPECT_EQ(Permutation(1, 5)(0), 0);
  const Permutation huge((int64_t{1} << 62) - 5, 1);
  EXPECT_LT(huge(123456789), huge.size());
}

}  // namespace
}  // namespace rmoe
