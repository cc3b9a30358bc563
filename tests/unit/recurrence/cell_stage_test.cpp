// The stages with a recurrent cell, against torch.nn's equations token by token.
#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "tests/support/leaf_gradcheck.h"
#include "tests/unit/recurrence/stages.h"

namespace rmoe::routing {
namespace {

using rmoe::testing::expect_leaf_gradients;
using rmoe::testing::randn;

// h and c of one token.
struct TokenState {
  Tensor h, c;
};

// One step of a cell on one token. `w` finds a weight by the end of its public name.
TokenState advance(const std::string& kind, const std::function<Tensor(const std::string&)>& w, const Tensor& x,
                   const TokenState& s) {
  const auto input = [&](const char* gate) {
    return w(std::string("weight_i") + gate).mv(x) + w(std::string("bias_i") + gate);
  };
  const auto hidden = [&](const char* gate) {
    return w(std::string("weight_h") + gate).mv(s.h) + w(std::string("bias_h") + gate);
  };
  const auto sum = [&](const char* gate) { return input(gate) + hidden(gate); };
  if (kind == "rnn") return {at::tanh(sum("n")), s.c};
  if (kind == "gru") {
    const Tensor r = at::sigmoid(sum("r")), z = at::sigmoid(sum("z")), n = at::tanh(input("n") + r * hidden("n"));
    return {(1 - z) * n + z * s.h, s.c};
  }
  const Tensor c = at::sigmoid(sum("f")) * s.c + at::sigmoid(sum("i")) * at::tanh(sum("g"));
  return {at::sigmoid(sum("o")) * at::tanh(c), c};
}

struct Case {
  std::string kind;
  bool project = true, pass = true;
  int64_t layers_per_cell = 0;

  std::string options() const {
    return str("width = ", kP, ", project = ", project, ", pass = ", pass, ", layers_per_cell = ", layers_per_cell);
  }
};

std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.kind << ", " << c.options(); }

class CellStages : public ::testing::TestWithParam<Case> {};

TEST_P(CellStages, FollowTheEquationsTokenByToken) {
  const Case& c = GetParam();
  const TestStage s(c.kind, c.options());
  const auto xs = inputs();
  const auto got = s.features(xs);
  const int64_t cells = c.layers_per_cell == 0 ? 1 : (3 + c.layers_per_cell - 1) / c.layers_per_cell;
  for (int64_t t = 0; t < kT; ++t) {
    const Tensor zero = at::zeros({kP}, at::kDouble);
    TokenState state{zero, zero};
    for (int64_t i = 0; i < 3; ++i) {
      const std::string cell = cells == 1 ? "shared." : "shared.cells." + std::to_string(i / c.layers_per_cell) + ".";
      const Tensor x = c.project ? s.layer(i, "weight1").mv(xs[i][t]) : xs[i][t];
      if (!c.pass) state = {zero, zero};
      state = advance(c.kind, [&](const std::string& name) { return s[cell + name]; }, x, state);
      EXPECT_LT(distance(got[i][t], state.h), 1e-14) << "layer " << i << ", token " << t;
    }
  }
}

TEST_P(CellStages, GradientsThroughThreeLayersMatchFiniteDifferences) {
  const TestStage s(GetParam().kind, GetParam().options());
  auto xs = inputs();
  auto leaves = s.leaves();
  for (Tensor& x : xs) leaves.push_back(x.requires_grad_(true));
  expect_leaf_gradients([&] { return at::cat(s.features(xs), 1); }, leaves);
}

TEST_P(CellStages, TheCarryIsDifferentiableToo) {
  const TestStage s(GetParam().kind, GetParam().options());
  const Tensor x = inputs(1)[0], h = randn({kT, kP}, 20).requires_grad_(true),
               c = randn({kT, kP}, 21).requires_grad_(true);
  expect_leaf_gradients(
      [&] {
        const StageStep step = s.stage->step(1, x, carry_of(h, c));
        const Tensor cell = step.carry.cell_TP;
        return cell.defined() ? at::cat({step.feature_TR, cell}, 1) : step.feature_TR;
      },
      {h, c});
}

TEST_P(CellStages, ChangeOnlyTheirOwnPartOfTheCarry) {
  const Case& c = GetParam();
  const TestStage s(c.kind, c.options());
  const std::vector<Tensor> scores{randn({kT, 7}, 1), Tensor()};
  const StageStep step = s.stage->step(0, inputs(1)[0], carry_of({}, {}, scores));
  ASSERT_EQ(step.carry.scores_TN.size(), 2U);
  EXPECT_TRUE(step.carry.scores_TN[0].is_same(scores[0]));
  EXPECT_FALSE(step.carry.scores_TN[1].defined());
  EXPECT_EQ(step.carry.state_TP.defined(), c.pass);
  EXPECT_EQ(step.carry.cell_TP.defined(), c.pass && c.kind == "lstm");
  if (c.pass) {
    EXPECT_TRUE(step.carry.state_TP.equal(step.feature_TR));
  }
}

TEST_P(CellStages, NoTokensAreNoMistake) {
  const TestStage s(GetParam().kind, GetParam().options());
  const Tensor none = at::zeros({0, kD}, at::kDouble);
  for (const Tensor& h : s.features({none, none, none})) EXPECT_EQ(h.sizes(), at::IntArrayRef({0, kP}));
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const char* kind : {"gru", "rnn", "lstm"}) {
    all.push_back({kind});
    all.push_back({kind, /*project=*/false});
    all.push_back({kind, true, /*pass=*/false});
    all.push_back({kind, true, true, /*layers_per_cell=*/2});
    all.push_back({kind, false, false, 1});
  }
  return all;
}
INSTANTIATE_TEST_SUITE_P(All, CellStages, ::testing::ValuesIn(cases()), [](const auto& suite) {
  const Case& c = suite.param;
  return str(c.kind, c.project ? "" : "_s_proj", c.pass ? "" : "_np", "_cells_of_", c.layers_per_cell);
});

class Cells : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, Cells, ::testing::Values("gru", "rnn", "lstm"),
                         [](const auto& suite) { return std::string(suite.param); });

TEST_P(Cells, WithoutPassingEveryLayerIsAFreshCall) {
  const TestStage passing(GetParam()), np(GetParam(), "width = 3, pass = false");
  const auto xs = inputs(), features = np.features(xs);
  for (int64_t i = 0; i < 3; ++i) EXPECT_TRUE(features[i].equal(passing.stage->step(i, xs[i], {}).feature_TR));
  EXPECT_EQ(np.table.count(), passing.table.count());
}

TEST_P(Cells, GradientLayersCutTheGradientAndKeepTheValues) {
  constexpr int64_t kLayers = 4;
  const TestStage plain(GetParam(), "width = 3", kLayers);
  for (const int64_t m : {1, 2, 3, 4}) {
    const TestStage cut(GetParam(), "width = 3, gradient_layers = " + std::to_string(m), kLayers);
    auto xs = inputs(kLayers), ys = inputs(kLayers);
    for (Tensor& x : xs) x.requires_grad_(true);
    for (Tensor& y : ys) y.requires_grad_(true);
    const auto got = cut.features(xs);

    // The plain stage, with the carry detached by hand.
    std::vector<Tensor> expected;
    RouterCarry carry;
    for (int64_t i = 0; i < kLayers; ++i) {
      if (i % m == 0 && i > 0) {
        carry.state_TP = carry.state_TP.detach();
        if (carry.cell_TP.defined()) carry.cell_TP = carry.cell_TP.detach();
      }
      StageStep step = plain.stage->step(i, ys[i], carry);
      expected.push_back(step.feature_TR);
      carry = step.carry;
    }
    for (int64_t i = 0; i < kLayers; ++i) EXPECT_TRUE(got[i].equal(expected[i])) << "layer " << i;
    for (int64_t i = 0; i < kLayers; ++i) {
      EXPECT_TRUE(got[i].equal(plain.features(xs)[i])) << "values do not depend on m, layer " << i;
    }

    // What the last layer's feature depends on begins at the last multiple of m.
    for (const auto& [stage, last, leaves] : {std::tuple{&cut, got.back(), xs}, {&plain, expected.back(), ys}}) {
      for (const Tensor& leaf : stage->leaves()) leaf.mutable_grad() = Tensor();
      (last * randn({kT, kP}, 5)).sum().backward();
      for (int64_t i = 0; i < kLayers; ++i) {
        EXPECT_EQ(leaves[i].grad().defined(), i >= (kLayers - 1) / m * m) << "m = " << m << ", layer " << i;
      }
    }
    for (size_t j = 0; j < plain.leaves().size(); ++j) {
      const Tensor a = cut.leaves()[j].grad(), b = plain.leaves()[j].grad();
      ASSERT_EQ(a.defined(), b.defined());
      if (a.defined()) {
        EXPECT_TRUE(a.equal(b)) << plain.table.all()[j].name;
      }
    }
  }
}

TEST_P(Cells, InSinglePrecisionTheFeatureIsSingleToo) {
  ParamTable table(1, at::kFloat);
  const auto stage = make_stage(table, GetParam(), "width = 3", 1, kD);
  EXPECT_EQ(stage->step(0, inputs(1)[0].to(at::kFloat), {}).feature_TR.scalar_type(), at::kFloat);
}

// The names in a checkpoint, in order.
std::vector<std::string> stored_names(const ParamTable& table) {
  std::vector<std::string> names;
  for (const Param& param : table.all()) {
    for (const auto& [name, value] : param.stored()) names.push_back(name);
  }
  return names;
}

TEST(CellStage, ParametersCarryThePublicNames) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(stored_names(TestStage("gru", "", 2).table),
            (Names{"layers.0.weight1", "layers.1.weight1", "shared.weight_ir", "shared.weight_iz", "shared.weight_in",
                   "shared.weight_hr", "shared.weight_hz", "shared.weight_hn", "shared.bias_ir", "shared.bias_iz",
                   "shared.bias_in", "shared.bias_hr", "shared.bias_hz", "shared.bias_hn"}));
  EXPECT_EQ(stored_names(TestStage("rnn", "project = false", 2).table),
            (Names{"shared.weight_in", "shared.weight_hn", "shared.bias_in", "shared.bias_hn"}));
  EXPECT_EQ(stored_names(TestStage("lstm", "project = false, layers_per_cell = 2", 2).table),
            (Names{"shared.weight_ii", "shared.weight_if", "shared.weight_ig", "shared.weight_io", "shared.weight_hi",
                   "shared.weight_hf", "shared.weight_hg", "shared.weight_ho", "shared.bias_ii", "shared.bias_if",
                   "shared.bias_ig", "shared.bias_io", "shared.bias_hi", "shared.bias_hf", "shared.bias_hg",
                   "shared.bias_ho"}));
  EXPECT_EQ(stored_names(TestStage("rnn", "project = false, layers_per_cell = 1", 2).table),
            (Names{"shared.cells.0.weight_in", "shared.cells.0.weight_hn", "shared.cells.0.bias_in",
                   "shared.cells.0.bias_hn", "shared.cells.1.weight_in", "shared.cells.1.weight_hn",
                   "shared.cells.1.bias_in", "shared.cells.1.bias_hn"}));
}

// The same start whatever the cell is packed as: torch's, uniform in +-1/sqrt(P) for the cell and +-1/sqrt(D) for Proj.
TEST(CellStage, ParametersStartAsTorchsDo) {
  const TestStage s("gru", "width = 64", 2);
  for (const Param& param : s.table.all()) {
    const double bound = 1 / std::sqrt(param.name.find("weight1") == std::string::npos ? 64.0 : 5.0);
    EXPECT_LE(param.value.abs().max().item<double>(), bound) << param.name;
    EXPECT_GT(param.value.abs().max().item<double>(), 0.9 * bound) << param.name;
  }
}

TEST(CellStage, ACellCountsOncePerLayerThatUsesIt) {
  const auto uses = [](const std::string& options, int64_t layers) {
    ParamTable table;
    make_stage(table, "gru", options, layers, kD);
    std::vector<double> result;
    for (const Param& param : table.all()) {
      if (param.name.ends_with("weight_hh")) result.push_back(param.traits.uses);
    }
    return result;
  };
  EXPECT_EQ(uses("", 8), std::vector<double>{8});
  EXPECT_EQ(uses("layers_per_cell = 3", 8), (std::vector<double>{3, 3, 2}));
  EXPECT_EQ(uses("layers_per_cell = 9000000000000000000", 8), std::vector<double>{8});
  EXPECT_EQ(uses("layers_per_cell = 3", 0), std::vector<double>{0});
}

// The totals of the reference's table for Enwik8 medium: SMoE without its gates, plus the stage and the gate after it.
TEST(CellStage, CountsGiveThePapersTotals) {
  constexpr int64_t kSmoe = 36'076'813, kLayers = 8, kWidth = 352, kExperts = 16;
  const auto total = [&](const char* kind, const std::string& options) {
    ParamTable table;
    const auto stage = make_stage(table, kind, options, kLayers, kWidth);
    const int64_t count =
        kSmoe - kLayers * kExperts * (kWidth + 1) + table.count() + kLayers * kExperts * (stage->feature_width() + 1);
    return std::round(static_cast<double>(count) / 1e4) / 100;
  };
  EXPECT_DOUBLE_EQ(total("none", ""), 36.08);
  EXPECT_DOUBLE_EQ(total("gru", ""), 36.51);
  EXPECT_DOUBLE_EQ(total("gru", "pass = false"), 36.51);
  EXPECT_DOUBLE_EQ(total("gru", "project = false"), 36.23);
  EXPECT_DOUBLE_EQ(total("rnn", ""), 36.44);
  EXPECT_DOUBLE_EQ(total("lstm", ""), 36.54);
}

TEST(CellStage, OptionsThatMakeNoSenseAreRefused) {
  for (const char* options : {"width = 0", "gradient_layers = -1", "layers_per_cell = -1"}) {
    EXPECT_THROW(TestStage("gru", options), Error) << options;
  }
  try {
    TestStage("lstm", "pass = false, gradient_layers = 2");
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::kBadInput);
    EXPECT_NE(e.message().find("gradient_layers is 2, but pass = false"), std::string::npos) << e.message();
  }
}

TEST(NoStage, HandsEverythingThrough) {
  const TestStage s("none", "");
  const Tensor x = inputs(1)[0], h = randn({kT, kP}, 1);
  const StageStep step = s.stage->step(2, x, carry_of(h, {}, {h}));
  EXPECT_TRUE(step.feature_TR.is_same(x));
  EXPECT_TRUE(step.carry.state_TP.is_same(h));
  EXPECT_EQ(step.carry.scores_TN.size(), 1U);
  EXPECT_EQ(s.stage->feature_width(), kD);
  EXPECT_FALSE(s.stage->recurrent());
  EXPECT_EQ(s.table.count(), 0);
}

}  // namespace
}  // namespace rmoe::routing
