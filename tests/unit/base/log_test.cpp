#include "rmoe/base/log.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>

#include <gtest/gtest.h>

#include "rmoe/base/files.h"
#include "tests/support/temp_dir.h"

namespace rmoe {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class Log : public ::testing::Test {
 protected:
  void TearDown() override { set_log_level(Level::kNormal); }
};

TEST_F(Log, QuietKeepsWarnings) {
  testing::internal::CaptureStderr();
  log_info("step ", 1);
  log_warn("disk is ", "full");
  set_log_level(Level::kQuiet);
  log_info("step ", 2);
  log_warn("again");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "step 1\nwarning: disk is full\nwarning: again\n");
}

// What a Progress writes to a file.
class ProgressFile : public Log {
 protected:
  void SetUp() override { fd_ = ::open((dir_ / "out").c_str(), O_CREAT | O_WRONLY, 0600); }
  ~ProgressFile() override { ::close(fd_); }
  std::string written() { return read_file(dir_ / "out"); }
  TempDir dir_;
  int fd_ = -1;
};

TEST_F(ProgressFile, GetsPlainLinesAtMostOncePerInterval) {
  {
    Progress progress(seconds(3600), fd_);
    EXPECT_TRUE(progress.due());
    progress.update("one");
    EXPECT_FALSE(progress.due());
    progress.update("two");
    progress.finish("done");
  }
  EXPECT_EQ(written(), "one\ndone\n");
}

TEST_F(ProgressFile, GetsEveryLineWhenTheIntervalIsZero) {
  Progress progress(seconds(0), fd_);
  progress.update("one");
  progress.update("two");
  EXPECT_EQ(written(), "one\ntwo\n");
}

TEST_F(ProgressFile, GetsNothingWhenQuiet) {
  set_log_level(Level::kQuiet);
  Progress progress(seconds(0), fd_);
  EXPECT_FALSE(progress.due());
  progress.update("one");
  progress.finish("done");
  EXPECT_EQ(written(), "");
}

// A pseudo-terminal of 10 columns.
class ProgressTerminal : public Log {
 protected:
  void SetUp() override {
    master_ = ::posix_openpt(O_RDWR | O_NOCTTY);
    if (master_ < 0 || ::grantpt(master_) != 0 || ::unlockpt(master_) != 0) GTEST_SKIP() << "no pseudo-terminals here";
    slave_ = ::open(::ptsname(master_), O_RDWR | O_NOCTTY);
    ASSERT_GE(slave_, 0);
    winsize size{};
    size.ws_col = 10;
    size.ws_row = 5;
    ASSERT_EQ(::ioctl(slave_, TIOCSWINSZ, &size), 0);
  }
  ~ProgressTerminal() override {
    ::close(slave_);
    ::close(master_);
  }
  std::string written() {
    std::string text(4096, '\0');
    const ssize_t count = ::read(master_, text.data(), text.size());
    text.resize(count > 0 ? static_cast<size_t>(count) : 0);
    return text;
  }
  int master_ = -1, slave_ = -1;
};

TEST_F(ProgressTerminal, RewritesOneLineCutToTheWidthAndKeepsTheLast) {
  ASSERT_TRUE(is_terminal(slave_));
  {
    Progress progress(milliseconds(0), slave_);
    progress.update("one");
    EXPECT_EQ(written(), "\r\x1b[Kone");
    progress.update("\xc3\xa9 23456789 too long");
    EXPECT_EQ(written(), "\r\x1b[K\xc3\xa9 2345678");
    progress.finish("done");
    EXPECT_EQ(written(), "\r\x1b[Kdone\r\n");
  }
  {
    Progress progress(milliseconds(0), slave_);
    progress.update("left");
    written();
  }
  EXPECT_EQ(written(), "\r\x1b[K");  // an unfinished line does not stay
}

TEST_F(ProgressTerminal, AMessageClearsTheLineFirst) {
  Progress progress(milliseconds(0), slave_);
  progress.update("one");
  testing::internal::CaptureStderr();
  log_info("hello");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "\r\x1b[Khello\n");
}

}  // namespace
}  // namespace rmoe
