#include "rmoe/io/trace_file.h"

#include <cstring>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "tests/support/temp_dir.h"

namespace rmoe::io {
namespace {

TraceLayout layout_of(const char* fields) {
  return {.layers = 3, .slots = 2, .experts = 5, .state_width = 4, .fields = TraceFields::parse(fields)};
}

// Records of counting bytes.
std::string write_trace(const std::filesystem::path& path, const TraceLayout& layout, int64_t records) {
  TraceWriter writer(path, layout);
  std::string bytes;
  for (int64_t i = 0; i < records; ++i) {
    std::string record(static_cast<size_t>(layout.record_bytes()), static_cast<char>(i + 1));
    writer.append(std::as_bytes(std::span(record)));
    bytes += record;
  }
  writer.finish({{"source", "test"}});
  return bytes;
}

std::string message_of(const std::filesystem::path& path) {
  try {
    TraceFile::open(path);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::kBadInput);
    EXPECT_EQ(error.message().find('\n'), std::string::npos);
    return error.message();
  }
  return "";
}

TEST(TraceFile, GivesBackWhatWasWritten) {
  const TempDir dir;
  for (const char* fields : {"", "tokens", "probs,states", "all"}) {
    const TraceLayout layout = layout_of(fields);
    const std::string bytes = write_trace(dir / "t.npy", layout, 7);
    const TraceFile trace = TraceFile::open(dir / "t.npy");
    ASSERT_EQ(trace.records(), 7);
    EXPECT_EQ(trace.layout(), layout);
    EXPECT_EQ(trace.info().at("source"), "test");
    EXPECT_EQ(std::memcmp(trace.record(0), bytes.data(), bytes.size()), 0);
    EXPECT_FALSE(std::filesystem::exists(dir / "t.npy.tmp"));
  }
}

TEST(TraceFile, RecordsArePackedInOrder) {
  const auto fields = layout_of("all").record();
  int64_t offset = 0;
  for (const auto& field : fields) {
    EXPECT_EQ(field.offset, offset) << field.name;
    offset += field.bytes;
  }
  EXPECT_EQ(offset, 4 + 8 + 4 + 3 * 2 * 2 + 3 * 2 * 4 + 3 * (3 * 5 * 4) + 3 * 4 * 4);
  TraceLayout many = layout_of("");
  many.experts = 40000;
  EXPECT_EQ(many.record()[2].type, "<i4");
}

TEST(TraceFile, EveryTruncationIsRefused) {
  const TempDir dir;
  write_trace(dir / "t.npy", layout_of("tokens"), 5);
  const auto size = std::filesystem::file_size(dir / "t.npy");
  for (uintmax_t cut = 1; cut <= size; cut += 7) {
    std::filesystem::copy_file(dir / "t.npy", dir / "cut.npy", std::filesystem::copy_options::overwrite_existing);
    std::filesystem::resize_file(dir / "cut.npy", size - cut);
    EXPECT_NE(message_of(dir / "cut.npy"), "") << cut;
  }
  std::filesystem::resize_file(dir / "t.npy", size - 20);
  EXPECT_NE(message_of(dir / "t.npy").find("truncated"), std::string::npos);
}

TEST(TraceFile, ForeignAndDamagedFilesAreRefused) {
  const TempDir dir;
  write_file_atomic(dir / "text", "a text, not a trace at all, but long enough for a footer");
  EXPECT_NE(message_of(dir / "text").find("not a routing trace"), std::string::npos);
  write_trace(dir / "t.npy", layout_of(""), 2);
  std::string bytes = read_file(dir / "t.npy");
  bytes[30] = 'X';  // in the header
  write_file_atomic(dir / "damaged.npy", bytes);
  EXPECT_NE(message_of(dir / "damaged.npy").find("damaged"), std::string::npos);
  EXPECT_THROW(TraceFile::open(dir / "missing.npy"), Error);
}

TEST(TraceWriter, LeavesNothingWithoutFinish) {
  const TempDir dir;
  {
    TraceWriter writer(dir / "t.npy", layout_of(""));
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(TraceFields, UnknownNamesAreRefused) {
  EXPECT_EQ(TraceFields::parse("probs,tokens").names(), (std::vector<std::string>{"tokens", "probs"}));
  EXPECT_EQ(TraceFields::parse("all").names().size(), 5U);
  EXPECT_THROW(TraceFields::parse("score"), Error);
  EXPECT_THROW(TraceFields::parse("probs,,tokens"), Error);
}

TEST(TokenSlice, AsPythonsSlices) {
  const TokenSlice s = TokenSlice::parse("10:20:3");
  std::vector<int64_t> in;
  for (int64_t i = 0; i < 30; ++i) {
    if (s.contains(i)) in.push_back(i);
  }
  EXPECT_EQ(in, (std::vector<int64_t>{10, 13, 16, 19}));
  EXPECT_TRUE(TokenSlice::parse(":").all());
  EXPECT_TRUE(TokenSlice::parse("::4").contains(8));
  for (const char* bad : {"", "5", "5:3", "a:b", "1:2:0", "1:2:3:4", "-1:4"}) {
    EXPECT_THROW(TokenSlice::parse(bad), Error) << bad;
  }
}

}  // namespace
}  // namespace rmoe::io
