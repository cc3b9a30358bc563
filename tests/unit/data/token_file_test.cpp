// Token files: what is written is read back, and what is damaged is refused.
#include "rmoe/data/token_file.h"

#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/data/expect_error.h"

namespace rmoe::data {
namespace {

std::vector<int64_t> ids_below(int64_t vocab_size, int64_t count) {
  std::vector<int64_t> ids(static_cast<size_t>(count));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int64_t>(i) * 7919 % vocab_size;
  if (!ids.empty()) ids.back() = vocab_size - 1;
  return ids;
}

TokenHeader write(const std::filesystem::path& path, int64_t vocab_size, const std::vector<int64_t>& ids) {
  TokenWriter writer(path, vocab_size, 0x1234567890abcdef);
  writer.append(ids);
  writer.set_counts(3, 400, 390, 80);
  return writer.commit();
}

void poke(const std::filesystem::path& path, int64_t offset, char byte) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(offset);
  file.put(byte);
}

TEST(TokenFile, GivesBackWhatWasWrittenInEveryWidth) {
  const TempDir dir;
  for (const auto& [vocab_size, width] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {255, 1}, {256, 1}, {257, 2}, {65536, 2}, {65537, 4}, {int64_t{1} << 32, 4}}) {
    SCOPED_TRACE(vocab_size);
    for (const int64_t count : {0, 1, 1000, 300'001}) {
      const auto ids = ids_below(vocab_size, count);
      write(dir / "a.tok", vocab_size, ids);
      const TokenFile file = TokenFile::open(dir / "a.tok");
      EXPECT_EQ(file.size(), count);
      EXPECT_EQ(file.header().bytes_per_token, width);
      EXPECT_EQ(file.header().vocab_size, vocab_size);
      EXPECT_EQ(file.header().tokenizer_hash, 0x1234567890abcdefu);
      EXPECT_EQ(file.header().documents, 3);
      EXPECT_EQ(file.header().bytes, 400);
      EXPECT_EQ(file.header().characters, 390);
      EXPECT_EQ(file.header().words, 80);
      std::vector<int64_t> read(ids.size());
      file.read(0, count, read.data());
      EXPECT_EQ(read, ids);
      file.verify();
    }
  }
}

TEST(TokenFile, HasTheDocumentedLayout) {
  const TempDir dir;
  write(dir / "a.tok", 300, {1, 299});
  const std::string bytes = read_file(dir / "a.tok");
  ASSERT_EQ(bytes.size(), 128u + 4u);
  EXPECT_EQ(bytes.substr(0, 16), std::string("RMOETOK\0\1\0\0\0\2\0\0\0", 16));
  EXPECT_EQ(bytes.substr(16, 16), std::string("\2\0\0\0\0\0\0\0\x2C\1\0\0\0\0\0\0", 16));
  EXPECT_EQ(bytes.substr(32, 8), "\xEF\xCD\xAB\x90\x78\x56\x34\x12");
  EXPECT_EQ(bytes.substr(80, 48), std::string(48, '\0'));
  EXPECT_EQ(bytes.substr(128), std::string("\1\0\x2B\1", 4));
}

TEST(TokenFile, DoesNotDependOnHowTheIdsWereAppended) {
  const TempDir dir;
  const auto ids = ids_below(1000, 700'000);
  write(dir / "a.tok", 1000, ids);
  TokenWriter writer(dir / "b.tok", 1000, 0x1234567890abcdef);
  for (size_t i = 0; i < ids.size(); i += 997) {
    writer.append(std::span(ids).subspan(i, std::min<size_t>(997, ids.size() - i)));
  }
  writer.set_counts(3, 400, 390, 80);
  writer.commit();
  EXPECT_EQ(read_file(dir / "a.tok"), read_file(dir / "b.tok"));
}

TEST(TokenFile, ReadsAnyRange) {
  const TempDir dir;
  const auto ids = ids_below(70000, 50);
  write(dir / "a.tok", 70000, ids);
  const TokenFile file = TokenFile::open(dir / "a.tok");
  std::vector<int64_t> read(7);
  file.read(43, 7, read.data());
  EXPECT_EQ(read, std::vector<int64_t>(ids.begin() + 43, ids.end()));
  EXPECT_ERROR(file.read(44, 7, read.data()), Exit::kBug, "tokens [44, 51) of 50");
}

TEST(TokenFile, RefusesWhatIsNotASoundTokenFile) {
  const TempDir dir;
  const auto path = dir / "a.tok";
  const auto reset = [&] { write(path, 300, ids_below(300, 100)); };
  EXPECT_ERROR(TokenFile::open(path), Exit::kIo, "a.tok");
  write_file_atomic(path, "short");
  EXPECT_ERROR(TokenFile::open(path), Exit::kBadInput, "a.tok: not a token file");
  write_file_atomic(path, std::string(500, 'x'));
  EXPECT_ERROR(TokenFile::open(path), Exit::kBadInput, "not a token file");
  reset();
  poke(path, 8, 2);
  EXPECT_ERROR(TokenFile::open(path), Exit::kBadInput, "version 2, expected 1");
  reset();
  poke(path, 12, 3);
  EXPECT_ERROR(TokenFile::open(path), Exit::kBadInput, "3 bytes per token");
  reset();
  poke(path, 23, '\x7F');  // a count that would overflow
  EXPECT_ERROR(TokenFile::open(path), Exit::kBadInput, "damaged header");
  reset();
  poke(path, 16, 99);
  EXPECT_ERROR(TokenFile::open(path), Exit::kBadInput, "99 tokens of 2 bytes need 326");
  reset();
  poke(path, 26, 9);  // a vocabulary of more than 2^16 in two bytes
  EXPECT_ERROR(TokenFile::open(path), Exit::kBadInput, "in 2 bytes per token");
  reset();
  poke(path, 100, 1);
  EXPECT_ERROR(TokenFile::open(path), Exit::kBadInput, "byte 100 is not zero");
  reset();
  std::filesystem::resize_file(path, 327);
  EXPECT_ERROR(TokenFile::open(path), Exit::kBadInput, "(truncated)");
}

TEST(TokenFile, RefusesAnIdThatIsNotInTheVocabulary) {
  const TempDir dir;
  write(dir / "a.tok", 300, std::vector<int64_t>(100, 5));
  poke(dir / "a.tok", 128 + 2 * 60 + 1, 1);  // token 60 becomes 261, token 61 stays
  const TokenFile file = TokenFile::open(dir / "a.tok");
  std::vector<int64_t> read(100);
  file.read(0, 100, read.data());
  EXPECT_EQ(read[60], 261);
  EXPECT_ERROR(file.verify(), Exit::kBadInput, "damaged: the tokens hash to");
  poke(dir / "a.tok", 128 + 2 * 60 + 1, 2);
  file.read(0, 60, read.data());
  EXPECT_ERROR(file.read(60, 1, read.data()), Exit::kBadInput, "damaged: token 517");
  EXPECT_ERROR(file.verify(), Exit::kBadInput, "a.tok");
}

TEST(TokenWriter, LeavesNothingWithoutCommit) {
  const TempDir dir;
  {
    TokenWriter writer(dir / "a.tok", 300, 1);
    writer.append(ids_below(300, 2'000'000));
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(TokenWriter, RefusesIdsOutsideTheVocabulary) {
  const TempDir dir;
  TokenWriter writer(dir / "a.tok", 300, 1);
  EXPECT_ERROR(writer.append(std::vector<int64_t>{300}), Exit::kBug, "300");
  EXPECT_ERROR(writer.append(std::vector<int64_t>{-1}), Exit::kBug, "-1");
}

TEST(TokenWriter, AFullDiskIsAnErrorThatNamesTheFile) {
  const TempDir dir;
  // A limit on the size of files stands in for a full disk: write(2) fails in the same way.
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  const rlimit small{4096, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  {
    TokenWriter writer(dir / "a.tok", 300, 1);
    EXPECT_ERROR(
        {
          writer.append(ids_below(300, 100'000));
          writer.commit();
        },
        Exit::kIo, "cannot write", "a.tok");
  }
  setrlimit(RLIMIT_FSIZE, &old);
  signal(SIGXFSZ, old_handler);
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

}  // namespace
}  // namespace rmoe::data
