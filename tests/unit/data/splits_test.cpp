// Splits: every byte of the text goes to exactly one, always the same.
#include "rmoe/data/splits.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "rmoe/base/utf8.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/data/expect_error.h"
#include "tests/unit/data/pack.h"

namespace rmoe::data {
namespace {

struct Collected : SplitSink {
  std::array<std::vector<std::string>, kSplits> documents;
  std::array<std::string, kSplits> open;
  void text(Split split, std::string_view piece) override {
    EXPECT_FALSE(piece.empty());
    open[split].append(piece);
  }
  void end_document(Split split) override {
    EXPECT_FALSE(open[split].empty());
    documents[split].push_back(std::exchange(open[split], {}));
  }
  std::string all(Split split) const {
    std::string text;
    for (const std::string& document : documents[split]) text += document;
    return text;
  }
};

class Splits : public testing::Test {
 protected:
  void write(const std::string& name, const std::string& text) {
    write_file_atomic(dir_ / name, text);
    inputs_.push_back(dir_ / name);
  }
  Collected read(const SplitRule& rule) {
    Collected collected;
    read_split(Corpus(inputs_, {}), rule, collected);
    for (const std::string& rest : collected.open) EXPECT_EQ(rest, "");
    return collected;
  }

  TempDir dir_;
  std::vector<std::filesystem::path> inputs_;
};

using Texts = std::vector<std::string>;
using Cut = SplitRule::Cut;

TEST_F(Splits, WholePartsGoWhereTheyBelong) {
  write("a.txt", "one");
  EXPECT_EQ(read({.by = SplitRule::By::kWhole, .whole = kTest}).documents[kTest], Texts{"one"});
}

TEST_F(Splits, RangesAreCutAfterTheNextLineFeed) {
  write("a.txt", "aaaa\nbbbb\ncccc\ndddd\n");
  const auto got = read({.valid_at = 11, .test_at = 15});
  EXPECT_EQ(got.documents[kTrain], Texts{"aaaa\nbbbb\ncccc\n"});
  EXPECT_EQ(got.documents[kValid], Texts{"dddd\n"});  // the second cut is already reached at its start
  EXPECT_TRUE(got.documents[kTest].empty());
}

TEST_F(Splits, RangesAreCutAtTheByteWhereTheLiteratureDoes) {
  std::string text;
  for (int i = 0; i < 2'000'000; ++i) text.push_back(static_cast<char>(i * 31 % 251));
  write("a.txt", text);
  const auto got = read({.valid_at = 1'800'000, .test_at = 1'900'000, .cut = Cut::kByte});
  EXPECT_EQ(got.documents[kTrain], Texts{text.substr(0, 1'800'000)});
  EXPECT_EQ(got.documents[kValid], Texts{text.substr(1'800'000, 100'000)});
  EXPECT_EQ(got.documents[kTest], Texts{text.substr(1'900'000)});
}

TEST_F(Splits, CharactersAreNotCut) {
  write("a.txt", "\xC3\xA9\xC3\xA9\xF0\x9F\x98\x80z");
  const auto got = read({.valid_at = 3, .test_at = 5, .cut = Cut::kCharacter});
  EXPECT_EQ(got.all(kTrain), "\xC3\xA9\xC3\xA9");
  EXPECT_EQ(got.all(kValid), "\xF0\x9F\x98\x80");
  EXPECT_EQ(got.all(kTest), "z");
}

TEST_F(Splits, AVeryLongLineIsCutBeforeACharacter) {
  std::string text = "x";
  for (int i = 0; i < 700'000; ++i) text += "\xC3\xA9";
  write("a.txt", text);
  const auto got = read({.valid_at = 1'000'000, .test_at = 1'200'000});
  EXPECT_EQ(got.all(kTrain).size(), 1'000'000u + 65536u + 1u);
  EXPECT_EQ(got.all(kValid).size(), 200'000u);
  EXPECT_EQ(first_invalid(got.all(kTrain)), std::nullopt);
  EXPECT_EQ(got.all(kTrain) + got.all(kValid) + got.all(kTest), text);
}

TEST_F(Splits, TheEndOfADocumentIsAlsoACut) {
  write("a.txt", "aaaa");
  write("b.txt", "bbbb");
  write("c.txt", "cccc");
  const auto got = read({.valid_at = 3, .test_at = 7});
  EXPECT_EQ(got.documents[kTrain], Texts{"aaaa"});
  EXPECT_EQ(got.documents[kValid], Texts{"bbbb"});
  EXPECT_EQ(got.documents[kTest], Texts{"cccc"});
}

TEST_F(Splits, EqualCutsLeaveTheSplitBetweenOut) {
  write("a.txt", "a\nb\nc\nd\n");
  const auto got = read({.valid_at = 3, .test_at = 3});
  EXPECT_EQ(got.all(kTrain), "a\nb\n");
  EXPECT_EQ(got.all(kValid), "");
  EXPECT_EQ(got.all(kTest), "c\nd\n");
  const auto none = read({.valid_at = 8, .test_at = 8});
  EXPECT_EQ(none.all(kTrain), "a\nb\nc\nd\n");
}

TEST_F(Splits, RangesHoldTheWholeTextInOrder) {
  std::string text;
  for (int i = 0; i < 300'000; ++i) text += std::to_string(i) + (i % 7 ? " " : "\n");
  write("a.txt", text);
  for (const Cut cut : {Cut::kByte, Cut::kCharacter, Cut::kLine}) {
    const auto size = static_cast<int64_t>(text.size());
    const auto got = read({.valid_at = size * 9 / 10, .test_at = size * 95 / 100, .cut = cut});
    EXPECT_EQ(got.all(kTrain) + got.all(kValid) + got.all(kTest), text);
    EXPECT_NEAR(static_cast<double>(got.all(kValid).size()), static_cast<double>(size) * 0.05, 60);
    EXPECT_NEAR(static_cast<double>(got.all(kTest).size()), static_cast<double>(size) * 0.05, 60);
  }
}

TEST_F(Splits, DocumentsAreChosenByWhatTheySay) {
  std::string lines, shuffled;
  for (int i = 0; i < 3000; ++i) lines += "{\"text\": \"document " + std::to_string(i * 7919 % 3000) + "\"}\n";
  for (int i = 0; i < 3000; ++i) shuffled += "{\"text\": \"document " + std::to_string(i) + "\"}\n";
  write("a.jsonl", lines);
  const SplitRule rule{.by = SplitRule::By::kDocuments, .valid = 0.1, .test = 0.2, .seed = 4};
  auto got = read(rule);
  EXPECT_NEAR(static_cast<double>(got.documents[kValid].size()), 300, 60);
  EXPECT_NEAR(static_cast<double>(got.documents[kTest].size()), 600, 80);
  EXPECT_EQ(got.documents[kTrain].size() + got.documents[kValid].size() + got.documents[kTest].size(), 3000u);

  inputs_.clear();
  write("b.jsonl", shuffled);
  auto again = read(rule);
  for (const Split split : {kTrain, kValid, kTest}) {  // another order, the same choice
    std::ranges::sort(got.documents[split]);
    std::ranges::sort(again.documents[split]);
    EXPECT_EQ(got.documents[split], again.documents[split]);
  }
  SplitRule other = rule;
  other.seed = 5;
  auto differs = read(other);
  std::ranges::sort(differs.documents[kTest]);
  EXPECT_NE(differs.documents[kTest], again.documents[kTest]);
}

TEST_F(Splits, CopiesOfADocumentStayTogether) {
  const std::string line = "{\"text\": \"the same\"}\n";
  std::string lines;
  for (int i = 0; i < 100; ++i) lines += line;
  write("a.jsonl", lines);
  const auto got = read({.by = SplitRule::By::kDocuments, .valid = 0.3, .test = 0.3, .seed = 1});
  EXPECT_EQ(std::max({got.documents[kTrain].size(), got.documents[kValid].size(), got.documents[kTest].size()}), 100u);
}

TEST_F(Splits, LongDocumentsAreWhole) {
  for (int i = 0; i < 5; ++i) write(std::to_string(i) + ".txt", std::string(200'000 + i, static_cast<char>('a' + i)));
  const auto got = read({.by = SplitRule::By::kDocuments, .valid = 0.3, .test = 0.3, .seed = 2});
  size_t documents = 0;
  for (const Split split : {kTrain, kValid, kTest}) {
    for (const std::string& document : got.documents[split]) {
      ++documents;
      EXPECT_EQ(document.size(), 200'000u + static_cast<size_t>(document[0] - 'a'));
      EXPECT_EQ(document.find_first_not_of(document[0]), document.npos);
    }
  }
  EXPECT_EQ(documents, 5u);
}

}  // namespace
}  // namespace rmoe::data
