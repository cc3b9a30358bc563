// The accounting of a step's time: every nanosecond in one row, in the layer that it is for.
#include "rmoe/bench/profile.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "rmoe/bench/recorder.h"
#include "rmoe/ops/region.h"
#include "rmoe/ops/torch.h"
#include "rmoe/train/trainer.h"
#include "support/temp_dir.h"
#include "support/tiny.h"

namespace rmoe::bench {
namespace {

using Kind = Profile::Kind;

const Profile::Row* find(const std::vector<Profile::Row>& rows, const std::string& name) {
  const auto found = std::find_if(rows.begin(), rows.end(), [&](const auto& row) { return row.name == name; });
  return found == rows.end() ? nullptr : &*found;
}

double total(const std::vector<Profile::Row>& rows) {
  double sum = 0;
  for (const auto& row : rows) sum += row.sum();
  return sum;
}

constexpr double kNano = 1e-9;

// Intervals with made-up times: `at` is the clock.
struct Script {
  Profile profile;
  int64_t at = 0;
  void enter(Kind kind, const char* name, int64_t sequence = -1) { profile.enter(kind, name, sequence, at); }
  void leave(int64_t sequence = -1) { profile.leave(sequence, at); }
  void op(const char* name, int64_t ns) {
    enter(Kind::kOp, name);
    at += ns;
    leave();
  }
  // A node's own work takes 1.
  void node(int64_t sequence, const char* op_name, int64_t ns) {
    enter(Kind::kNode, "Node", sequence);
    at += 1;
    op(op_name, ns);
    leave();
  }
};

// input and output ops, two layers whose nodes have the numbers 1 and 2, and their backward pass.
Script step() {
  Script s;
  s.enter(Kind::kRegion, "step", 0);
  s.at += 3;
  s.enter(Kind::kRegion, "forward", 0);
  s.op("embedding", 10);
  for (int64_t layer = 0; layer < 2; ++layer) {
    s.enter(Kind::kRegion, layer == 0 ? "layer 0" : "layer 1", 1 + layer);
    s.enter(Kind::kOp, "linear");
    s.at += 20;
    s.op("mm", 100);
    s.leave();
    s.at += 5;
    s.leave(2 + layer);
  }
  s.op("head", 40);
  s.leave(4);
  s.enter(Kind::kRegion, "loss", 4);
  s.op("loss", 7);
  s.leave(5);
  s.enter(Kind::kRegion, "backward", 5);
  s.node(3, "head_backward", 80);
  s.node(2, "linear_backward", 200);
  s.node(-1, "accumulate", 2);
  s.node(1, "linear_backward", 300);
  s.node(0, "embedding_backward", 30);
  s.leave(5);
  s.enter(Kind::kRegion, "optimizer", 5);
  s.op("adamw", 50);
  s.leave(5);
  s.leave(5);
  return s;
}

TEST(Profile, OpsGetWhatTheyAndWhatTheyCallTake) {
  const Script s = step();
  const auto ops = s.profile.ops();
  const auto* linear = find(ops, "linear");
  ASSERT_TRUE(linear);
  EXPECT_DOUBLE_EQ(linear->forward, 240 * kNano);
  EXPECT_EQ(linear->calls, 2);
  EXPECT_FALSE(find(ops, "mm"));
  EXPECT_DOUBLE_EQ(find(ops, "linear_backward")->backward, 500 * kNano);
  EXPECT_DOUBLE_EQ(find(ops, "adamw")->forward, 50 * kNano);
  // Around the ops: 3 before the forward pass, 5 in each layer, 1 in each of five nodes.
  EXPECT_EQ(ops.back().name, Profile::kUnattributed);
  EXPECT_DOUBLE_EQ(ops.back().forward, 13 * kNano);
  EXPECT_DOUBLE_EQ(ops.back().backward, 5 * kNano);
}

TEST(Profile, NodesBelongToTheLayerThatMadeThem) {
  const auto parts = step().profile.parts();
  std::vector<std::string> names;
  for (const auto& row : parts) names.push_back(row.name);
  EXPECT_EQ(names, (std::vector<std::string>{"input", "layer 0", "layer 1", "output", "optimizer", Profile::kOutside}));
  EXPECT_DOUBLE_EQ(find(parts, "input")->forward, 10 * kNano);
  EXPECT_DOUBLE_EQ(find(parts, "input")->backward, 31 * kNano);
  EXPECT_DOUBLE_EQ(find(parts, "layer 0")->forward, 125 * kNano);
  EXPECT_DOUBLE_EQ(find(parts, "layer 0")->backward, 301 * kNano);
  // What gathers gradients has no number: it follows the node that made them.
  EXPECT_DOUBLE_EQ(find(parts, "layer 1")->backward, (201 + 3) * kNano);
  EXPECT_DOUBLE_EQ(find(parts, "output")->forward, 47 * kNano);
  EXPECT_DOUBLE_EQ(find(parts, "output")->backward, 81 * kNano);
  EXPECT_DOUBLE_EQ(find(parts, "optimizer")->forward, 50 * kNano);
  EXPECT_DOUBLE_EQ(find(parts, Profile::kOutside)->forward, 3 * kNano);
}

TEST(Profile, BothTablesAddUpToTheWhole) {
  const Script s = step();
  EXPECT_DOUBLE_EQ(s.profile.seconds(), static_cast<double>(s.at) * kNano);
  EXPECT_NEAR(total(s.profile.parts()), s.profile.seconds(), 1e-15);
  EXPECT_NEAR(total(s.profile.ops()), s.profile.seconds(), 1e-15);
  const Json json = s.profile.json(2);
  EXPECT_DOUBLE_EQ(json.at("step_s"), s.profile.seconds() / 2);
  double shares = 0;
  for (const Json& row : json.at("ops")) shares += row.at("share").get<double>();
  EXPECT_NEAR(shares, 1, 1e-12);
}

TEST(Profile, ARecomputedLayersNodesAreTheLayers) {
  Script s;
  s.enter(Kind::kRegion, "step", 0);
  s.enter(Kind::kRegion, "forward", 0);
  for (int64_t layer = 0; layer < 2; ++layer) {
    // The node that will recompute has the number `layer`; the layer itself makes none.
    s.enter(Kind::kRegion, layer == 0 ? "layer 0" : "layer 1", layer + 1);
    s.op("linear", 10);
    s.leave(layer + 1);
  }
  s.leave(3);
  s.enter(Kind::kRegion, "backward", 3);
  s.enter(Kind::kNode, "Recompute", 1);
  s.enter(Kind::kRegion, "layer 1", 3);
  s.op("linear", 10);
  s.leave(5);
  s.node(4, "linear_backward", 20);
  s.leave();
  s.leave();
  s.leave();
  const auto parts = s.profile.parts();
  EXPECT_DOUBLE_EQ(find(parts, "layer 0")->sum(), 10 * kNano);
  EXPECT_DOUBLE_EQ(find(parts, "layer 1")->forward, 10 * kNano);
  EXPECT_DOUBLE_EQ(find(parts, "layer 1")->backward, 31 * kNano);
}

TEST(Recorder, SeesTheOpsOfThisThreadWhileItLives) {
  const Tensor w = at::ones({4, 4}).requires_grad_();
  Profile profile;
  {
    const Recorder recorder(profile);
    const Region region("step");
    Tensor y;
    {
      const Region forward("forward");
      const Region layer("layer", 3);
      y = at::mm(w, w).sum();
    }
    const Region backward("backward");
    y.backward();
  }
  at::mm(w, w);
  const auto ops = profile.ops();
  ASSERT_TRUE(find(ops, "aten::mm"));
  EXPECT_EQ(find(ops, "aten::mm")->calls, 3);
  const auto parts = profile.parts();
  ASSERT_TRUE(find(parts, "layer 3"));
  EXPECT_GT(find(parts, "layer 3")->forward, 0);
  EXPECT_GT(find(parts, "layer 3")->backward, 0);
}

// The regions of a real step: every layer has time in both passes, and little lies outside of all.
class ProfiledStep : public ::testing::TestWithParam<Recompute> {};

TEST_P(ProfiledStep, EveryLayerWorksInBothPasses) {
  const TempDir dir;
  RunConfig config = testing::tiny_config(Family::kLlama, true);
  config.train.recompute = GetParam();
  data::TokenWriter writer(dir.path() / "train.tok", config.model.vocab_size, 0);
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < 1000; ++i) ids.push_back(i * i % config.model.vocab_size);
  writer.append(ids);
  writer.commit();
  Trainer trainer(config, data::TokenFile::open(dir.path() / "train.tok"));
  trainer.step();
  Profile profile;
  {
    const Recorder recorder(profile);
    const Region region("step");
    trainer.step();
  }
  const auto parts = profile.parts();
  for (const char* name : {"input", "layer 0", "layer 1", "layer 2", "output"}) {
    ASSERT_TRUE(find(parts, name)) << name;
    EXPECT_GT(find(parts, name)->forward, 0) << name;
    EXPECT_GT(find(parts, name)->backward, 0) << name;
  }
  for (const char* name : {"gradient norm", "optimizer"}) ASSERT_TRUE(find(parts, name)) << name;
  EXPECT_NEAR(total(parts), profile.seconds(), 1e-9);
  EXPECT_NEAR(total(profile.ops()), profile.seconds(), 1e-9);
  EXPECT_LT(find(parts, Profile::kOutside)->calls, 20);  // the batch
}

INSTANTIATE_TEST_SUITE_P(, ProfiledStep, ::testing::Values(Recompute::kNone, Recompute::kLayer),
                         [](const auto& test) { return std::string(enum_name(test.param)); });

}  // namespace
}  // namespace rmoe::bench
