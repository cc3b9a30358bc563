// Times in numbers, turns, tables.
#include "rmoe/bench/stats.h"

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/bench/table.h"

namespace rmoe::bench {
namespace {

TEST(Times, BestAndMedianWhateverTheOrder) {
  const Times odd = times_of({3, 1, 2});
  EXPECT_EQ(odd.best, 1);
  EXPECT_EQ(odd.median, 2);
  EXPECT_EQ(odd.count, 3);
  EXPECT_EQ(times_of({4, 1, 3, 2}).median, 2.5);
  EXPECT_EQ(times_of({7}).median, 7);
  EXPECT_THROW(times_of({}), Error);
}

TEST(Turns, GoForthAndBack) {
  EXPECT_EQ(turns(0, 3), (std::vector<size_t>{0, 1, 2}));
  EXPECT_EQ(turns(1, 3), (std::vector<size_t>{2, 1, 0}));
  EXPECT_EQ(turns(2, 1), std::vector<size_t>{0});
}

TEST(Table, AlignsWordsLeftAndNumbersRight) {
  EXPECT_EQ(table_text({{"op", "ms"}, {"linear", "1.5"}, {"gru", "12.5"}}),
            "op        ms\nlinear   1.5\ngru     12.5\n");
  EXPECT_EQ(fixed(1.25, 1), "1.2");
  EXPECT_EQ(fixed(std::nan(""), 1), "-");
}

}  // namespace
}  // namespace rmoe::bench
