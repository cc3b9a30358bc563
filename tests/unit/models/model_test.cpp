// Promises of the models: who sees what, and that state is a value.
#include "rmoe/models/model.h"

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "tests/support/gradcheck.h"
#include "tests/support/tiny.h"

namespace rmoe {
namespace {

using testing::random_tokens;
using testing::tiny_config;

class EveryModel : public ::testing::TestWithParam<std::tuple<Family, bool>> {
 protected:
  EveryModel() { rebuild(); }
  void rebuild() {
    config_ = tiny_config(std::get<0>(GetParam()), std::get<1>(GetParam()));
    model_ = make_model(config_.model, table_);
  }
  bool span() const { return config_.model.family == Family::kSpan; }
  Tensor logits(const Tensor& tokens, bool training = false, DropoutKey key = {}) const {
    return model_->forward(tokens, {}, {.training = training, .dropout_key = key, .dtype = at::kDouble})
        .logits_TV.view({tokens.size(0), tokens.size(1), -1});
  }
  RunConfig config_;
  ParamTable table_{1, at::kDouble};
  std::unique_ptr<Model> model_;
};

TEST_P(EveryModel, TheFutureDoesNotInfluenceThePast) {
  const Tensor tokens = random_tokens(2, 9, 23, 1);
  const Tensor before = logits(tokens);
  Tensor changed = tokens.clone();
  changed.select(1, 6).add_(1).remainder_(23);
  const Tensor after = logits(changed);
  // Not to the bit: other tokens may go to an expert, and a product's rounding may depend on how many rows it has.
  const auto same = [&](int64_t from, int64_t to) {
    return at::allclose(before.slice(1, from, to), after.slice(1, from, to), 0, 1e-12);
  };
  EXPECT_TRUE(same(0, 6));
  EXPECT_FALSE(same(6, 7));
  EXPECT_FALSE(same(7, 9));
}

TEST_P(EveryModel, SequencesOfABatchDoNotInfluenceEachOther) {
  const Tensor tokens = random_tokens(3, 7, 23, 2);
  const Tensor all = logits(tokens);
  for (int64_t b = 0; b < 3; ++b) {
    EXPECT_TRUE(at::allclose(all[b], logits(tokens.narrow(0, b, 1))[0], 0, 1e-12)) << "sequence " << b;
  }
}

TEST_P(EveryModel, TwoPassesAreTwoFreshStarts) {
  const Tensor tokens = random_tokens(2, 7, 23, 3);
  const Tensor first = logits(tokens);
  logits(random_tokens(2, 7, 23, 4));
  EXPECT_TRUE(first.equal(logits(tokens)));
}

TEST_P(EveryModel, PiecesWithAMemoryEqualOnePass) {
  const Tensor tokens = random_tokens(2, 13, 23, 5);
  const Tensor whole = logits(tokens);
  for (const std::vector<int64_t>& cuts : {std::vector<int64_t>{0, 13}, {0, 5, 13}, {0, 1, 2, 9, 13}}) {
    at::NoGradGuard no_grad;
    Memory memory;
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      const int64_t length = cuts[i + 1] - cuts[i];
      auto result = model_->forward(tokens.narrow(1, cuts[i], length).contiguous(), std::move(memory),
                                    {.dtype = at::kDouble, .remember = Remember::kKeysValues});
      memory = std::move(result.memory);
      EXPECT_TRUE(at::allclose(result.logits_TV.view({2, length, -1}), whole.narrow(1, cuts[i], length), 0, 1e-11))
          << "piece at " << cuts[i];
    }
    EXPECT_EQ(memory.position, 13);
  }
}

TEST_P(EveryModel, TokenByTokenEqualsOnePassFarBeyondTheSpan) {
  const int64_t length = 40;
  const Tensor tokens = random_tokens(1, length, 23, 6);
  const Tensor whole = logits(tokens);
  at::NoGradGuard no_grad;
  Memory memory;
  for (int64_t i = 0; i < length; ++i) {
    auto result = model_->forward(tokens.narrow(1, i, 1).contiguous(), std::move(memory),
                                  {.dtype = at::kDouble, .remember = Remember::kKeysValues, .last_logits_only = true});
    memory = std::move(result.memory);
    ASSERT_TRUE(at::allclose(result.logits_TV[0], whole[0][i], 0, 1e-11)) << "token " << i;
  }
}

TEST_P(EveryModel, DropoutFollowsItsKeyAndOnlyInTraining) {
  config_.model.dropout = 0.2;
  table_ = ParamTable(1, at::kDouble);
  model_ = make_model(config_.model, table_);
  const Tensor tokens = random_tokens(2, 7, 23, 7);
  EXPECT_TRUE(logits(tokens, true, {1}).equal(logits(tokens, true, {1})));
  EXPECT_FALSE(logits(tokens, true, {1}).equal(logits(tokens, true, {2})));
  EXPECT_TRUE(logits(tokens, false, {1}).equal(logits(tokens, false, {2})));
}

TEST_P(EveryModel, EveryParameterThatIsUsedGetsAGradient) {
  logits(random_tokens(8, 8, 23, 8)).logsumexp(-1).sum().backward();
  for (const Param& param : table_.all()) {
    const bool unused = span() && (param.name.find(".norm3.") != std::string::npos
                                       ? param.name.find("layers.0.") == std::string::npos
                                       : param.name.find("layers.0.norm2.") != std::string::npos);
    const bool used = param.value.grad().defined() && param.value.grad().abs().max().item<double>() > 0;
    EXPECT_EQ(used, !unused) << param.name;
  }
}

TEST_P(EveryModel, MicroBatchesGiveTheGradientOfTheWhole) {
  const Tensor tokens = random_tokens(4, 8, 23, 9), targets = random_tokens(4, 8, 23, 10);
  const auto gradients = [&](int64_t pieces) {
    for (Param& param : table_.all()) param.value.mutable_grad() = Tensor();
    for (int64_t i = 0; i < pieces; ++i) {
      const int64_t rows = 4 / pieces;
      const Tensor out = logits(tokens.narrow(0, i * rows, rows));
      (at::cross_entropy_loss(out.flatten(0, 1), targets.narrow(0, i * rows, rows).flatten()) /
       static_cast<double>(pieces))
          .backward();
    }
    std::vector<Tensor> grads;
    for (Param& param : table_.all())
      grads.push_back(param.value.grad().defined() ? param.value.grad().clone() : Tensor());
    return grads;
  };
  const auto whole = gradients(1);
  for (const int64_t pieces : {2, 4}) {
    const auto split = gradients(pieces);
    for (size_t i = 0; i < whole.size(); ++i) {
      if (!whole[i].defined()) continue;
      EXPECT_TRUE(at::allclose(whole[i], split[i], 1e-9, 1e-12)) << table_.all()[i].name << ", " << pieces << " pieces";
    }
  }
}

TEST_P(EveryModel, RecomputationGivesTheSameLossesAndGradients) {
  config_.model.dropout = 0.2;
  table_ = ParamTable(1, at::kDouble);
  model_ = make_model(config_.model, table_);
  const Tensor tokens = random_tokens(2, 16, 23, 9), targets = random_tokens(2, 16, 23, 10);
  // Two blocks, so that the span family's cache of the first is what the second reads.
  const auto gradients = [&](bool recompute) {
    for (Param& param : table_.all()) param.value.mutable_grad() = Tensor();
    Memory memory;
    std::vector<double> losses;
    for (const int64_t block : {0, 1}) {
      auto result = model_->forward(tokens.narrow(1, 8 * block, 8).contiguous(), std::move(memory),
                                    {.training = true,
                                     .dropout_key = {7},
                                     .dtype = at::kDouble,
                                     .remember = span() ? Remember::kHidden : Remember::kNothing,
                                     .recompute = recompute});
      memory = std::move(result.memory);
      const Tensor loss = at::cross_entropy_loss(result.logits_TV, targets.narrow(1, 8 * block, 8).flatten()) +
                          model_->routing().loss(result.trace);
      loss.backward();
      losses.push_back(loss.item<double>());
    }
    std::vector<Tensor> grads;
    for (Param& param : table_.all()) grads.push_back(param.value.grad());
    return std::pair{losses, grads};
  };
  const auto plain = gradients(false), again = gradients(true);
  EXPECT_EQ(plain.first, again.first);
  for (size_t i = 0; i < plain.second.size(); ++i) {
    ASSERT_EQ(plain.second[i].defined(), again.second[i].defined()) << table_.all()[i].name;
    if (!plain.second[i].defined()) continue;
    EXPECT_TRUE(at::allclose(plain.second[i], again.second[i], 1e-12, 1e-13)) << table_.all()[i].name;
  }
}

TEST_P(EveryModel, PaddingBehindATextChangesNothingBeforeIt) {
  const Tensor tokens = random_tokens(2, 9, 23, 11);
  Tensor valid = at::ones({2, 9}, at::kBool);
  valid.narrow(1, 6, 3).fill_(false);
  const auto padded = model_->forward(tokens, {}, {.dtype = at::kDouble, .valid_BS = valid});
  const auto plain = model_->forward(tokens.narrow(1, 0, 6).contiguous(), {}, {.dtype = at::kDouble});
  EXPECT_TRUE(
      at::allclose(padded.logits_TV.view({2, 9, -1}).narrow(1, 0, 6), plain.logits_TV.view({2, 6, -1}), 0, 1e-11));
  for (size_t i = 0; i < plain.trace.size(); ++i) EXPECT_TRUE(padded.trace[i].counts_N.equal(plain.trace[i].counts_N));
  EXPECT_NEAR(model_->routing().loss(padded.trace).item<double>(), model_->routing().loss(plain.trace).item<double>(),
              1e-12);
}

TEST_P(EveryModel, TheHeadMakesTheLogitsOfTheHiddenStates) {
  const Tensor tokens = random_tokens(2, 9, 23, 11);
  const auto hidden = model_->forward(tokens, {}, {.dtype = at::kDouble, .hidden_only = true});
  EXPECT_FALSE(hidden.logits_TV.defined());
  const auto plain = model_->forward(tokens, {}, {.dtype = at::kDouble});
  EXPECT_TRUE(model_->head()(hidden.hidden_TD).equal(plain.logits_TV));
}

TEST_P(EveryModel, RecordedChoicesReplay) {
  const Tensor tokens = random_tokens(2, 9, 23, 11);
  const auto plain = model_->forward(tokens, {}, {.dtype = at::kDouble});
  std::vector<Tensor> choices;
  for (const auto& routing : plain.trace) choices.push_back(routing.ids_TK);
  const auto again = model_->forward(tokens, {}, {.dtype = at::kDouble, .replay_TK = choices});
  EXPECT_TRUE(again.logits_TV.equal(plain.logits_TV));
  choices.pop_back();
  EXPECT_THROW(model_->forward(tokens, {}, {.dtype = at::kDouble, .replay_TK = choices}), Error);
}

TEST_P(EveryModel, SharedParametersStartEqualWithAndWithoutTheStage) {
  const auto other = tiny_config(config_.model.family, !std::get<1>(GetParam()));
  ParamTable table(1, at::kDouble);
  make_model(other.model, table);
  int64_t shared = 0;
  for (const Param& a : table_.all()) {
    for (const Param& b : table.all()) {
      if (a.name != b.name) continue;
      EXPECT_TRUE(a.value.equal(b.value)) << a.name;
      ++shared;
    }
  }
  EXPECT_GT(shared, 20);
}

TEST_P(EveryModel, Bf16StaysCloseToFp32) {
  ParamTable table(1, at::kFloat);
  const auto model = make_model(config_.model, table);
  const Tensor tokens = random_tokens(2, 8, 23, 11);
  const Tensor low = model->forward(tokens, {}, {.dtype = at::kBFloat16}).logits_TV.to(at::kDouble);
  const Tensor exact = logits(tokens).flatten(0, 1);
  EXPECT_EQ(model->forward(tokens, {}, {.dtype = at::kBFloat16}).logits_TV.scalar_type(), at::kBFloat16);
  EXPECT_LT((low - exact).norm().item<double>(), 0.1 * exact.norm().item<double>());
}

INSTANTIATE_TEST_SUITE_P(All, EveryModel,
                         ::testing::Combine(::testing::Values(Family::kSpan, Family::kLlama), ::testing::Bool()),
                         [](const auto& param_info) {
                           return testing::tiny_name(std::get<0>(param_info.param), std::get<1>(param_info.param));
                         });

TEST(SpanModel, BlocksWithTheDetachedCacheEqualOnePass) {
  const auto config = tiny_config(Family::kSpan, true);
  ParamTable table(1, at::kDouble);
  const auto model = make_model(config.model, table);
  const Tensor tokens = random_tokens(2, 16, 23, 12);
  const Tensor whole = model->forward(tokens, {}, {.dtype = at::kDouble}).logits_TV.view({2, 16, -1});
  Memory memory;
  for (int64_t block = 0; block < 4; ++block) {
    auto result = model->forward(tokens.narrow(1, 4 * block, 4).contiguous(), std::move(memory),
                                 {.dtype = at::kDouble, .remember = Remember::kHidden});
    memory = std::move(result.memory);
    EXPECT_TRUE(at::allclose(result.logits_TV.view({2, 4, -1}), whole.narrow(1, 4 * block, 4), 0, 1e-11)) << block;
    for (const LayerMemory& layer : memory.layers) EXPECT_FALSE(layer.hidden_BSD.requires_grad());
  }
}

TEST(StoreWeightsAs, RoundsAsTheProductsWouldAndLeavesTheRouterAlone) {
  for (const Family family : {Family::kSpan, Family::kLlama}) {
    const ModelConfig config = testing::tiny_config(family, true).model;
    ParamTable params(1, at::kFloat);
    const auto model = make_model(config, params);
    const at::NoGradGuard no_grad;
    const Tensor tokens = testing::random_tokens(2, 7, config.vocab_size, 3);
    const ForwardOptions options{.dtype = at::kBFloat16, .remember = Remember::kKeysValues};
    const Tensor before = model->forward(tokens, {}, options).logits_TV;
    store_weights_as(params, at::kBFloat16);
    EXPECT_TRUE(at::equal(model->forward(tokens, {}, options).logits_TV, before));
    int narrow = 0;
    for (const Param& p : params.all()) {
      const bool router = p.name.find("rnn_router") != std::string::npos || p.name.ends_with("gate.weight");
      if (router) {
        EXPECT_EQ(p.value.scalar_type(), at::kFloat) << p.name;
      }
      if (p.value.scalar_type() == at::kBFloat16) ++narrow;
    }
    EXPECT_GT(narrow, 3 * 4);
  }
}

}  // namespace
}  // namespace rmoe
