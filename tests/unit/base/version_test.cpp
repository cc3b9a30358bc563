#include "rmoe/base/version.h"

#include <string>

#include <gtest/gtest.h>

#include "rmoe/base/files.h"

namespace rmoe {
namespace {

TEST(Version, IsThatOfTheProject) {
  const std::string cmake = read_file(RMOE_SOURCE_DIR "/CMakeLists.txt");
  EXPECT_NE(cmake.find(std::string("project(rmoe VERSION ") + kVersion + " "), std::string::npos) << kVersion;
  const std::string changes = read_file(RMOE_SOURCE_DIR "/CHANGELOG.md");
  EXPECT_NE(changes.find(std::string("\n## ") + kVersion), std::string::npos) << kVersion;
}

}  // namespace
}  // namespace rmoe
