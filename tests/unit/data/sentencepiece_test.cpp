// SentencePiece: trained models are deterministic and lossless, given ones are made so. This program has libtorch
// loaded, whose protobuf is another one than libsentencepiece's.
#include <algorithm>
#include <random>
#include <sstream>

#include <gtest/gtest.h>

#include "rmoe/base/files.h"
#include "rmoe/base/utf8.h"
#include "rmoe/data/tokenizer.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/data/expect_error.h"

namespace rmoe::data {
namespace {

using Ids = std::vector<int64_t>;

// Some hundred lines of made-up words.
const std::string& text() {
  static const std::string all = [] {
    const std::vector<std::string> stems{"rout",  "expert", "layer", "token", "gate",
                                         "state", "recurr", "model", "head",  "mix"};
    const std::vector<std::string> ends{"", "s", "er", "ing", "ed", "ent", "ally", "\xC3\xA9"};
    std::mt19937 random(3);
    std::string out;
    for (int line = 0; line < 400; ++line) {
      for (int word = 0; word < 12; ++word) {
        if (word > 0) out += ' ';
        out += stems[random() % stems.size()] + ends[random() % ends.size()];
      }
      out += '\n';
    }
    return out;
  }();
  return all;
}

std::string train(bool bpe, int64_t vocab_size = 400) {
  std::istringstream lines(text());
  return train_sentencepiece({.bpe = bpe, .vocab_size = vocab_size}, [&]() -> std::optional<std::string> {
    std::string line;
    return std::getline(lines, line) ? std::optional(line) : std::nullopt;
  });
}

class SentencePiece : public testing::TestWithParam<bool> {
 protected:
  static const Tokenizer& tokenizer() {
    static const std::unique_ptr<Tokenizer> made[2] = {make_sentencepiece_tokenizer(train(false), "unigram", false),
                                                       make_sentencepiece_tokenizer(train(true), "bpe", false)};
    return *made[GetParam()];
  }
};

TEST_P(SentencePiece, EqualLinesGiveAnEqualModel) { EXPECT_EQ(train(GetParam()), train(GetParam())); }

TEST_P(SentencePiece, LearnsPiecesLongerThanBytes) {
  EXPECT_EQ(tokenizer().vocab_size(), 400);
  EXPECT_LT(tokenizer().encode(text()).size() * 2, text().size());
  EXPECT_EQ(tokenizer().decode(tokenizer().encode(text())), text());
}

TEST_P(SentencePiece, KeepsEveryByteOfAnyText) {
  for (const char* sample : {"",
                             " ",
                             "\n",
                             "\n\n\n",
                             "  leading",
                             "trailing  ",
                             "a  b   c",
                             "\ttabs\t\t",
                             "\r\n",
                             "\xE2\x96\x81",
                             "routing\xE2\x96\x81layer",
                             "\xE4\xB8\xAD\xE6\x96\x87",
                             "\xF0\x9F\x98\x80",
                             "<unk> <s> </s> <0x0A>",
                             "e\xCC\x81 \xEF\xAC\x81",
                             "\xC2\xA0\xE3\x80\x80",
                             "\xEF\xBB\xBF"
                             "bom",
                             "\xFF\xC3",
                             "tail\xE4\xB8",
                             "\x01\x7F",
                             "\xE2\x96\x85\xE2\x96\x81 x"}) {
    EXPECT_EQ(tokenizer().decode(tokenizer().encode(sample)), sample);
  }
  const std::string zeros("a\0b\0\0", 5);
  EXPECT_EQ(tokenizer().decode(tokenizer().encode(zeros)), zeros);
}

TEST_P(SentencePiece, KeepsEveryByteOfRandomText) {
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    std::string sample;
    for (int i = 0; i < 40; ++i) {
      switch (random() % 6) {
        case 0:
          sample.push_back(static_cast<char>(random() % 256));
          break;
        case 1:
          append_utf8(static_cast<char32_t>(random() % 0xD800), sample);
          break;
        case 2:
          sample += ' ';
          break;
        case 3:
          sample += '\n';
          break;
        default:
          sample += text().substr(random() % 1000, random() % 9);
          break;
      }
    }
    EXPECT_EQ(tokenizer().decode(tokenizer().encode(sample)), sample);
  }
}

TEST_P(SentencePiece, DoesNotDependOnWhereTheTextIsCut) {
  std::string sample = text().substr(0, 3000) + "\xE4\xB8\xAD\n\n" + std::string(70'000, 'x') + "\xC3\xA9" +
                       std::string(66'000, 'y') + " end";
  const auto in_pieces = [&](size_t step) {
    Ids ids;
    const auto encoder = tokenizer().encoder();
    for (size_t i = 0; i < sample.size(); i += step) encoder->feed(std::string_view(sample).substr(i, step), ids);
    encoder->finish(ids);
    return ids;
  };
  const Ids whole = tokenizer().encode(sample);
  EXPECT_EQ(tokenizer().decode(whole), sample);
  for (const size_t step : {997u, 4096u, 65535u, 65536u, 65537u}) EXPECT_EQ(in_pieces(step), whole) << step;
  sample = sample.substr(0, 200);
  EXPECT_EQ(in_pieces(1), tokenizer().encode(sample));
}

TEST_P(SentencePiece, EndsDocumentsWithItsOwnEos) {
  ASSERT_TRUE(tokenizer().separator());
  EXPECT_EQ(tokenizer().decode(Ids{*tokenizer().separator()}), "");
  const Ids ids = tokenizer().encode("</s>" + text());
  EXPECT_EQ(std::ranges::count(ids, *tokenizer().separator()), 0);
}

TEST_P(SentencePiece, IsTheSameAfterSavingAndLoading) {
  const TempDir dir;
  tokenizer().save(dir.path());
  const auto loaded = Tokenizer::load(dir.path());
  EXPECT_EQ(loaded->hash(), tokenizer().hash());
  EXPECT_EQ(loaded->encode(text()), tokenizer().encode(text()));
  // The saved file is a model that may be given again, and gives the same tokenizer.
  EXPECT_EQ(make_sentencepiece_tokenizer(read_file(dir / "tokenizer.model"), "again", false)->hash(),
            tokenizer().hash());
  std::string model = read_file(dir / "tokenizer.model");
  model[model.size() / 2] ^= 1;
  write_file_atomic(dir / "tokenizer.model", model);
  EXPECT_ERROR(Tokenizer::load(dir.path()), Exit::kBadInput, "tokenizer.model: damaged");
  std::filesystem::remove(dir / "tokenizer.model");
  EXPECT_ERROR(Tokenizer::load(dir.path()), Exit::kIo, "tokenizer.model");
}

INSTANTIATE_TEST_SUITE_P(Algorithms, SentencePiece, testing::Bool(),
                         [](const auto& param) { return param.param ? "Bpe" : "Unigram"; });

TEST(SentencePieceTraining, RefusesAVocabularyThatDoesNotFitTheText) {
  EXPECT_ERROR(train(false, 259), Exit::kBadInput, "a vocabulary of 259, expected 260 to");
  EXPECT_ERROR(train(false, 100'000), Exit::kBadInput, "cannot train 100000 pieces", "too high", "--vocab-size");
  EXPECT_ERROR(train_sentencepiece({}, [] { return std::nullopt; }), Exit::kBadInput, "no text");
}

TEST(SentencePieceModel, RefusesWhatIsNoModel) {
  EXPECT_ERROR(make_sentencepiece_tokenizer("", "x.model", false), Exit::kBadInput,
               "x.model: not a SentencePiece model");
  EXPECT_ERROR(make_sentencepiece_tokenizer("hello world", "x.model", false), Exit::kBadInput, "x.model");
  std::string cut = train(false);
  cut.resize(cut.size() / 2);
  EXPECT_ERROR(make_sentencepiece_tokenizer(cut, "x.model", false), Exit::kBadInput, "x.model");
}

}  // namespace
}  // namespace rmoe::data
