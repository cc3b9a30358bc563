// The byte, char and word tokenizers, their files and the streaming decoder.
#include "rmoe/data/tokenizer.h"

#include <algorithm>
#include <random>

#include <gtest/gtest.h>

#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/base/utf8.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/data/expect_error.h"

namespace rmoe::data {
namespace {

using Ids = std::vector<int64_t>;

std::unique_ptr<Tokenizer> letters(bool unknown = false, bool separated = false) {
  return make_char_tokenizer({'\n', ' ', 'a', 'b', 0xE9, 0x1F600}, false, unknown, separated);
}

std::unique_ptr<Tokenizer> words(bool separated = false) {
  return make_word_tokenizer({"the", "<eos>", "cat", "<unk>", "sat"}, separated);
}

// The ids of a document that comes in pieces of `step` bytes.
Ids encode_in_pieces(const Tokenizer& tokenizer, std::string_view text, size_t step) {
  Ids ids;
  const auto encoder = tokenizer.encoder();
  for (size_t i = 0; i < text.size(); i += step) encoder->feed(text.substr(i, step), ids);
  encoder->finish(ids);
  return ids;
}

TEST(ByteTokenizer, TakesAnyBytesAndGivesThemBack) {
  std::string all;
  for (int i = 0; i < 512; ++i) all.push_back(static_cast<char>(i * 37));
  const auto tokenizer = make_byte_tokenizer(false);
  EXPECT_EQ(tokenizer->vocab_size(), 256);
  EXPECT_EQ(tokenizer->separator(), std::nullopt);
  EXPECT_EQ(tokenizer->encode("a\xFF"), (Ids{97, 255}));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(all)), all);
  const auto separated = make_byte_tokenizer(true);
  EXPECT_EQ(separated->vocab_size(), 257);
  EXPECT_EQ(separated->separator(), 256);
  EXPECT_EQ(separated->decode(Ids{97, 256, 98}), "ab");
  EXPECT_NE(separated->hash(), tokenizer->hash());
  EXPECT_ERROR(tokenizer->decode(Ids{256}), Exit::kBadInput, "id 256, expected 0 to 255");
}

TEST(CharTokenizer, GivesOneIdPerCharacter) {
  const auto tokenizer = letters();
  EXPECT_EQ(tokenizer->encode("ab \xC3\xA9\xF0\x9F\x98\x80\n"), (Ids{2, 3, 1, 4, 5, 0}));
  EXPECT_EQ(tokenizer->decode(Ids{2, 3, 1, 4, 5, 0}), "ab \xC3\xA9\xF0\x9F\x98\x80\n");
  EXPECT_FALSE(tokenizer->characters_are_bytes());
  EXPECT_TRUE(tokenizer->needs_utf8());
}

TEST(CharTokenizer, RefusesOrMarksWhatTheVocabularyLacks) {
  EXPECT_ERROR(letters()->encode("abc"), Exit::kBadInput, "character 'c' (U+63) is not in the vocabulary");
  const auto with_unknown = letters(/*unknown=*/true, /*separated=*/true);
  EXPECT_EQ(with_unknown->unknown(), 6);
  EXPECT_EQ(with_unknown->separator(), 7);
  EXPECT_EQ(with_unknown->vocab_size(), 8);
  EXPECT_EQ(with_unknown->encode("acb"), (Ids{2, 6, 3}));
  EXPECT_EQ(with_unknown->decode(Ids{2, 6, 7, 3}),
            "a\xEF\xBF\xBD"
            "b");
  EXPECT_ERROR(letters()->encode("a\xC3"), Exit::kBadInput, "not valid UTF-8");
}

TEST(CharTokenizer, ByteUnitsAreTheVocabularyOfEnwik8) {
  const auto tokenizer = make_char_tokenizer({10, 97, 0xA9, 0xC3}, true, false, false);
  EXPECT_EQ(tokenizer->encode("a\xC3\xA9\n"), (Ids{1, 3, 2, 0}));
  EXPECT_TRUE(tokenizer->characters_are_bytes());
  EXPECT_FALSE(tokenizer->needs_utf8());
  EXPECT_ERROR(tokenizer->encode("b"), Exit::kBadInput, "byte 0x62");
}

TEST(WordTokenizer, FollowsTheWikiTextProtocol) {
  const auto tokenizer = words();
  EXPECT_EQ(tokenizer->unknown(), 3);
  Ids ids = encode_in_pieces(*tokenizer, " the cat \n\n the dog\tsat", 1000);
  EXPECT_EQ(ids, (Ids{0, 2, 1, 1, 0, 3, 4, 1}));         // the last line ends although it has no line feed
  EXPECT_EQ(tokenizer->encode("the cat"), (Ids{0, 2}));  // a prompt goes on
  EXPECT_EQ(tokenizer->encode("the cat\n"), (Ids{0, 2, 1}));
  EXPECT_EQ(tokenizer->encode("the\xC2\xA0"
                              "cat"),
            (Ids{0, 2}));  // a no-break space, as Python splits
  EXPECT_EQ(tokenizer->encode("<unk> <eos>"), (Ids{3, 1}));
}

TEST(WordTokenizer, WritesOneSpaceBetweenWordsAndALineFeedForEos) {
  const auto tokenizer = words(/*separated=*/true);
  EXPECT_EQ(tokenizer->separator(), 5);
  EXPECT_EQ(tokenizer->decode(Ids{0, 2, 1, 1, 4, 3, 1, 5, 0}), "the cat\n\nsat <unk>\nthe");
}

TEST(WordTokenizer, RefusesAWordWithoutEnd) {
  Ids ids;
  const auto tokenizer = words();
  EXPECT_ERROR(encode_in_pieces(*tokenizer, std::string(2 << 20, 'x'), 1 << 16), Exit::kBadInput, "a word of more than",
               "char or sentencepiece");
}

TEST(WordTokenizer, RefusesAVocabularyThatCannotBe) {
  EXPECT_ERROR(make_word_tokenizer({"a", "<eos>"}, false), Exit::kBadInput, "lacks <unk>");
  EXPECT_ERROR(make_word_tokenizer({"a", "<eos>", "<unk>", "a"}, false), Exit::kBadInput, "'a' more than once");
}

TEST(Encoders, DoNotDependOnWhereTheTextIsCut) {
  const std::string text = "a\xC3\xA9 b\n\xF0\x9F\x98\x80  the cat\xE3\x80\x80sat \n\n on the mat";
  const auto chars = letters(/*unknown=*/true);
  const auto by_words = words();
  for (size_t step = 1; step < text.size(); ++step) {
    EXPECT_EQ(encode_in_pieces(*chars, text, step), chars->encode(text)) << step;
    EXPECT_EQ(encode_in_pieces(*by_words, text, step), encode_in_pieces(*by_words, text, 1000)) << step;
  }
}

TEST(Decoder, WithholdsBytesUntilACharacterIsWhole) {
  const auto tokenizer = make_byte_tokenizer(false);
  const auto decoder = tokenizer->decoder();
  EXPECT_EQ(decoder->feed('a'), "a");
  EXPECT_EQ(decoder->feed(0xF0), "");
  EXPECT_EQ(decoder->feed(0x9F), "");
  EXPECT_EQ(decoder->feed(0x98), "");
  EXPECT_EQ(decoder->feed(0x80), "\xF0\x9F\x98\x80");
  EXPECT_EQ(decoder->feed(0xC3), "");
  EXPECT_EQ(decoder->feed('x'), "\xC3x");  // it cannot become a character any more
  EXPECT_EQ(decoder->feed(0xE4), "");
  EXPECT_EQ(decoder->finish(), "\xE4");
  EXPECT_EQ(decoder->finish(), "");
}

TEST(Decoder, GivesWholeCharactersForValidText) {
  const auto tokenizer = make_byte_tokenizer(false);
  std::mt19937 random(2);
  std::string text;
  for (int i = 0; i < 3000; ++i) append_utf8(static_cast<char32_t>(random() % (random() % 2 ? 0xD800 : 0x100)), text);
  const auto decoder = tokenizer->decoder();
  std::string out;
  for (const int64_t id : tokenizer->encode(text)) {
    const std::string piece = decoder->feed(id);
    EXPECT_EQ(first_invalid(piece), std::nullopt);
    out += piece;
  }
  EXPECT_EQ(out, text);
}

TEST(Decoder, GivesTheSameBytesInAllWhateverTheyAre) {
  const auto tokenizer = make_byte_tokenizer(false);
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    Ids ids;
    std::string text;
    for (int i = 0; i < 60; ++i) {
      // Mostly bytes that begin or continue characters.
      const auto byte = static_cast<unsigned char>(random() % 3 ? 0x80 + random() % 0x80 : random() % 256);
      ids.push_back(byte);
      text.push_back(static_cast<char>(byte));
    }
    const auto decoder = tokenizer->decoder();
    std::string out;
    for (const int64_t id : ids) out += decoder->feed(id);
    EXPECT_EQ(out + decoder->finish(), text);
  }
}

class TokenizerFiles : public testing::Test {
 protected:
  void expect_same_after_loading(const Tokenizer& tokenizer) {
    tokenizer.save(dir_.path());
    for (const auto& path : {dir_.path(), dir_ / "tokenizer.json"}) {
      const auto loaded = Tokenizer::load(path);
      EXPECT_EQ(loaded->hash(), tokenizer.hash());
      EXPECT_EQ(loaded->kind(), tokenizer.kind());
      EXPECT_EQ(loaded->vocab_size(), tokenizer.vocab_size());
      EXPECT_EQ(loaded->separator(), tokenizer.separator());
      EXPECT_EQ(loaded->unknown(), tokenizer.unknown());
      EXPECT_EQ(loaded->characters_are_bytes(), tokenizer.characters_are_bytes());
      EXPECT_EQ(loaded->encode("a b\n"), tokenizer.encode("a b\n"));
    }
  }

  void expect_refused(const std::string& from, const std::string& to, const char* message) {
    letters(true, true)->save(dir_.path());
    std::string text = read_file(dir_ / "tokenizer.json");
    const size_t at = text.find(from);
    ASSERT_NE(at, text.npos) << text;
    write_file_atomic(dir_ / "tokenizer.json", text.replace(at, from.size(), to));
    EXPECT_ERROR(Tokenizer::load(dir_.path()), Exit::kBadInput, "tokenizer.json", message);
  }

  TempDir dir_;
};

TEST_F(TokenizerFiles, HoldEverythingThatMattersForTheIds) {
  expect_same_after_loading(*make_byte_tokenizer(false));
  expect_same_after_loading(*make_byte_tokenizer(true));
  expect_same_after_loading(*letters(false, true));
  expect_same_after_loading(*letters(true, false));
  expect_same_after_loading(*make_char_tokenizer({'\n', ' ', 'a', 'b', 255}, true, false, false));
  expect_same_after_loading(*words(false));
  expect_same_after_loading(*words(true));
  expect_same_after_loading(*make_word_tokenizer({"\"quoted\\\"", "<eos>", "\xC3\xA9", "<unk>", "\x01"}, true));
}

TEST_F(TokenizerFiles, HashesDifferWhereIdsDo) {
  std::vector<uint64_t> hashes{make_byte_tokenizer(false)->hash(),
                               make_byte_tokenizer(true)->hash(),
                               letters(false, false)->hash(),
                               letters(true, false)->hash(),
                               letters(false, true)->hash(),
                               make_char_tokenizer({'a', 'b'}, false, false, false)->hash(),
                               make_char_tokenizer({'a', 'b'}, true, false, false)->hash(),
                               words(false)->hash(),
                               words(true)->hash(),
                               make_word_tokenizer({"<eos>", "the", "cat", "<unk>", "sat"}, false)->hash()};
  std::ranges::sort(hashes);
  EXPECT_EQ(std::ranges::adjacent_find(hashes), hashes.end());
  EXPECT_EQ(words(true)->hash(), words(true)->hash());
}

TEST_F(TokenizerFiles, RefuseWhatIsDamagedOrEdited) {
  expect_refused("rmoe-tokenizer", "other", "not a tokenizer of rmoe");
  expect_refused("\"version\":1", "\"version\":2", "version 2, expected 1");
  expect_refused("\"char\"", "\"chars\"", "kind 'chars'");
  expect_refused("[10,", "[11,", "damaged or edited");
  expect_refused("[10,", "[99,", "not an ascending list");
  expect_refused("[10,", "[\"x\",", "not an ascending list");
  expect_refused("[10,", "[-1,", "not an ascending list");
  expect_refused("\"vocab_size\":8", "\"vocab_size\":9", "damaged or edited");
  expect_refused("\"separator\":7", "\"separator\":5", "damaged or edited");
  expect_refused("\"hash\":\"", "\"hash\":\"x", "is not a hash");
  expect_refused("\"unit\":\"character\"", "\"unit\":\"glyph\"", "'unit' is 'glyph'");
  expect_refused("]", "", "tokenizer.json");
}

TEST_F(TokenizerFiles, AreAnErrorWhenMissing) {
  EXPECT_ERROR(Tokenizer::load(dir_.path()), Exit::kIo, "tokenizer.json");
  write_file_atomic(dir_ / "tokenizer.json", "[]");
  EXPECT_ERROR(Tokenizer::load(dir_.path()), Exit::kBadInput, "not a tokenizer of rmoe");
}

}  // namespace
}  // namespace rmoe::data
