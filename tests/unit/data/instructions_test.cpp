// Instruction data: fields, roles, masks, rows, and every kind of bad line.
#include "rmoe/data/instructions.h"

#include <fstream>
#include <set>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "tests/support/temp_dir.h"

namespace rmoe::data {
namespace {

class ReadInstructions : public ::testing::Test {
 protected:
  InstructionSet read(const std::string& lines, int64_t block = 1000) {
    std::ofstream(path_) << lines;
    return read_instructions(path_, *tokenizer_, config_, block);
  }
  std::string refusal(const std::string& lines, int64_t block = 1000) {
    try {
      read(lines, block);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Exit::kBadInput);
      EXPECT_EQ(error.message().find('\n'), std::string::npos) << error.message();
      EXPECT_TRUE(error.message().starts_with(path_.string())) << error.message();
      return error.message().substr(path_.string().size());
    }
    ADD_FAILURE() << "accepted: " << lines;
    return "";
  }
  std::string text(const Instruction& s) const {
    return tokenizer_->decode(std::vector<int64_t>(s.ids.begin(), s.ids.end()));
  }
  std::string answer(const Instruction& s, size_t i = 0) const {
    return tokenizer_->decode(
        std::vector<int64_t>(s.ids.begin() + s.answers[i].first, s.ids.begin() + s.answers[i].second));
  }
  TempDir dir_;
  std::filesystem::path path_ = dir_.path() / "data.jsonl";
  std::unique_ptr<Tokenizer> tokenizer_ = make_byte_tokenizer(/*separated=*/false);
  InstructConfig config_;
};

TEST_F(ReadInstructions, AlpacaFields) {
  const auto set = read(R"({"instruction": "Add.", "input": "1 + 2", "output": "3", "id": 7})"
                        "\n\n"
                        R"({"instruction": "Say {input}.", "output": "hi {content}"})"
                        "\n");
  ASSERT_EQ(set.samples.size(), 2u);
  EXPECT_EQ(text(set.samples[0]), "### Instruction:\nAdd.\n\n### Input:\n1 + 2\n\n### Response:\n3\n\n");
  EXPECT_EQ(answer(set.samples[0]), "3\n\n");
  EXPECT_EQ(text(set.samples[1]), "### Instruction:\nSay {input}.\n\n### Response:\nhi {content}\n\n");
  EXPECT_EQ(set.samples[0].characters, 1);
  EXPECT_EQ(set.answer_tokens(), 3 + 14);
}

TEST_F(ReadInstructions, ConversationsMarkEveryAnswer) {
  const auto set =
      read(R"({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1?"},)"
           R"( {"role": "assistant", "content": "one"}, {"role": "user", "content": "2?"},)"
           R"( {"role": "assistant", "content": "two"}, {"role": "user", "content": "unanswered"}]})");
  ASSERT_EQ(set.samples.size(), 1u);
  const Instruction& sample = set.samples[0];
  EXPECT_EQ(
      text(sample),
      "Be brief.\n\n### Instruction:\n1?\n\n### Response:\none\n\n### Instruction:\n2?\n\n### Response:\ntwo\n\n");
  ASSERT_EQ(sample.answers.size(), 2u);
  EXPECT_EQ(answer(sample, 0), "one\n\n");
  EXPECT_EQ(answer(sample, 1), "two\n\n");
  EXPECT_EQ(question_text(sample, *tokenizer_), "Be brief.\n\n### Instruction:\n1?\n\n### Response:\n");
}

// A model that begins documents with an id and a space in front must not begin its answers so.
TEST_F(ReadInstructions, OnlyTheFirstPartBeginsADocument) {
  int left = 300;
  std::string model = train_sentencepiece({.bpe = true, .vocab_size = 290}, [&]() -> std::optional<std::string> {
    return left-- > 0 ? std::optional<std::string>("### Instruction: Response: one two three" + std::to_string(left))
                      : std::nullopt;
  });
  // trainer_spec.bos_piece = "</s>"; normalizer_spec: add_dummy_prefix, neither remove_extra_whitespaces nor a map
  model += std::string("\x12\x07\xF2\x02\x04</s>") + std::string("\x1A\x06\x18\x01\x20\x00\x28\x01", 8);
  tokenizer_ = make_foreign_sentencepiece_tokenizer(model, "model", /*begin=*/true);
  const int64_t mark = *tokenizer_->separator();
  const std::vector<int64_t> line = tokenizer_->encode("\n"), whole = tokenizer_->encode("\none two");
  ASSERT_EQ(line.front(), mark);
  EXPECT_EQ(tokenizer_->encode_more("one two"), std::vector<int64_t>(whole.begin() + std::ssize(line), whole.end()));

  const auto set =
      read(R"({"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "one two"},)"
           R"( {"role": "user", "content": "2"}, {"role": "assistant", "content": "three"}]})");
  const Instruction& sample = set.samples.at(0);
  std::vector<int64_t> expected = tokenizer_->encode("### Instruction:\n1\n\n### Response:\n");
  for (const char* part : {"one two", "### Instruction:\n2\n\n### Response:\n", "three"}) {
    const auto ids = tokenizer_->encode_more(part);
    expected.insert(expected.end(), ids.begin(), ids.end());
    if (part[0] != '#') expected.push_back(mark);
  }
  EXPECT_EQ(std::vector<int64_t>(sample.ids.begin(), sample.ids.end()), expected);
  EXPECT_EQ(std::count(expected.begin(), expected.end(), mark), 3);
  EXPECT_EQ(answer(sample, 1), "three");
}

TEST_F(ReadInstructions, TheSeparatorEndsAnswers) {
  tokenizer_ = make_byte_tokenizer(/*separated=*/true);
  const auto set = read(R"({"instruction": "a", "output": "b"})");
  EXPECT_EQ(set.samples[0].ids.back(), *tokenizer_->separator());
  EXPECT_EQ(set.samples[0].answer_tokens(), 2);
}

TEST_F(ReadInstructions, ThePreambleIsASystemMessageWhereThereIsNone) {
  config_.preamble = "Do it.";
  const auto set = read(R"({"instruction": "a", "output": "b"})"
                        "\n"
                        R"({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "u"},)"
                        R"( {"role": "assistant", "content": "v"}]})");
  EXPECT_TRUE(text(set.samples[0]).starts_with("Do it.\n\n### Instruction:\na"));
  EXPECT_TRUE(text(set.samples[1]).starts_with("S\n\n### Instruction:\nu"));
}

TEST_F(ReadInstructions, BadLinesAreNamedByFileAndLine) {
  const std::string good = R"({"instruction": "a", "output": "b"})"
                           "\n";
  EXPECT_EQ(refusal(good + R"({"instruction": "a"})"), ":2: 'output' is missing");
  EXPECT_EQ(refusal(good + "\n" + R"({"output": "a"})"), ":3: 'instruction' is missing");
  EXPECT_TRUE(refusal(R"({"instruction": "a", "output": 3})").starts_with(":1: "));
  EXPECT_TRUE(refusal(R"({"instruction": "a", "output": "b", "input": null})").starts_with(":1: "));
  EXPECT_EQ(refusal(good + R"({"messages": [{"role": "robot", "content": "a"}]})"),
            ":2: unknown role 'robot', expected system, user or assistant");
  EXPECT_TRUE(refusal(R"({"messages": [{"role": "user"}]})").starts_with(":1: 'content' is missing"));
  EXPECT_TRUE(refusal(R"({"messages": "a"})").starts_with(":1: 'messages' is no list"));
  EXPECT_TRUE(refusal(R"({"messages": ["a"]})").starts_with(":1: "));
  EXPECT_EQ(refusal(R"({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "a"}]})"),
            ":1: message 2 has the role system, which is for the first one only");
  EXPECT_TRUE(refusal(R"({"messages": [], "instruction": "a"})").starts_with(":1: has both"));
  EXPECT_TRUE(refusal(good + "{\"instruction\": ").starts_with(":2:17: syntax error"));
  EXPECT_TRUE(refusal("[\n" + good + ",\n{}\n]\n").starts_with(": sample 2: ")) << refusal("[\n" + good + ",\n{}]");
  EXPECT_TRUE(refusal("\n [\n" + good + "," + good + "\n").starts_with(":6:"));
  EXPECT_TRUE(refusal("[" + good + "]\n" + good).starts_with(":3:"));
  EXPECT_TRUE(refusal("3").starts_with(":1: expected an object"));
  EXPECT_TRUE(refusal("{\"instruction\": \"a\xff\", \"output\": \"b\"}").starts_with(":1:19: "));
  EXPECT_TRUE(refusal("").find("no sample is left") != std::string::npos);
}

TEST_F(ReadInstructions, TextThatTheTokenizerCannotTakeIsNamed) {
  tokenizer_ = make_char_tokenizer(
      {U'\n', U' ', U'#', U':', U'I', U'R', U'a', U'c', U'e', U'i', U'n', U'o', U'p', U'r', U's', U't', U'u'},
      /*bytes=*/false, /*unknown=*/false, /*separated=*/false);
  EXPECT_TRUE(refusal(R"({"instruction": "a", "output": "a"})"
                      "\n"
                      R"({"instruction": "Z", "output": "a"})")
                  .starts_with(":2: "));
}

TEST_F(ReadInstructions, AListIsReadAsItsItemsAre) {
  const std::string one = R"({"instruction": "a", "output": "b"})", two = R"({"instruction": "c", "output": "d"})";
  const auto lines = read(one + "\n" + two + "\n");
  for (const std::string& list : {"[" + one + "," + two + "]", "\n [\n  " + one + ",\n  " + two + "\n]\n"}) {
    const auto set = read(list);
    ASSERT_EQ(set.samples.size(), 2u);
    for (size_t i = 0; i < 2; ++i) EXPECT_EQ(set.samples[i].ids, lines.samples[i].ids);
  }
}

TEST_F(ReadInstructions, EmptyAnswersAreLeftOutAndCounted) {
  const auto set = read(R"({"instruction": "a", "output": "b"})"
                        "\n"
                        R"({"instruction": "a", "output": " "})"
                        "\n"
                        R"({"messages": [{"role": "user", "content": "a"}]})"
                        "\n");
  EXPECT_EQ(set.samples.size(), 1u);
  EXPECT_EQ(set.without_answer, 2);
  EXPECT_EQ(set.first_without_answer, path_.string() + ":2");
}

TEST_F(ReadInstructions, AnEmptyAnswerTakesItsQuestionAlong) {
  const auto set = read(
      R"({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "lost"},)"
      R"( {"role": "assistant", "content": ""}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}]})");
  EXPECT_EQ(text(set.samples.at(0)), "S\n\n### Instruction:\nu\n\n### Response:\nv\n\n");
}

TEST_F(ReadInstructions, LongSamplesAreLeftOutCutOrRefused) {
  const std::string lines = R"({"instruction": "a", "output": "b"})"
                            "\n"
                            R"({"instruction": "a", "output": "123456789"})"
                            "\n";
  const auto fits = static_cast<int64_t>(read(lines).samples[0].ids.size());
  auto set = read(lines, fits - 1);
  EXPECT_EQ(set.samples.size(), 1u);
  EXPECT_EQ(set.too_long, 1);
  EXPECT_EQ(set.first_too_long, path_.string() + ":2");
  config_.too_long = TooLong::kCut;
  set = read(lines, fits - 1);
  ASSERT_EQ(set.samples.size(), 2u);
  EXPECT_EQ(set.cut, 1);
  EXPECT_EQ(answer(set.samples[1]), "123");
  EXPECT_EQ(set.samples[1].characters, 3);
  // Of which the question alone fills the block.
  set = read(R"({"instruction": "a", "output": "b"})"
             "\n"
             R"({"instruction": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "output": "b"})",
             fits - 1);
  EXPECT_EQ(set.too_long, 1);
  EXPECT_EQ(set.cut, 0);
  config_.too_long = TooLong::kRefuse;
  EXPECT_TRUE(refusal(lines, fits - 1).starts_with(":2: the sample has "));
}

TEST_F(ReadInstructions, AShareIsHeldOut) {
  std::string lines;
  for (int i = 0; i < 50; ++i) lines += R"({"instruction": ")" + std::to_string(i) + R"(", "output": "b"})" + "\n";
  std::ofstream(path_) << lines;
  config_.train = path_.string();
  config_.valid_share = 0.1;
  const Instructions data = read_instructions(config_, *tokenizer_, 1000);
  EXPECT_EQ(data.train.samples.size(), 45u);
  EXPECT_EQ(data.valid.samples.size(), 5u);
  std::set<std::string> all;
  for (const auto* set : {&data.train, &data.valid}) {
    for (const Instruction& s : set->samples) all.insert(text(s));
  }
  EXPECT_EQ(all.size(), 50u);
  std::ofstream(path_) << R"({"instruction": "a", "output": "b"})";
  EXPECT_THROW(read_instructions(config_, *tokenizer_, 1000), Error);
}

class Rows : public ReadInstructions {
 protected:
  std::shared_ptr<const InstructionSet> some() {
    std::string lines;
    for (int i = 0; i < 23; ++i) {
      lines +=
          R"({"instruction": "q)" + std::to_string(i) + R"(", "output": ")" + std::string(1 + i % 7, 'x') + "\"}\n";
    }
    return std::make_shared<const InstructionSet>(read(lines));
  }
};

TEST_F(Rows, TargetsAreTheAnswersAlone) {
  const auto set = some();
  const InstructionBatcher batcher(set, 4, 120, /*pack=*/false, 1);
  int64_t targets = 0;
  for (int64_t step = 0; step < 23; ++step) {  // four epochs
    const Batch batch = batcher.get(step, 0, 4);
    for (int64_t r = 0; r < 4; ++r) {
      for (int64_t i = 0; i < batch.length; ++i) {
        const int64_t target = batch.targets[static_cast<size_t>(r * batch.length + i)];
        if (target < 0) continue;
        ++targets;
        EXPECT_EQ(target, batch.tokens[static_cast<size_t>(r * (batch.length + 1) + i + 1)]);
        EXPECT_TRUE(batch.valid[static_cast<size_t>(r * batch.length + i)]);
        EXPECT_TRUE(target == 'x' || target == '\n');
      }
    }
  }
  EXPECT_EQ(targets, 4 * set->answer_tokens());
}

TEST_F(Rows, PackingKeepsEverySampleOnceAndFills) {
  const auto set = some();
  const InstructionBatcher packed(set, 1, 120, /*pack=*/true, 1), padded(set, 1, 120, /*pack=*/false, 1);
  EXPECT_EQ(padded.rows_per_epoch(), 23);
  EXPECT_LT(packed.rows_per_epoch(), 15);
  int64_t targets = 0, tokens = 0;
  for (int64_t step = 0; step < packed.rows_per_epoch(); ++step) {
    const Batch batch = packed.get(step, 0, 1);
    EXPECT_EQ(batch.epoch, 0);
    EXPECT_LE(batch.length, 120);
    for (const int64_t t : batch.targets) targets += t >= 0;
    for (const uint8_t v : batch.valid) tokens += v;
  }
  EXPECT_EQ(targets, set->answer_tokens());
  EXPECT_EQ(tokens, set->tokens() - packed.rows_per_epoch());
}

TEST_F(Rows, ABatchIsItsMicroBatchesAndDependsOnTheSeed) {
  const auto set = some();
  const InstructionBatcher a(set, 4, 120, false, 1), b(set, 4, 120, false, 2);
  const Batch whole = a.get(3, 0, 4);
  for (int64_t r = 0; r < 4; ++r) {
    const Batch part = a.get(3, r, r + 1);
    for (int64_t i = 0; i < part.length; ++i) {
      if (!part.valid[static_cast<size_t>(i)]) continue;
      EXPECT_EQ(part.tokens[static_cast<size_t>(i)], whole.tokens[static_cast<size_t>(r * (whole.length + 1) + i)]);
    }
  }
  EXPECT_NE(a.get(0, 0, 4).tokens, b.get(0, 0, 4).tokens);
}

}  // namespace
}  // namespace rmoe::data
