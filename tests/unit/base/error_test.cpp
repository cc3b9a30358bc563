#include "rmoe/base/error.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace rmoe {
namespace {

TEST(Str, StreamsAllPartsAndWritesListsAndBools) {
  EXPECT_EQ(str("state [", 4096, ",", 128, "] ", true, ' ', std::vector<int64_t>{1, 2}, " ", std::vector<bool>{}),
            "state [4096,128] true [1, 2] []");
  EXPECT_EQ(str(), "");
}

TEST(Str, WritesWhatIsNotFiniteWithoutTheSignOfANan) {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(str(nan, ' ', -nan, ' ', std::copysign(nan, -1), ' ', std::copysign(std::nanf(""), -1.0F)),
            "nan nan nan nan");
  EXPECT_EQ(str(inf, ' ', -inf, ' ', std::vector<double>{-nan, 0.5}), "inf -inf [nan, 0.5]");
}

TEST(Check, FailsWithBadInputAndTheParts) {
  try {
    RMOE_CHECK(1 > 2, "attention: heads is ", 0);
    FAIL() << "nothing thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::kBadInput);
    EXPECT_EQ(error.message(), "attention: heads is 0");
    EXPECT_EQ(error.help(), "");
  }
}

TEST(Check, DoesNotBuildTheMessageWhenTheConditionHolds) {
  int built = 0;
  RMOE_CHECK(true, ++built);
  RMOE_ASSERT(true, ++built);
  EXPECT_EQ(built, 0);
}

TEST(Assert, IsOurBugAndNamesTheFileWithoutItsMachinePath) {
  try {
    RMOE_ASSERT(false, "rows ", 3);
    FAIL() << "nothing thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::kBug);
    EXPECT_NE(error.message().find("error_test.cpp:"), std::string::npos) << error.message();
    EXPECT_TRUE(error.message().ends_with(": rows 3")) << error.message();
  }
  try {
    RMOE_ASSERT(2 + 2 == 5);
    FAIL() << "nothing thrown";
  } catch (const Error& error) {
    EXPECT_TRUE(error.message().ends_with(": 2 + 2 == 5")) << error.message();
  }
}

TEST(IoError, CarriesItsExitCode) {
  try {
    io_error("cannot read x: ", errno_text(2));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::kIo);
    EXPECT_EQ(error.message(), "cannot read x: No such file or directory");
  }
}

}  // namespace
}  // namespace rmoe
