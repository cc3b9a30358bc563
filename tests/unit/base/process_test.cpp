#include "rmoe/base/process.h"

#include <vector>

#include <gtest/gtest.h>

namespace rmoe {
namespace {

TEST(Process, MemoryGrowsByWhatIsTouched) {
  constexpr int64_t kBytes = int64_t{64} << 20;
  const int64_t before = memory_now_bytes();
  ASSERT_GT(before, 0);
  std::vector<char> block(kBytes, 1);
  EXPECT_GT(memory_now_bytes(), before + kBytes / 2);
  EXPECT_GE(memory_peak_bytes(), memory_now_bytes() - (1 << 20));
  EXPECT_EQ(block.back(), 1);
}

TEST(Process, KnowsItsMachine) {
  EXPECT_GE(usable_cpus(), 1);
  EXPECT_FALSE(cpu_model().empty());
  EXPECT_EQ(cpu_model().find('\n'), std::string::npos);
}

}  // namespace
}  // namespace rmoe
