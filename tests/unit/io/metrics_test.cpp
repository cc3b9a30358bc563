#include "rmoe/io/metrics.h"

#include <cmath>
#include <fstream>
#include <limits>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "tests/support/child.h"
#include "tests/support/temp_dir.h"

namespace rmoe::io {
namespace {

namespace fs = std::filesystem;

void put(const fs::path& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::vector<int64_t> steps_of(const fs::path& path) {
  std::vector<int64_t> steps;
  for (const Json& line : read_metrics(path)) steps.push_back(line.at("step").get<int64_t>());
  return steps;
}

class MetricsFileTest : public testing::Test {
 protected:
  // Opens a writer on a file with these bytes and returns what the file then holds.
  std::string opened(std::string_view bytes) {
    put(path_, bytes);
    MetricsWriter writer(path_);
    return read_file(path_);
  }

  TempDir dir_;
  fs::path path_ = dir_ / "metrics.jsonl";
};

TEST_F(MetricsFileTest, LinesComeBackInOrderAndAreThereAtOnce) {
  MetricsWriter writer(path_);
  EXPECT_TRUE(read_metrics(path_).empty());
  writer.write({{"kind", "train"}, {"step", 1}, {"loss", 0.1}});
  EXPECT_EQ(read_file(path_), "{\"kind\":\"train\",\"step\":1,\"loss\":0.1}\n");
  writer.write({{"kind", "eval"}, {"text", "a\nb\xe2\x82\xac\""}, {"step", 2}});
  std::vector<Json> lines = read_metrics(path_);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].at("loss").get<double>(), 0.1);
  EXPECT_EQ(lines[1].at("text").get<std::string>(), "a\nb\xe2\x82\xac\"");
  EXPECT_EQ(lines[1].begin().key(), "kind");
}

TEST_F(MetricsFileTest, NumbersThatAreNotFiniteAreNull) {
  MetricsWriter(path_).write({{"a", std::nan("")}, {"b", -std::numeric_limits<double>::infinity()}});
  EXPECT_EQ(read_file(path_), "{\"a\":null,\"b\":null}\n");
}

TEST_F(MetricsFileTest, ASecondWriterAppends) {
  MetricsWriter(path_).write({{"step", 1}});
  MetricsWriter(path_).write({{"step", 2}});
  EXPECT_EQ(steps_of(path_), (std::vector<int64_t>{1, 2}));
}

TEST_F(MetricsFileTest, OpeningCutsATornEnd) {
  EXPECT_EQ(opened(""), "");
  EXPECT_EQ(opened("{\"step\":1}\n"), "{\"step\":1}\n");
  std::string line = "{\"step\":1}\n";
  std::string second = "{\"step\":22}";
  for (size_t n = 0; n < second.size(); ++n) {
    EXPECT_EQ(opened(line + second.substr(0, n)), line);
    EXPECT_EQ(opened(second.substr(0, n)), "");
  }
  EXPECT_EQ(opened(line + second), line + second + "\n");  // whole, only its end is missing
  EXPECT_EQ(opened(line + std::string(100, '\0')), line);
  EXPECT_EQ(opened(line + std::string(200'000, 'x')), line);
  EXPECT_EQ(opened(std::string(200'000, 'x')), "");
  EXPECT_EQ(opened(line + "22"), line);  // JSON, but no object
}

TEST_F(MetricsFileTest, ReadingIgnoresATornEndOnly) {
  put(path_, "{\"step\":1}\n{\"step\":2}\n{\"st");
  EXPECT_EQ(steps_of(path_), (std::vector<int64_t>{1, 2}));
  put(path_, "{\"step\":1}\n{\"step\":2}");
  EXPECT_EQ(steps_of(path_), (std::vector<int64_t>{1, 2}));
  for (const char* bad : {"{\"step\":1}\n{\"st\n{\"step\":3}\n", "{\"step\":1}\n[2]\n{\"step\":3}\n",
                          "{\"step\":1}\n\n{\"step\":3}\n", "{\"step\":1}\n{\"a\":1,\"a\":2}\n"}) {
    put(path_, bad);
    try {
      read_metrics(path_);
      ADD_FAILURE() << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Exit::kBadInput);
      EXPECT_EQ(error.message().find(path_.string() + ":2"), 0u) << error.what();
      EXPECT_EQ(error.message().find('\n'), std::string::npos) << error.what();
    }
  }
  fs::remove(path_);
  EXPECT_THROW(read_metrics(path_), Error);
}

TEST_F(MetricsFileTest, TruncateAfterKeepsWhatTheResumedRunWillNotRepeat) {
  put(path_,
      "{\"kind\":\"start\"}\n{\"step\":9,\"a\":1}\n{\"step\":10}\nbroken\n{\"step\":10,\"kind\":\"eval\"}\n"
      "{\"step\":11}\n{\"step\":1000000000000}\n{\"kind\":\"note\"}\n{\"step\":1");
  MetricsWriter writer(path_);
  EXPECT_EQ(writer.truncate_after(10), 3);
  std::string kept =
      "{\"kind\":\"start\"}\n{\"step\":9,\"a\":1}\n{\"step\":10}\n{\"step\":10,\"kind\":\"eval\"}\n{\"kind\":\"note\"}"
      "\n";
  EXPECT_EQ(read_file(path_), kept);
  writer.write({{"step", 11}});
  EXPECT_EQ(read_file(path_), kept + "{\"step\":11}\n");
  EXPECT_EQ(writer.truncate_after(11), 0);
  EXPECT_EQ(writer.truncate_after(-1), 4);
}

TEST_F(MetricsFileTest, AFullDiskIsAnErrorAndLeavesWholeLines) {
  ChildResult result = run_in_child([&]() -> std::string {
    limit_file_size(1000);
    MetricsWriter writer(path_);
    int64_t lines = 0;
    try {
      for (;; ++lines) writer.write({{"step", lines}, {"text", "some text of forty characters, more or less"}});
    } catch (const Error& error) {
      if (error.code() != Exit::kIo || lines < 5) return "wrong";
      if (!read_file(path_).ends_with("}\n") || read_metrics(path_).size() != static_cast<size_t>(lines)) return "torn";
      writer.write({{"step", 1}});  // short enough
      return error.what();
    }
  });
  EXPECT_EQ(result.text, "cannot write " + path_.string() + ": File too large");
}

TEST_F(MetricsFileTest, AFileThatCannotBeOpenedIsAnErrorThatNamesIt) {
  try {
    MetricsWriter writer(dir_ / "missing" / "metrics.jsonl");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::kIo);
    EXPECT_NE(error.message().find((dir_ / "missing/metrics.jsonl").string()), std::string::npos);
  }
}

}  // namespace
}  // namespace rmoe::io
