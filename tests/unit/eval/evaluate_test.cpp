#include "rmoe/eval/evaluate.h"

#include <cmath>
#include <numbers>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "tests/unit/eval/tiny_models.h"

namespace rmoe {
namespace {

using testing::all_logits;
using testing::random_ids;
using testing::tiny_config;
using testing::TinyCase;
using testing::TinyModel;
using testing::write_tokens;

constexpr int64_t kVocabulary = 13;

// Loss of each token but the first of a text that is read in one pass, in nats.
std::vector<double> losses(const Model& model, const std::vector<int64_t>& ids, at::ScalarType dtype) {
  const Tensor log_probs = all_logits(model, {ids.begin(), ids.end() - 1}, dtype).to(at::kDouble).log_softmax(-1);
  std::vector<double> result;
  result.reserve(ids.size());
  for (int64_t t = 0; t + 1 < std::ssize(ids); ++t) {
    result.push_back(-log_probs[t][ids[static_cast<size_t>(t + 1)]].item<double>());
  }
  return result;
}

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

class EvaluateTiny : public ::testing::TestWithParam<TinyCase> {
 protected:
  double tolerance() const { return GetParam().dtype == at::kDouble ? 1e-12 : 1e-6; }
  TempDir dir_;
};

class EvaluateSpan : public EvaluateTiny {};
class EvaluateLlama : public EvaluateTiny {};

TEST_P(EvaluateSpan, IsOneStreamWhateverTheBlockAndBatch) {
  const TinyModel model(GetParam());
  const auto ids = random_ids(700, kVocabulary);
  const auto tokens = write_tokens(dir_ / "valid.tok", ids, kVocabulary);
  const double expected = sum(losses(*model, ids, GetParam().dtype));
  using Sizes = std::pair<int64_t, int64_t>;
  for (const auto& [block, batch] :
       {Sizes{0, 0}, Sizes{1, 1}, Sizes{7, 0}, Sizes{7, 3}, Sizes{64, 2}, Sizes{512, 48}}) {
    const EvalResult result = evaluate(*model, tokens, {.block = block, .batch = batch, .dtype = GetParam().dtype});
    EXPECT_EQ(result.tokens, 699);
    EXPECT_NEAR(result.nats, expected, tolerance() * expected) << "block " << block << ", batch " << batch;
  }
}

TEST_P(EvaluateLlama, IsConsecutiveWindowsWhateverTheBatch) {
  const TinyModel model(GetParam());
  const auto ids = random_ids(150, kVocabulary);
  const auto tokens = write_tokens(dir_ / "valid.tok", ids, kVocabulary);
  constexpr int64_t kBlock = 16;
  double expected = 0;
  for (int64_t begin = 0; begin < 149; begin += kBlock) {
    const int64_t end = std::min<int64_t>(begin + kBlock, 149);
    expected += sum(losses(*model, {ids.begin() + begin, ids.begin() + end + 1}, GetParam().dtype));
  }
  for (const int64_t batch : {0, 1, 2, 5, 100}) {
    const EvalResult result = evaluate(*model, tokens, {.block = kBlock, .batch = batch, .dtype = GetParam().dtype});
    EXPECT_EQ(result.tokens, 149);
    EXPECT_NEAR(result.nats, expected, tolerance() * expected) << "batch " << batch;
  }
  const double other_block = evaluate(*model, tokens, {.block = 10, .dtype = GetParam().dtype}).nats;
  EXPECT_GT(std::abs(other_block - expected), 1e-4 * expected) << "the windows are part of the protocol";
}

TEST_P(EvaluateTiny, MaxTokensIsThePrefix) {
  const TinyModel model(GetParam());
  const auto ids = random_ids(60, kVocabulary);
  const auto tokens = write_tokens(dir_ / "valid.tok", ids, kVocabulary);
  const double expected = sum(losses(*model, {ids.begin(), ids.begin() + 21}, GetParam().dtype));
  const EvalResult result = evaluate(*model, tokens, {.block = 20, .max_tokens = 20, .dtype = GetParam().dtype});
  EXPECT_EQ(result.tokens, 20);
  EXPECT_NEAR(result.nats, expected, tolerance() * expected);
  EXPECT_EQ(evaluate(*model, tokens, {.block = 20, .max_tokens = 1000, .dtype = GetParam().dtype}).tokens, 59);
}

TEST_P(EvaluateTiny, CountsWhatTheRoutersDid) {
  const TinyModel model(GetParam());
  const auto ids = random_ids(300, kVocabulary);
  const auto tokens = write_tokens(dir_ / "valid.tok", ids, kVocabulary);
  const EvalResult result = evaluate(*model, tokens, {.block = 299, .dtype = GetParam().dtype});
  const at::NoGradGuard no_grad;
  const auto trace = model->forward(testing::row({ids.begin(), ids.end() - 1}), {}, {.dtype = GetParam().dtype}).trace;
  ASSERT_EQ(result.routing.counts.size(), trace.size());
  double entropy = 0;
  for (size_t layer = 0; layer < trace.size(); ++layer) {
    const Tensor counts = at::tensor(result.routing.counts[layer], at::kLong);
    EXPECT_TRUE(counts.equal(trace[layer].counts_N)) << "layer " << layer;
    EXPECT_EQ(counts.sum().item<int64_t>(), 299 * 2);
    const Tensor p = trace[layer].probs_TN.to(at::kDouble);
    entropy -= (p * p.log()).sum(-1).mean().item<double>();
  }
  EXPECT_NEAR(result.routing.mean_entropy(), entropy / static_cast<double>(trace.size()), 1e-6);
  EXPECT_GT(result.seconds, 0);
}

const auto case_name = [](const auto& param_info) { return param_info.param.name(); };
INSTANTIATE_TEST_SUITE_P(All, EvaluateTiny, ::testing::ValuesIn(testing::tiny_cases()), case_name);
INSTANTIATE_TEST_SUITE_P(All, EvaluateSpan, ::testing::ValuesIn(testing::tiny_cases(Family::kSpan)), case_name);
INSTANTIATE_TEST_SUITE_P(All, EvaluateLlama, ::testing::ValuesIn(testing::tiny_cases(Family::kLlama)), case_name);

TEST(Evaluate, IndifferentRoutersAreUniformInProbabilityAndTakeTheFirstExperts) {
  const TempDir dir;
  TinyModel model(tiny_config(Family::kSpan, "none"), at::kFloat);
  for (Param& param : model.table.all()) {
    if (param.name.find("block_sparse_moe.gate") != std::string::npos) param.value.detach().zero_();
  }
  const auto tokens = write_tokens(dir / "valid.tok", random_ids(50, kVocabulary), kVocabulary);
  const EvalResult result = evaluate(*model, tokens, {});
  EXPECT_NEAR(result.routing.mean_entropy(), std::log(5), 1e-6);
  EXPECT_DOUBLE_EQ(routing::load_imbalance(result.routing.counts), 2.5);  // 2 of 5 experts take everything
  EXPECT_EQ(routing::dead_experts(result.routing.counts), 3 * 3);
}

TEST(Evaluate, LoadNumbersAreAveragedAndSummedOverLayers) {
  const std::vector<std::vector<int64_t>> counts = {{4, 4, 4, 4}, {16, 0, 0, 0}};
  EXPECT_DOUBLE_EQ(routing::load_imbalance(counts), (1.0 + 4.0) / 2);
  EXPECT_EQ(routing::dead_experts(counts), 3);
  EXPECT_TRUE(std::isnan(routing::load_imbalance({})));
}

TEST(Evaluate, ModelsWithoutMoeLayersHaveNoRouting) {
  const TempDir dir;
  ModelConfig config = tiny_config(Family::kLlama, "none");
  config.dense_layers = config.layers;
  const TinyModel model(config, at::kFloat);
  const auto tokens = write_tokens(dir / "valid.tok", random_ids(50, kVocabulary), kVocabulary);
  const EvalResult result = evaluate(*model, tokens, {.block = 16});
  EXPECT_TRUE(std::isfinite(result.nats));
  EXPECT_TRUE(result.routing.counts.empty());
  EXPECT_TRUE(std::isnan(result.routing.mean_entropy()));
}

TEST(Evaluate, WindowsWithTooManyLogitsAreReadInPieces) {
  const TempDir dir;
  constexpr int64_t kLarge = int64_t{1} << 21;  // logits of 16 tokens at a time
  ModelConfig config = tiny_config(Family::kLlama, "gru", kLarge);
  config.llama.tie_embeddings = true;
  config.init_std = 0.1;
  const TinyModel model(config, at::kFloat);
  const auto ids = random_ids(41, kLarge);
  const auto tokens = write_tokens(dir / "valid.tok", ids, kLarge);
  const double expected = sum(losses(*model, ids, at::kFloat));
  EXPECT_NEAR(evaluate(*model, tokens, {.block = 40}).nats, expected, 1e-6 * expected);
}

TEST(Evaluate, NumbersPerCharacterAndWordComeFromTheHeader) {
  EvalResult result;
  result.tokens = 99;  // all of a split of 100
  result.nats = 99 * std::numbers::ln2;
  data::TokenHeader header;
  header.count = 100;
  header.characters = 400;
  header.words = 50;
  EXPECT_DOUBLE_EQ(predicted_characters(result, header), 400);
  EXPECT_DOUBLE_EQ(bits_per_character(result, header), 99.0 / 400);
  EXPECT_DOUBLE_EQ(perplexity(result), 2);
  EXPECT_DOUBLE_EQ(word_perplexity(result, header), std::exp(99 * std::numbers::ln2 / 50));
  // A prefix has the characters per token of the whole.
  EvalResult prefix = result;
  prefix.tokens = 33;
  prefix.nats /= 3;
  EXPECT_DOUBLE_EQ(bits_per_character(prefix, header), bits_per_character(result, header));
  EXPECT_DOUBLE_EQ(word_perplexity(prefix, header), word_perplexity(result, header));
  header.characters = header.words = 0;
  EXPECT_TRUE(std::isnan(bits_per_character(result, header)));
  EXPECT_TRUE(std::isnan(word_perplexity(result, header)));
}

TEST(Evaluate, ProgressCountsUpToTheTotal) {
  const TempDir dir;
  const TinyModel model(tiny_config(Family::kSpan, "gru"), at::kFloat);
  const auto tokens = write_tokens(dir / "valid.tok", random_ids(101, kVocabulary), kVocabulary);
  std::vector<int64_t> seen;
  evaluate(*model, tokens, {.block = 40, .batch = 1, .progress = [&](const EvalResult& so_far, int64_t total) {
                              EXPECT_EQ(total, 100);
                              EXPECT_GT(so_far.nats, 0);
                              seen.push_back(so_far.tokens);
                            }});
  EXPECT_EQ(seen, (std::vector<int64_t>{40, 80, 100}));
}

Exit exit_code(const std::function<void()>& action, std::string& message) {
  try {
    action();
  } catch (const Error& error) {
    message = error.message();
    return error.code();
  }
  return Exit::kDone;
}

TEST(Evaluate, RefusesWhatItCannotEvaluate) {
  const TempDir dir;
  const TinyModel span(tiny_config(Family::kSpan, "gru"), at::kFloat);
  const TinyModel llama(tiny_config(Family::kLlama, "gru"), at::kFloat);
  const auto one = write_tokens(dir / "one.tok", {1}, kVocabulary);
  const auto large = write_tokens(dir / "large.tok", {1, 2, 3}, 20);
  const auto sound = write_tokens(dir / "sound.tok", {1, 2, 3}, kVocabulary);
  std::string message;
  EXPECT_EQ(exit_code([&] { evaluate(*span, one, {}); }, message), Exit::kBadInput);
  EXPECT_NE(message.find("one.tok"), std::string::npos) << message;
  EXPECT_EQ(exit_code([&] { evaluate(*span, large, {}); }, message), Exit::kBadInput);
  EXPECT_NE(message.find("large.tok"), std::string::npos) << message;
  EXPECT_EQ(exit_code([&] { evaluate(*llama, sound, {}); }, message), Exit::kBadInput);
  EXPECT_EQ(exit_code([&] { evaluate(*span, sound, {.max_tokens = -1}); }, message), Exit::kBadInput);
}

TEST(Evaluate, ANonFiniteLossIsDivergence) {
  const TempDir dir;
  TinyModel model(tiny_config(Family::kSpan, "none"), at::kFloat);
  for (Param& param : model.table.all()) {
    if (param.name == "lm_head.bias") param.value.detach()[0].fill_(std::nan(""));
  }
  const auto tokens = write_tokens(dir / "valid.tok", random_ids(50, kVocabulary), kVocabulary);
  std::string message;
  EXPECT_EQ(exit_code([&] { evaluate(*model, tokens, {}); }, message), Exit::kDiverged);
}

}  // namespace
}  // namespace rmoe
