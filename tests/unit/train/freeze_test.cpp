// Freezing by name patterns: what is meant, and what is refused.
#include "rmoe/train/freeze.h"

#include <gtest/gtest.h>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/train/optimizer.h"
#include "tests/support/tiny.h"

namespace rmoe {
namespace {

struct Made {
  explicit Made(Family family = Family::kLlama, const std::vector<std::string>& flags = {}) {
    config = testing::tiny_config(family, true);
    bind(config, parse_flags(flags));
    table = ParamTable(1, at::kFloat);
    model = make_model(config.model, table);
  }
  Frozen freeze(const std::vector<std::string>& globs) { return rmoe::freeze(table, model->routing(), globs); }
  std::string refusal(const std::vector<std::string>& globs) {
    try {
      freeze(globs);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Exit::kBadInput);
      EXPECT_FALSE(error.help().empty() && error.message().find("nothing is left") == std::string::npos);
      return error.message();
    }
    return "";
  }
  bool trained(const std::string& name) const {
    for (const Param& p : table.all()) {
      if (p.name != name) continue;
      EXPECT_EQ(p.value.requires_grad(), p.traits.trainable) << name;
      return p.traits.trainable;
    }
    ADD_FAILURE() << "no " << name;
    return false;
  }
  RunConfig config;
  ParamTable table;
  std::unique_ptr<Model> model;
};

TEST(Freeze, FreezesWhatMatchesAndNothingElse) {
  Made m;
  const Frozen frozen = m.freeze({"*.self_attn.*", "lm_head.weight"});
  EXPECT_FALSE(m.trained("model.layers.0.self_attn.q_proj.weight"));
  EXPECT_FALSE(m.trained("lm_head.weight"));
  EXPECT_TRUE(m.trained("model.embed_tokens.weight"));
  EXPECT_TRUE(m.trained("model.layers.1.block_sparse_moe.experts.w1.weight"));
  EXPECT_EQ(frozen.tensors, 3 * 4 + 1);
  EXPECT_EQ(frozen.routers, std::vector<bool>(2, false));
}

TEST(Freeze, ALaterGlobTakesBack) {
  Made m;
  m.freeze({"*", "!*.block_sparse_moe.*", "*.experts.*"});
  EXPECT_TRUE(m.trained("model.layers.1.block_sparse_moe.weight1"));
  EXPECT_TRUE(m.trained("model.layers.2.block_sparse_moe.weight2"));
  EXPECT_FALSE(m.trained("model.layers.1.block_sparse_moe.experts.w2.weight"));
  EXPECT_FALSE(m.trained("model.rnn_router.weight_ih"));
}

// A glob may name the experts as checkpoints do, one by one, as long as it means all of a tensor's.
TEST(Freeze, KnowsTheNamesOfCheckpoints) {
  Made m;
  const Frozen frozen = m.freeze({"model.layers.1.block_sparse_moe.experts.*.w1.weight", "model.rnn_router.weight_h?"});
  EXPECT_FALSE(m.trained("model.layers.1.block_sparse_moe.experts.w1.weight"));
  EXPECT_TRUE(m.trained("model.layers.1.block_sparse_moe.experts.w2.weight"));
  EXPECT_FALSE(m.trained("model.rnn_router.weight_hh"));
  EXPECT_TRUE(m.trained("model.rnn_router.weight_ih"));
  EXPECT_EQ(frozen.tensors, 5 + 3);
}

TEST(Freeze, RoutersAreFrozenWhereNothingOfTheHeadIsTrained) {
  Made gates, projections, one;
  EXPECT_EQ(gates.freeze({"*.weight2"}).routers, std::vector<bool>(2, true));
  EXPECT_EQ(projections.freeze({"*.weight1"}).routers, std::vector<bool>(2, false));
  EXPECT_EQ(one.freeze({"model.layers.2.block_sparse_moe.weight2"}).routers, (std::vector<bool>{false, true}));
  // What the model itself never trains is no frozen router: its balance is as configured.
  Made random(Family::kSpan, {"--model.moe.router.kind=random"});
  EXPECT_EQ(random.freeze({"*.self_attn.*"}).routers, std::vector<bool>(2, false));
}

// The bias behind the experts (moe.bias) lies where routers do, and routes nothing.
TEST(Freeze, ThePapersConfigsFreezeWhatRoutesAndNothingElse) {
  for (const char* stage : {"none", "gru", "additive"}) {
    for (const char* file : {"sft_alpaca_frozen_router.toml", "sft_alpaca_frozen_router_and_cell.toml"}) {
      const bool cell = std::string(file).find("cell") != std::string::npos;
      if (cell && std::string(stage) != "gru") continue;
      Made m(Family::kLlama, {std::string("--model.moe.stage.kind=") + stage, "--model.moe.bias=true",
                              "--model.moe.router.bias=true", "--model.moe.balance=[{kind = \"bias\"}]"});
      const auto path = std::filesystem::path(RMOE_SOURCE_DIR) / "configs" / file;
      m.freeze(load_config<RunConfig>(path, {}).train.freeze);
      int common = 0;
      for (const Param& p : m.table.all()) {
        if (p.is_buffer()) continue;
        const bool frozen = belongs_to_routing(p) && (cell || p.name.find("rnn_router") == std::string::npos);
        EXPECT_EQ(p.traits.trainable, !frozen) << file << ", " << stage << ": " << p.name;
        common += p.name.ends_with("block_sparse_moe.bias");
      }
      EXPECT_EQ(common, 2);
    }
  }
}

TEST(Freeze, RefusesWhatCannotBeMeant) {
  Made m;
  EXPECT_NE(m.refusal({"*.gate_proj.weigth"}).find("'*.gate_proj.weigth' matches no tensor"), std::string::npos);
  EXPECT_NE(m.refusal({"*", "!*.nothing"}).find("'!*.nothing' matches no tensor"), std::string::npos);
  EXPECT_NE(m.refusal({"*.experts.3.*"}).find("1 of the 5 parts"), std::string::npos);
  EXPECT_NE(m.refusal({"*"}).find("nothing is left to train"), std::string::npos);
}

TEST(Freeze, FrozenTensorsCostNoOptimizerState) {
  Made m;
  m.freeze({"*.self_attn.*", "*.experts.*"});
  const Optimizer optimizer(m.table, m.config.train.optimizer);
  int64_t elements = 0;
  for (const auto& [name, tensor] : optimizer.state()) {
    EXPECT_EQ(name.find("self_attn"), std::string::npos) << name;
    EXPECT_EQ(name.find("experts"), std::string::npos) << name;
    elements += tensor.numel();
  }
  EXPECT_EQ(elements, 2 * trained_count(m.table));
  EXPECT_LT(trained_count(m.table), m.table.count());
}

// The counting table of `--plan` is frozen by the same names.
TEST(Freeze, CountsWithoutTensors) {
  const RunConfig config = testing::tiny_config(Family::kLlama, true);
  ParamTable counting;
  const auto model = make_model(config.model, counting);
  Made m;
  EXPECT_EQ(freeze(counting, model->routing(), {"*.mlp.*"}).params, m.freeze({"*.mlp.*"}).params);
  EXPECT_EQ(trained_count(counting), trained_count(m.table));
}

}  // namespace
}  // namespace rmoe
