#include "rmoe/base/files.h"

#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <fstream>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "tests/support/temp_dir.h"

namespace rmoe {
namespace {

template <class Action>
std::string io_failure(Action action) {
  try {
    action();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::kIo);
    return e.message();
  }
  return "nothing thrown";
}

std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  return names;
}

TEST(Files, WriteAndReadBack) {
  TempDir dir;
  for (const std::string& bytes : {std::string(), std::string("a\0b\n", 4), std::string(3'000'000, 'x')}) {
    write_file_atomic(dir / "f", bytes);
    EXPECT_EQ(read_file(dir / "f"), bytes);
  }
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"f"});  // no temporary file stays
}

TEST(Files, RelativePathWithoutFolder) {
  TempDir dir;
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(dir.path());
  write_file_atomic("f", "x");
  std::filesystem::current_path(before);
  EXPECT_EQ(read_file(dir / "f"), "x");
}

TEST(Files, ReadFileReadsWhatHasNoSize) { EXPECT_NE(read_file("/proc/self/status").find("VmHWM"), std::string::npos); }

TEST(Files, ReadFailuresNameThePath) {
  TempDir dir;
  EXPECT_EQ(io_failure([&] { read_file(dir / "none"); }),
            "cannot read " + (dir / "none").string() + ": No such file or directory");
  EXPECT_EQ(io_failure([&] { read_file(dir.path()); }), "cannot read " + dir.path().string() + ": Is a directory");
  write_file_atomic(dir / "f", "12345");
  EXPECT_EQ(read_file(dir / "f", 5), "12345");
  EXPECT_EQ(io_failure([&] { read_file(dir / "f", 4); }),
            "cannot read " + (dir / "f").string() + ": 5 B or more, expected at most 4 B");
  EXPECT_NE(io_failure([&] { read_file("/proc/self/status", 10); }), "nothing thrown");
}

TEST(Files, WriteFailuresKeepTheOldFileAndNameThePath) {
  TempDir dir;
  std::filesystem::create_directory(dir / "d");
  write_file_atomic(dir / "d" / "f", "");
  for (const auto& [path, reason] : {std::pair{dir / "none" / "f", "No such file or directory"},
                                     {dir / "d", "Is a directory"},
                                     {dir / "d" / ".", "Is a directory"},
                                     {dir / "d" / "f" / "g", "Not a directory"}}) {
    const std::string expected = "cannot write " + path.string() + ": " + reason;
    EXPECT_EQ(io_failure([&] { write_file_atomic(path, "x"); }), expected);
    EXPECT_EQ(io_failure([&] { check_writable(path); }), expected);
  }
  check_writable(dir / "d" / "f");
  check_writable(dir / "new");
  check_writable("new");
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"d"});

  // The kernel's limit on file sizes stands in for a full disk.
  write_file_atomic(dir / "f", "old");
  rlimit old_limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit = old_limit;
  limit.rlim_cur = 1000;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const std::string message = io_failure([&] { write_file_atomic(dir / "f", std::string(5000, 'x')); });
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(message, "cannot write " + (dir / "f").string() + ": File too large");
  EXPECT_EQ(read_file(dir / "f"), "old");
  EXPECT_EQ(names_in(dir.path()).size(), 2u);
}

TEST(Files, FsyncTakesFilesAndFolders) {
  TempDir dir;
  write_file_atomic(dir / "f", "x");
  fsync_path(dir / "f");
  fsync_path(dir.path());
  EXPECT_EQ(io_failure([&] { fsync_path(dir / "none"); }).substr(0, 12), "cannot fsync");
}

TEST(MappedFile, ShowsTheBytesAndMoves) {
  TempDir dir;
  write_file_atomic(dir / "f", "hello");
  MappedFile a(dir / "f");
  ASSERT_EQ(a.size(), 5);
  EXPECT_EQ(std::memcmp(a.data(), "hello", 5), 0);
  MappedFile b = std::move(a);
  EXPECT_EQ(a.size(), 0);  // NOLINT: a moved-from map is empty
  EXPECT_TRUE(a.bytes().empty());
  write_file_atomic(dir / "g", "other text");
  a = MappedFile(dir / "g");
  b = std::move(a);
  EXPECT_EQ(std::memcmp(b.data(), "other", 5), 0);
  EXPECT_EQ(b.bytes().size(), 10u);
}

TEST(MappedFile, OfAnEmptyFileIsEmptyAndOfNoFileFails) {
  TempDir dir;
  write_file_atomic(dir / "f", "");
  EXPECT_EQ(MappedFile(dir / "f").size(), 0);
  EXPECT_EQ(io_failure([&] { MappedFile(dir / "none"); }).substr(0, 11), "cannot read");
  EXPECT_EQ(io_failure([&] { MappedFile{dir.path()}; }), "cannot read " + dir.path().string() + ": Is a directory");
}

TEST(HumanBytes, UsesTheLargestUnitThatFits) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.0 KiB");
  EXPECT_EQ(human_bytes(1536), "1.5 KiB");
  EXPECT_EQ(human_bytes((1 << 20) - 1), "1.0 MiB");  // not 1024.0 KiB
  EXPECT_EQ(human_bytes(int64_t{5} << 30), "5.0 GiB");
  EXPECT_EQ(human_bytes(INT64_MAX), "8.0 EiB");
  EXPECT_EQ(human_bytes(-2048), "-2.0 KiB");
}

}  // namespace
}  // namespace rmoe
