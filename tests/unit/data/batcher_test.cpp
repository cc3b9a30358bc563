// Batches: every token has its turn, in an order that seed and step alone decide.
#include "rmoe/data/batcher.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/temp_dir.h"
#include "tests/unit/data/expect_error.h"

namespace rmoe::data {
namespace {

// Token i has id i, so a batch shows where it was cut.
class Batchers : public testing::Test {
 protected:
  TokenFile counting(int64_t count) {
    const auto path = dir_ / (std::to_string(count) + ".tok");
    if (!std::filesystem::exists(path)) {
      std::vector<int64_t> ids(static_cast<size_t>(count));
      std::iota(ids.begin(), ids.end(), 0);
      TokenWriter writer(path, count + 1, 0);
      writer.append(ids);
      writer.commit();
    }
    return TokenFile::open(path);
  }

  static std::vector<int64_t> row(const Batch& batch, int64_t r) {
    const auto begin = batch.tokens.begin() + r * (batch.length + 1);
    return {begin, begin + batch.length + 1};
  }

  static void expect_consecutive(const Batch& batch) {
    ASSERT_EQ(static_cast<int64_t>(batch.tokens.size()), batch.batch * (batch.length + 1));
    for (int64_t r = 0; r < batch.batch; ++r) {
      const auto ids = row(batch, r);
      for (size_t i = 1; i < ids.size(); ++i) ASSERT_EQ(ids[i], ids[i - 1] + 1);
    }
  }

  TempDir dir_;
};

TEST_F(Batchers, StreamsContinueFromStepToStep) {
  const StreamBatcher batches(counting(1000), 4, 16, 7);
  ASSERT_EQ(batches.steps_per_epoch(), (1000 - 16) / 64);
  for (int64_t step = 0; step < 3 * batches.steps_per_epoch(); ++step) {
    const Batch batch = batches.get(step);
    expect_consecutive(batch);
    EXPECT_EQ(batch.fresh, step % batches.steps_per_epoch() == 0);
    EXPECT_EQ(batch.epoch, step / batches.steps_per_epoch());
    if (batch.fresh) continue;
    const Batch before = batches.get(step - 1);
    for (int64_t r = 0; r < 4; ++r) EXPECT_EQ(row(batch, r).front(), row(before, r).back());
  }
}

TEST_F(Batchers, StreamsGiveEachInputOncePerEpochAndMissOnlyTheEnds) {
  const int64_t count = 1003;
  const StreamBatcher batches(counting(count), 3, 10, 1);
  for (int64_t epoch = 0; epoch < 5; ++epoch) {
    std::multiset<int64_t> inputs;
    for (int64_t step = 0; step < batches.steps_per_epoch(); ++step) {
      const Batch batch = batches.get(epoch * batches.steps_per_epoch() + step);
      for (int64_t r = 0; r < batch.batch; ++r) {
        const auto ids = row(batch, r);
        inputs.insert(ids.begin(), ids.end() - 1);
      }
    }
    const auto seen = static_cast<int64_t>(inputs.size());
    EXPECT_EQ(static_cast<int64_t>(std::set(inputs.begin(), inputs.end()).size()), seen);  // none twice
    EXPECT_LT(*inputs.begin(), 10);                                                        // the offset
    EXPECT_EQ(*inputs.rbegin() - *inputs.begin() + 1, seen);                               // no gaps
    EXPECT_GT(seen, count - (3 + 1) * 10);
  }
}

TEST_F(Batchers, StreamEpochsStartAtDifferentOffsets) {
  const StreamBatcher batches(counting(100'000), 2, 64, 3);
  std::set<int64_t> offsets;
  for (int64_t epoch = 0; epoch < 200; ++epoch)
    offsets.insert(batches.get(epoch * batches.steps_per_epoch()).tokens[0]);
  EXPECT_GT(offsets.size(), 50u);
  EXPECT_LT(*offsets.rbegin(), 64);
}

TEST_F(Batchers, StreamsWorkWhenTheFileIsBarelyLargeEnough) {
  const StreamBatcher batches(counting(33), 4, 8, 0);
  EXPECT_EQ(batches.steps_per_epoch(), 1);
  for (int64_t step = 0; step < 10; ++step) {
    EXPECT_EQ(batches.get(step).tokens[0], 0);
    EXPECT_EQ(batches.get(step).tokens.back(), 32);
  }
  EXPECT_ERROR(StreamBatcher(counting(32), 4, 8, 0), Exit::kBadInput, "32.tok", "expected at least 4 x 8 + 1");
  EXPECT_ERROR(StreamBatcher(counting(33), 0, 8, 0), Exit::kBadInput, "must be at least 1");
  EXPECT_ERROR(StreamBatcher(counting(33), int64_t{1} << 62, int64_t{1} << 62, 0), Exit::kBadInput, "too few");
}

TEST_F(Batchers, WindowsComeOncePerEpochInAnOrderOfTheirOwn) {
  const WindowBatcher batches(counting(1003), 1, 10, 5);
  const int64_t windows = batches.windows_per_epoch();
  ASSERT_EQ(windows, (1003 - 10) / 10);
  std::vector<std::vector<int64_t>> orders;
  for (int64_t epoch = 0; epoch < 4; ++epoch) {
    std::vector<int64_t> starts;
    for (int64_t i = 0; i < windows; ++i) {
      const Batch batch = batches.get(epoch * windows + i);
      expect_consecutive(batch);
      EXPECT_TRUE(batch.fresh);
      EXPECT_EQ(batch.epoch, epoch);
      starts.push_back(batch.tokens[0]);
    }
    auto sorted = starts;
    std::ranges::sort(sorted);
    for (int64_t i = 0; i < windows; ++i) EXPECT_EQ(sorted[static_cast<size_t>(i)], sorted[0] + 10 * i);
    EXPECT_LT(sorted[0], 10);
    EXPECT_NE(starts, sorted);
    for (int64_t& start : starts) start -= sorted[0];
    orders.push_back(starts);
  }
  EXPECT_NE(orders[0], orders[1]);
  EXPECT_NE(orders[1], orders[2]);
}

TEST_F(Batchers, TheSequenceOfWindowsDoesNotDependOnTheBatchSize) {
  const auto sequence = [&](int64_t batch) {
    const WindowBatcher batches(counting(500), batch, 7, 11);
    std::vector<int64_t> starts;
    for (int64_t step = 0; static_cast<int64_t>(starts.size()) < 240; ++step) {
      const Batch got = batches.get(step);
      for (int64_t r = 0; r < batch; ++r) starts.push_back(row(got, r)[0]);
    }
    starts.resize(240);  // more than three epochs
    return starts;
  };
  const auto one = sequence(1);
  for (const int64_t batch : {2, 5, 16, 100}) EXPECT_EQ(sequence(batch), one) << batch;
}

TEST_F(Batchers, OneWindowIsEnough) {
  const WindowBatcher batches(counting(9), 3, 8, 0);
  EXPECT_EQ(batches.windows_per_epoch(), 1);
  EXPECT_EQ(row(batches.get(0), 2), (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_ERROR(WindowBatcher(counting(8), 3, 8, 0), Exit::kBadInput, "8.tok", "expected at least 8 + 1");
}

TEST_F(Batchers, RowsOfABatchAreTheSameHoweverTheyAreAskedFor) {
  const StreamBatcher streams(counting(1000), 6, 8, 2);
  const WindowBatcher windows(counting(1000), 6, 8, 2);
  for (const int64_t step : {0, 5, 19, 40}) {
    for (const Batch& whole : {streams.get(step), windows.get(step)}) {
      const Batch part = whole.rows(2, 5);
      EXPECT_EQ(part.batch, 3);
      EXPECT_EQ(row(part, 0), row(whole, 2));
      EXPECT_EQ(row(part, 2), row(whole, 4));
      EXPECT_EQ(part.fresh, whole.fresh);
    }
    EXPECT_EQ(streams.get(step, 2, 5).tokens, streams.get(step).rows(2, 5).tokens);
    EXPECT_EQ(windows.get(step, 2, 5).tokens, windows.get(step).rows(2, 5).tokens);
    EXPECT_TRUE(streams.get(step, 3, 3).tokens.empty());
  }
}

TEST_F(Batchers, SeedAndStepDecideEverything) {
  const StreamBatcher a(counting(5000), 2, 64, 1), b(counting(5000), 2, 64, 1), c(counting(5000), 2, 64, 2);
  EXPECT_EQ(a.get(100).tokens, b.get(100).tokens);
  EXPECT_NE(a.get(0).tokens, c.get(0).tokens);
  const WindowBatcher d(counting(5000), 4, 64, 1), e(counting(5000), 4, 64, 1), f(counting(5000), 4, 64, 2);
  e.get(3);  // no state is left behind
  EXPECT_EQ(d.get(77).tokens, e.get(77).tokens);
  EXPECT_NE(d.get(0).tokens, f.get(0).tokens);
}

TEST_F(Batchers, SplitsThatFallInOneEpochGoOnFarBeyondIt) {
  const StreamBatcher batches(counting(100), 2, 8, 9);
  const Batch far = batches.get(1'000'000'007);
  expect_consecutive(far);
  EXPECT_EQ(far.epoch, 1'000'000'007 / batches.steps_per_epoch());
}

}  // namespace
}  // namespace rmoe::data
