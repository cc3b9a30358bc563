// Reading packed files: the same text comes out of every packing, and damage is an error that names the file.
#include "rmoe/data/file_reader.h"

#include <random>

#include <gtest/gtest.h>

#include "tests/support/temp_dir.h"
#include "tests/unit/data/expect_error.h"
#include "tests/unit/data/pack.h"

namespace rmoe::data {
namespace {

// Text that does not pack into nothing, so that damage in the middle hits data.
std::string sample(size_t bytes) {
  std::mt19937 random(1);
  std::string text;
  while (text.size() < bytes) text += std::to_string(random()) + (random() % 9 ? " " : "\n");
  return text;
}

std::string read_member(FileReader& reader, size_t chunk = 10'000) {
  std::string text;
  std::vector<char> buffer(chunk);
  while (const int64_t count = reader.read(buffer)) text.append(buffer.data(), static_cast<size_t>(count));
  return text;
}

std::string read_single(const std::filesystem::path& path) {
  FileReader reader(path);
  EXPECT_TRUE(reader.next());
  std::string text = read_member(reader);
  EXPECT_FALSE(reader.next());
  return text;
}

class Reader : public testing::Test {
 protected:
  void write_packed(const std::string& name, int (*filter)(archive*), const std::string& text) {
    write_archive(dir_ / name, archive_write_set_format_raw, filter, {{"data", text}});
  }

  TempDir dir_;
  const std::string text_ = sample(300'000);
};

TEST_F(Reader, GivesTheSameTextFromEveryPacking) {
  write_file_atomic(dir_ / "a.txt", text_);
  write_gz(dir_ / "a.txt.gz", text_);
  write_packed("a.txt.zst", archive_write_add_filter_zstd, text_);
  write_packed("a.txt.xz", archive_write_add_filter_xz, text_);
  write_packed("a.txt.bz2", archive_write_add_filter_bzip2, text_);
  for (const char* name : {"a.txt", "a.txt.gz", "a.txt.zst", "a.txt.xz", "a.txt.bz2"}) {
    SCOPED_TRACE(name);
    EXPECT_EQ(read_single(dir_ / name), text_);
    FileReader reader(dir_ / name);
    ASSERT_TRUE(reader.next());
    EXPECT_EQ(reader.inner_name(), "a.txt");
    EXPECT_EQ(reader.name(), (dir_ / name).string());
    read_member(reader);
    EXPECT_EQ(reader.stored_position(), static_cast<int64_t>(std::filesystem::file_size(dir_ / name)));
  }
}

TEST_F(Reader, GivesTheMembersOfArchives) {
  const Members members{{"d/", ""}, {"d/one.txt", text_}, {"d/empty.txt", ""}, {"two.jsonl", "{}"}};
  write_zip(dir_ / "a.zip", members);
  write_archive(dir_ / "a.tar.gz", archive_write_set_format_pax_restricted, archive_write_add_filter_gzip, members);
  write_archive(dir_ / "a.tar.zst", archive_write_set_format_pax_restricted, archive_write_add_filter_zstd, members);
  write_archive(dir_ / "a.tgz", archive_write_set_format_ustar, archive_write_add_filter_gzip, members);
  for (const char* name : {"a.zip", "a.tar.gz", "a.tar.zst", "a.tgz"}) {
    SCOPED_TRACE(name);
    FileReader reader(dir_ / name);
    ASSERT_TRUE(reader.next());
    EXPECT_EQ(reader.inner_name(), "d/one.txt");
    EXPECT_EQ(reader.name(), (dir_ / name).string() + ":d/one.txt");
    EXPECT_EQ(read_member(reader), text_);
    ASSERT_TRUE(reader.next());
    EXPECT_EQ(read_member(reader), "");
    ASSERT_TRUE(reader.next());
    EXPECT_EQ(reader.inner_name(), "two.jsonl");
    EXPECT_EQ(read_member(reader), "{}");
    EXPECT_FALSE(reader.next());
  }
}

TEST_F(Reader, AMemberMayBeLeftOut) {
  write_zip(dir_ / "a.zip", {{"one.txt", text_}, {"two.txt", "two"}});
  FileReader reader(dir_ / "a.zip");
  ASSERT_TRUE(reader.next());
  ASSERT_TRUE(reader.next());
  EXPECT_EQ(read_member(reader), "two");
}

TEST_F(Reader, SeveralGzipMembersAreOneText) {
  write_gz(dir_ / "a.gz", "one ");
  write_gz(dir_ / "b.gz", "two");
  write_file_atomic(dir_ / "c.gz", read_file(dir_ / "a.gz") + read_file(dir_ / "b.gz"));
  EXPECT_EQ(read_single(dir_ / "c.gz"), "one two");
}

TEST_F(Reader, EmptyFilesAreOneMemberWithoutBytes) {
  write_file_atomic(dir_ / "a.txt", "");
  EXPECT_EQ(read_single(dir_ / "a.txt"), "");
  write_gz(dir_ / "a.txt.gz", "");
  EXPECT_EQ(read_single(dir_ / "a.txt.gz"), "");
}

TEST_F(Reader, TextThatLooksLikeNothingIsText) {
  for (const std::string& text :
       std::vector<std::string>{"x", "begin 644 a\n", "PK", "BZ", "\x1F\x9D", std::string(2, '\0')}) {
    write_file_atomic(dir_ / "a.txt", text);
    EXPECT_EQ(read_single(dir_ / "a.txt"), text);
  }
}

TEST_F(Reader, RefusesCutOffFiles) {
  write_gz(dir_ / "a.txt.gz", text_);
  write_packed("a.txt.zst", archive_write_add_filter_zstd, text_);
  write_packed("a.txt.xz", archive_write_add_filter_xz, text_);
  write_zip(dir_ / "a.zip", {{"a.txt", text_}});
  for (const char* name : {"a.txt.gz", "a.txt.zst", "a.txt.xz", "a.zip"}) {
    SCOPED_TRACE(name);
    truncate_half(dir_ / name);
    EXPECT_ERROR(read_single(dir_ / name), Exit::kBadInput, name, "cannot be unpacked");
  }
}

TEST_F(Reader, RefusesFilesWithOneWrongBit) {
  write_gz(dir_ / "data.txt.gz", text_);
  flip_bit(dir_ / "data.txt.gz", 60'000);
  EXPECT_ERROR(read_single(dir_ / "data.txt.gz"), Exit::kBadInput, "data.txt.gz");
  write_gz(dir_ / "sum.txt.gz", text_);
  flip_bit(dir_ / "sum.txt.gz", -6);  // the check sum itself
  EXPECT_ERROR(read_single(dir_ / "sum.txt.gz"), Exit::kBadInput, "sum.txt.gz", "incorrect data check");
  write_packed("a.txt.zst", archive_write_add_filter_zstd, text_);
  flip_bit(dir_ / "a.txt.zst", 1);
  EXPECT_ERROR(read_single(dir_ / "a.txt.zst"), Exit::kBadInput, "a.txt.zst");
  write_zip(dir_ / "a.zip", {{"a.txt", text_}});
  flip_bit(dir_ / "a.zip", 60'000);
  EXPECT_ERROR(read_single(dir_ / "a.zip"), Exit::kBadInput, "a.zip:a.txt");
}

TEST_F(Reader, RefusesFilesThatAreNotWhatTheirNameSays) {
  for (const char* name : {"a.gz", "a.txt.zst", "a.xz", "a.bz2", "a.tgz"}) {
    SCOPED_TRACE(name);
    write_file_atomic(dir_ / name, "plain text");
    EXPECT_ERROR(read_single(dir_ / name), Exit::kBadInput, name);
  }
  write_file_atomic(dir_ / "a.zip", "plain text");
  EXPECT_ERROR(read_single(dir_ / "a.zip"), Exit::kBadInput, "a.zip", "cannot be unpacked");
}

TEST_F(Reader, RefusesFoldersAndMissingFiles) {
  EXPECT_ERROR(FileReader(dir_ / "none"), Exit::kIo, "none", "No such file");
  EXPECT_ERROR(FileReader(dir_.path()), Exit::kBadInput, "is a folder");
}

TEST(Names, LoseTheirCompression) {
  EXPECT_EQ(without_compression("a.txt.gz"), "a.txt");
  EXPECT_EQ(without_compression("a.jsonl.ZST"), "a.jsonl");
  EXPECT_EQ(without_compression("gcide.dict.dz"), "gcide.dict");
  EXPECT_EQ(without_compression("a.tar.xz"), "a.tar");
  EXPECT_EQ(without_compression("a.txt"), "a.txt");
  EXPECT_TRUE(is_archive_name("a.zip") && is_archive_name("a.tgz") && is_archive_name("a.tar") &&
              is_archive_name("a.tar.bz2"));
  EXPECT_FALSE(is_archive_name("a.txt.gz") || is_archive_name("zip") || is_archive_name("a.zip.txt"));
}

}  // namespace
}  // namespace rmoe::data
