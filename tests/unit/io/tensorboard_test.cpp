// The bytes of event files; tests/python/tensorboard_test.py reads them with the tensorboard package.
#include "rmoe/io/tensorboard.h"

#include <bit>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "tests/support/child.h"
#include "tests/support/temp_dir.h"

namespace rmoe::io {
namespace {

using namespace std::string_literals;

uint32_t crc_of(std::string_view bytes) { return crc32c(std::as_bytes(std::span(bytes))); }

TEST(Crc32c, MatchesThePublishedVectors) {
  EXPECT_EQ(crc_of(""), 0u);
  EXPECT_EQ(crc_of("123456789"), 0xe3069283u);            // the check value of CRC-32/ISCSI
  EXPECT_EQ(crc_of(std::string(32, '\0')), 0x8a9136aau);  // RFC 3720, B.4
  EXPECT_EQ(crc_of(std::string(32, '\xff')), 0x62a8ab43u);
  std::string counting(32, '\0');
  for (size_t i = 0; i < 32; ++i) counting[i] = static_cast<char>(i);
  EXPECT_EQ(crc_of(counting), 0x46dd794eu);
}

// The payloads of a file's records, after comparing every checksum.
std::vector<std::string> records(const std::filesystem::path& path) {
  std::string bytes = read_file(path);
  std::vector<std::string> payloads;
  auto masked = [](std::string_view data) {
    uint32_t crc = crc_of(data);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
  };
  auto u32 = [&](size_t at) {
    uint32_t value = 0;
    std::memcpy(&value, bytes.data() + at, 4);
    return value;
  };
  size_t at = 0;
  while (at + 16 <= bytes.size()) {
    uint64_t length = 0;
    std::memcpy(&length, bytes.data() + at, 8);
    EXPECT_EQ(u32(at + 8), masked(std::string_view(bytes).substr(at, 8)));
    payloads.push_back(bytes.substr(at + 12, length));
    EXPECT_EQ(u32(at + 12 + length), masked(payloads.back()));
    at += 16 + length;
  }
  EXPECT_EQ(at, bytes.size());
  return payloads;
}

std::string doubled(double value) {
  std::string out(8, '\0');
  std::memcpy(out.data(), &value, 8);
  return out;
}

TEST(EventWriter, WritesTheDocumentedMessages) {
  TempDir dir;
  std::filesystem::path path;
  {
    EventWriter events(dir / "tensorboard", 300);
    events.add_scalar("loss", 300, 1.5, 2.0);
    events.add_scalar("loss", -1, 0.0, 2.0);
    events.add_text("t", 1, "hi", 3.0);
    path = events.path();
  }
  EXPECT_EQ(path.parent_path(), dir / "tensorboard");
  EXPECT_TRUE(path.filename().string().starts_with("events.out.tfevents."));
  std::vector<std::string> payloads = records(path);
  ASSERT_EQ(payloads.size(), 5u);
  EXPECT_EQ(payloads[0].substr(9), "\x1a\x0d"s + "brain.Event:2");
  EXPECT_EQ(payloads[1].substr(9), "\x10\xac\x02\x3a\x02\x08\x01"s);
  EXPECT_EQ(payloads[2], "\x09" + doubled(2) + "\x10\xac\x02"s + "\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\xc0\x3f"s);
  EXPECT_EQ(payloads[3].substr(9, 11), "\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"s);
  EXPECT_EQ(payloads[4], "\x09" + doubled(3) + "\x10\x01"s + "\x2a\x2a\x0a\x28\x0a\x0et/text_summary"s +
                             "\x42\x0c\x08\x07\x12\x04\x12\x02\x08\x01\x42\x02hi"s + "\x4a\x08\x0a\x06\x0a\x04text"s);
}

TEST(EventWriter, WritersOfOneFolderDoNotShareAFile) {
  TempDir dir;
  EventWriter first(dir.path());
  EventWriter second(dir.path());
  EXPECT_NE(first.path(), second.path());
  first.add_scalar("a", 1, 1);
  EXPECT_EQ(records(first.path()).size(), 2u);  // there at once
  EXPECT_EQ(records(second.path()).size(), 1u);
}

TEST(EventWriter, AFullDiskIsAnErrorAndLeavesWholeRecords) {
  TempDir dir;
  ChildResult result = run_in_child([&]() -> std::string {
    limit_file_size(1000);
    EventWriter events(dir.path());
    try {
      for (int64_t step = 0;; ++step) events.add_scalar("a tag of some length", step, 1);
    } catch (const Error& error) {
      std::string message = error.what();
      return error.code() == Exit::kIo && message.find(events.path().string()) != std::string::npos ? "ok" : message;
    }
  });
  EXPECT_EQ(result.text, "ok");
  EXPECT_GT(records(std::filesystem::directory_iterator(dir.path())->path()).size(), 5u);
}

TEST(EventWriter, AFolderThatCannotBeMadeIsAnError) {
  TempDir dir;
  std::ofstream(dir / "file") << "x";
  try {
    EventWriter events(dir / "file");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::kIo);
    EXPECT_NE(error.message().find((dir / "file").string()), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace rmoe::io
