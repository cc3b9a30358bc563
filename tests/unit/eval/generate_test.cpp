#include "rmoe/eval/generate.h"

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/eval/evaluate.h"
#include "tests/unit/eval/tiny_models.h"

namespace rmoe {
namespace {

using testing::all_logits;
using testing::random_ids;
using testing::tiny_config;
using testing::TinyCase;
using testing::TinyModel;

constexpr int64_t kVocabulary = 13;

std::vector<int64_t> generate_ids(const Model& model, const std::vector<int64_t>& prompt,
                                  const GenerateOptions& options) {
  std::vector<int64_t> ids;
  generate(model, prompt, options, [&](int64_t id) {
    ids.push_back(id);
    return true;
  });
  return ids;
}

class GenerateTiny : public ::testing::TestWithParam<TinyCase> {
 protected:
  at::ScalarType dtype() const { return GetParam().dtype; }
  TinyModel model_{GetParam()};
};

// The cache against a pass over the whole text, for steps of one token, of several, and mixed.
TEST_P(GenerateTiny, CachedLogitsEqualTheFullForwardPass) {
  const at::NoGradGuard no_grad;
  const auto ids = random_ids(43, kVocabulary);
  const Tensor expected = all_logits(*model_, ids, dtype());
  for (const std::vector<int64_t>& steps : {std::vector<int64_t>{1}, {7}, {20, 1, 1, 3}}) {
    Memory memory;
    std::vector<Tensor> logits;
    for (int64_t begin = 0, i = 0; begin < 43; ++i) {
      const int64_t count = std::min(steps[static_cast<size_t>(i % std::ssize(steps))], 43 - begin);
      auto forward = model_->forward(testing::row({ids.begin() + begin, ids.begin() + begin + count}),
                                     std::move(memory), {.dtype = dtype(), .remember = Remember::kKeysValues});
      logits.push_back(forward.logits_TV);
      memory = std::move(forward.memory);
      begin += count;
    }
    const double error = (at::cat(logits) - expected).abs().max().item<double>();
    EXPECT_LE(error, dtype() == at::kDouble ? 1e-10 : 1e-4) << "steps of " << steps.front();
  }
}

TEST_P(GenerateTiny, GreedyIsTheArgmaxOfFullForwardPasses) {
  std::vector<int64_t> text = random_ids(9, kVocabulary);
  const auto generated = generate_ids(*model_, text, {.max_new = 25, .temperature = 0, .dtype = dtype()});
  ASSERT_EQ(generated.size(), 25u);
  for (const int64_t id : generated) {
    ASSERT_EQ(id, all_logits(*model_, text, dtype())[-1].argmax().item<int64_t>()) << "at " << text.size();
    text.push_back(id);
  }
}

TEST_P(GenerateTiny, LongPromptsAreReadInPieces) {
  const int64_t piece = inference_piece(model_->config());
  const auto prompt = random_ids(2 * piece + 3, kVocabulary);
  const auto generated = generate_ids(*model_, prompt, {.max_new = 1, .temperature = 0, .dtype = dtype()});
  EXPECT_EQ(generated.at(0), all_logits(*model_, prompt, dtype())[-1].argmax().item<int64_t>());
}

TEST_P(GenerateTiny, TheSeedDecidesTheText) {
  const std::vector<int64_t> prompt = {1, 2, 3};
  const auto text = [&](uint64_t seed) {
    return generate_ids(*model_, prompt, {.max_new = 40, .temperature = 2, .seed = seed, .dtype = dtype()});
  };
  EXPECT_EQ(text(5), text(5));
  EXPECT_NE(text(5), text(6));
}

TEST_P(GenerateTiny, TopKOfOneIsGreedyAtAnyTemperature) {
  const std::vector<int64_t> prompt = {1, 2, 3};
  EXPECT_EQ(generate_ids(*model_, prompt, {.max_new = 30, .temperature = 3, .top_k = 1, .dtype = dtype()}),
            generate_ids(*model_, prompt, {.max_new = 30, .temperature = 0, .dtype = dtype()}));
}

// Rows of other lengths, rows that end before others, and rows that end at a stop string leave a row as it is.
std::vector<std::vector<int64_t>> all_ids(const data::Tokenizer& tokenizer, const std::vector<std::string>& prompts) {
  std::vector<std::vector<int64_t>> ids;
  for (const std::string& prompt : prompts) ids.push_back(prompt_ids(tokenizer, prompt));
  return ids;
}

TEST_P(GenerateTiny, SeveralTextsAtOnceAreEachTheTextByItself) {
  std::vector<char32_t> letters;
  for (char32_t c = 'a'; c < 'm'; ++c) letters.push_back(c);
  const auto tokenizer = data::make_char_tokenizer(letters, false, false, true);  // id 12 ends a text
  const std::vector<std::string> prompts = {"abc", "", "abcdefghijklabcdefghijkl", "cab", "l", "kkk", "abc"};
  bool ended[4] = {};
  for (const double temperature : {0.0, 1.0}) {
    for (const std::vector<std::string>& stops : {std::vector<std::string>{}, {"zz", "a", "dc"}}) {
      for (const int64_t max_new : {int64_t{0}, int64_t{1}, int64_t{12}}) {
        const TextOptions options{
            .max_new = max_new, .temperature = temperature, .seed = 5, .dtype = dtype(), .stops = stops};
        const auto texts = generate_texts(*model_, *tokenizer, all_ids(*tokenizer, prompts), options);
        ASSERT_EQ(texts.size(), prompts.size());
        for (size_t i = 0; i < prompts.size(); ++i) {
          const auto alone = generate_text(*model_, *tokenizer, prompt_ids(*tokenizer, prompts[i]), options);
          EXPECT_EQ(texts[i].text, alone.text) << prompts[i];
          EXPECT_EQ(texts[i].tokens, alone.tokens) << prompts[i];
          EXPECT_EQ(texts[i].prompt_tokens, alone.prompt_tokens) << prompts[i];
          EXPECT_EQ(texts[i].ending, alone.ending) << prompts[i];
          ended[static_cast<size_t>(alone.ending)] = true;
        }
      }
    }
  }
  EXPECT_TRUE(ended[static_cast<size_t>(TextEnding::kLength)] && ended[static_cast<size_t>(TextEnding::kSeparator)] &&
              ended[static_cast<size_t>(TextEnding::kStop)]);
  EXPECT_TRUE(generate_texts(*model_, *tokenizer, {}, {}).empty());
  EXPECT_THROW(generate_texts(*model_, *tokenizer, all_ids(*tokenizer, {"abc"}), {.max_new = -1}), Error);
  EXPECT_THROW(generate_texts(*model_, *tokenizer, {{1}, {99}}, {}), Error);
  EXPECT_THROW(generate_texts(*model_, *tokenizer, {{1}, {}}, {}), Error);
}

INSTANTIATE_TEST_SUITE_P(All, GenerateTiny, ::testing::ValuesIn(testing::tiny_cases()),
                         [](const auto& param_info) { return param_info.param.name(); });

class Generate : public ::testing::Test {
 protected:
  TinyModel model_{tiny_config(Family::kSpan, "gru"), at::kFloat};
  std::vector<int64_t> prompt_ = {1, 2, 3};
};

TEST_F(Generate, EndsAtTheStopIdWithoutHandingItOut) {
  const auto all = generate_ids(*model_, prompt_, {.max_new = 60, .temperature = 2});
  const int64_t stop = all.at(20);
  const auto first = std::find(all.begin(), all.end(), stop);
  std::vector<int64_t> ids;
  const Generated generated =
      generate(*model_, prompt_, {.max_new = 60, .temperature = 2, .ends = {-1, stop}}, [&](int64_t id) {
        ids.push_back(id);
        return true;
      });
  EXPECT_EQ(ids, std::vector<int64_t>(all.begin(), first));
  EXPECT_EQ(generated.ending, TextEnding::kSeparator);
  EXPECT_EQ(generated.tokens, std::ssize(ids));
}

TEST_F(Generate, EndsWhenTheCallerWantsNoMore) {
  int64_t calls = 0;
  const Generated generated = generate(*model_, prompt_, {.max_new = 60}, [&](int64_t) { return ++calls < 4; });
  EXPECT_EQ(calls, 4);
  EXPECT_EQ(generated.tokens, 4);
  EXPECT_EQ(generated.ending, TextEnding::kCaller);
}

TEST_F(Generate, DrawsOnlyFromTheVocabularyAsked) {
  const auto ids = generate_ids(*model_, prompt_, {.max_new = 100, .temperature = 5, .vocabulary = 4});
  EXPECT_LT(*std::max_element(ids.begin(), ids.end()), 4);
}

TEST_F(Generate, RefusesEmptyAndForeignPrompts) {
  EXPECT_THROW(generate_ids(*model_, {}, {}), Error);
  EXPECT_THROW(generate_ids(*model_, {1, kVocabulary}, {}), Error);
  EXPECT_THROW(generate_ids(*model_, {1, -1}, {}), Error);
  EXPECT_THROW(generate_ids(*model_, {1}, {.max_new = -1}), Error);
  EXPECT_THROW(generate_ids(*model_, {1}, {.top_p = 0}), Error);
}

TEST_F(Generate, NoTokensAreNoTokens) { EXPECT_TRUE(generate_ids(*model_, prompt_, {.max_new = 0}).empty()); }

TEST(PromptIds, AnEmptyPromptIsTheStartOfADocument) {
  const std::vector<char32_t> letters = {'a', 'b', 'c'}, lines = {'\n', 'a', 'b'};
  const auto separated = data::make_char_tokenizer(letters, false, false, true);
  EXPECT_EQ(prompt_ids(*separated, ""), (std::vector<int64_t>{*separated->separator()}));
  EXPECT_EQ(prompt_ids(*data::make_byte_tokenizer(false), ""), (std::vector<int64_t>{'\n'}));
  EXPECT_EQ(prompt_ids(*data::make_char_tokenizer(lines, false, false, false), ""), (std::vector<int64_t>{0}));
  EXPECT_EQ(prompt_ids(*data::make_char_tokenizer(letters, false, false, false), ""), (std::vector<int64_t>{0}));
  EXPECT_EQ(prompt_ids(*separated, "cab"), (std::vector<int64_t>{2, 0, 1}));
}

// A model over the letters a to m.
class GenerateText : public ::testing::Test {
 protected:
  static std::vector<char32_t> letters() {
    std::vector<char32_t> letters;
    for (char32_t c = 'a'; c <= 'm'; ++c) letters.push_back(c);
    return letters;
  }
  std::unique_ptr<data::Tokenizer> tokenizer_ = data::make_char_tokenizer(letters(), false, false, false);
  TinyModel model_{tiny_config(Family::kLlama, "gru"), at::kFloat};
};

TEST_F(GenerateText, StreamsTheTextOfTheIds) {
  std::string streamed;
  const auto result =
      generate_text(*model_, *tokenizer_, prompt_ids(*tokenizer_, "abc"), {.max_new = 50}, [&](std::string_view piece) {
        streamed += piece;
        return true;
      });
  EXPECT_EQ(result.text, tokenizer_->decode(generate_ids(*model_, {0, 1, 2}, {.max_new = 50})));
  EXPECT_EQ(streamed, result.text);
  EXPECT_EQ(result.prompt_tokens, 3);
  EXPECT_EQ(result.tokens, 50);
  EXPECT_EQ(result.ending, TextEnding::kLength);
}

TEST_F(GenerateText, EndsBeforeAStopStringOfSeveralTokens) {
  const std::string all = generate_text(*model_, *tokenizer_, prompt_ids(*tokenizer_, "abc"), {.max_new = 50}).text;
  const std::string stop = all.substr(30, 4);
  std::string streamed;
  const auto result = generate_text(*model_, *tokenizer_, prompt_ids(*tokenizer_, "abc"),
                                    {.max_new = 50, .stops = {"zzz", stop}}, [&](std::string_view piece) {
                                      streamed += piece;
                                      return true;
                                    });
  const size_t at = all.find(stop);
  EXPECT_EQ(result.text, all.substr(0, at));
  EXPECT_EQ(streamed, result.text) << "what was handed out cannot be taken back";
  EXPECT_EQ(result.ending, TextEnding::kStop);
  EXPECT_EQ(result.tokens, static_cast<int64_t>(at + stop.size()));
}

TEST_F(GenerateText, TheBeginningOfAStopStringAtTheEndIsText) {
  const std::string all = generate_text(*model_, *tokenizer_, prompt_ids(*tokenizer_, "abc"), {.max_new = 20}).text;
  const auto result = generate_text(*model_, *tokenizer_, prompt_ids(*tokenizer_, "abc"),
                                    {.max_new = 20, .stops = {all.substr(18) + "z"}});
  EXPECT_EQ(result.text, all);
  EXPECT_EQ(result.ending, TextEnding::kLength);
}

TEST_F(GenerateText, APromptOutsideTheVocabularyIsRefused) {
  EXPECT_THROW(generate_text(*model_, *tokenizer_, prompt_ids(*tokenizer_, "xyz"), {}), Error);
}

TEST_F(GenerateText, ALargerModelVocabularyThanTheTokenizersIsNeverDrawn) {
  const auto few = data::make_char_tokenizer({'a', 'b', 'c'}, false, false, false);
  const auto result = generate_text(*model_, *few, prompt_ids(*few, "abc"), {.max_new = 50, .temperature = 5});
  EXPECT_EQ(result.text.size(), 50u);
}

TEST_F(GenerateText, AnUnfinishedCharacterIsDropped) {
  const auto bytes = data::make_char_tokenizer({0xC3}, true, false, false);  // only ever the first of two bytes
  const auto result = generate_text(*model_, *bytes, prompt_ids(*bytes, ""), {.max_new = 1});
  EXPECT_EQ(result.tokens, 1);
  EXPECT_EQ(result.text.find('\xC3', 1), std::string::npos);
}

}  // namespace
}  // namespace rmoe
