// The common routes, which one op computes, against the plug-ins one by one: these compute in fp64 always.
#include <gtest/gtest.h>

#include "rmoe/base/config.h"
#include "rmoe/routing/pipeline.h"
#include "tests/support/gradcheck.h"
#include "tests/support/isas.h"

namespace rmoe::routing {
namespace {

using rmoe::testing::randn;

constexpr int64_t kTokens = 50, kWide = 20;

class TwoLayers {
 public:
  TwoLayers(const std::vector<std::string>& flags, at::ScalarType dtype) : table(1, dtype) {
    bind(moe_, parse_flags(flags));
    std::vector<ParamScope> scopes;
    for (const char* name : {"a", "b"}) scopes.emplace_back(table, name);
    pipeline_ =
        std::make_unique<Pipeline>(moe_, PipelineShape{.model_width = kWide, .vocab_size = 10, .init_deviation = 0.2},
                                   ParamScope(table, "s"), scopes);
  }

  RoutingTrace run(const Tensor& x_TD, const RouteContext& context) const {
    RoutingTrace trace;
    RouterCarry carry;
    for (int64_t layer = 0; layer < 2; ++layer) {
      RouteResult result = pipeline_->route(layer, x_TD, std::move(carry), context);
      trace.push_back(std::move(result.routing));
      carry = std::move(result.carry);
    }
    return trace;
  }

  // Of what a model reads of a trace.
  Tensor loss(const RoutingTrace& trace) const {
    Tensor total = pipeline_->loss(trace);
    for (const Routing& r : trace) {
      const auto weigh = [&](const Tensor& t) { return (t * randn(t.sizes(), 9).to(t.scalar_type())).sum(); };
      total = total + weigh(r.weights_TK) + weigh(r.probs_TN) + weigh(r.scores_TN) + weigh(r.logits_TN);
    }
    return total;
  }

  ParamTable table;

 private:
  MoeConfig moe_;
  std::unique_ptr<Pipeline> pipeline_;
};

void expect_close(const Tensor& got, const Tensor& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(got.defined(), expected.defined()) << what;
  if (!got.defined() || got.numel() == 0) return;
  ASSERT_EQ(got.sizes(), expected.sizes()) << what;
  const double scale = std::max(expected.abs().max().item<double>(), 1.0);
  EXPECT_LE((got.to(at::kDouble) - expected).abs().max().item<double>(), tolerance * scale) << what;
}

std::vector<std::vector<std::string>> configs() {
  std::vector<std::vector<std::string>> all;
  for (const char* stage : {"none", "gru", "rnn", "lstm", "additive"}) {
    for (const char* router : {"linear", "linear, bias = true", "random", "mlp", "cosine", "xmoe"}) {
      for (const char* score : {"softmax", "softmax_selected"}) {
        all.push_back({std::string("--stage={kind = ") + stage + (*stage == 'n' ? "}" : ", width = 12}"),
                       std::string("--router={kind = ") + router + "}", std::string("--score.kind=") + score});
      }
    }
    all.push_back({std::string("--stage.kind=") + stage, "--capacity=1.0", "--top_k=3"});
    all.push_back({std::string("--stage.kind=") + stage, "--router_group=0", "--experts=5", "--top_k=5"});
    all.push_back({std::string("--stage.kind=") + stage, "--selection={kind = top_k, grow_to = 4}"});
    all.push_back({std::string("--stage.kind=") + stage, "--score.kind=sigmoid"});
    all.push_back({std::string("--stage.kind=") + stage, "--balance=[{kind = bias}]"});
  }
  return all;
}

TEST(GatePath, AgreesWithThePlugInsOneByOne) {
  for (const auto& flags : configs()) {
    TwoLayers narrow(flags, at::kFloat), wide(flags, at::kDouble);
    for (size_t i = 0; i < wide.table.all().size(); ++i) {
      const at::NoGradGuard no_grad;
      wide.table.all()[i].value.copy_(narrow.table.all()[i].value);
    }
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      std::string what = c10::toString(dtype);
      for (const std::string& flag : flags) what += " " + flag;
      Tensor x = randn({kTokens, kWide}, 2, dtype), x64 = x.to(at::kDouble);
      x.requires_grad_(true), x64.requires_grad_(true);
      const RouteContext context{.training = true, .tokens_T = at::arange(kTokens).remainder(10)};
      const RoutingTrace got = narrow.run(x, context), expected = wide.run(x64, context);
      for (size_t i = 0; i < 2; ++i) {
        const Routing &a = got[i], &b = expected[i];
        EXPECT_TRUE(a.ids_TK.equal(b.ids_TK) && a.chosen_TK.equal(b.chosen_TK)) << what;
        EXPECT_TRUE(a.counts_N.equal(b.counts_N) && a.chosen_N.equal(b.chosen_N)) << what;
        EXPECT_EQ(a.full, b.full) << what;
        EXPECT_EQ(a.dropped.defined(), b.dropped.defined()) << what;
        EXPECT_EQ(a.weights_TK.scalar_type(), at::kFloat) << what;
        expect_close(a.weights_TK, b.weights_TK, 1e-5, what + ": weights");
        expect_close(a.logits_TN, b.logits_TN, 1e-5, what + ": logits");
        expect_close(a.scores_TN, b.scores_TN, 1e-5, what + ": scores");
        expect_close(a.probs_TN, b.probs_TN, 1e-5, what + ": probabilities");
      }
      for (TwoLayers* net : {&narrow, &wide}) {
        for (Param& param : net->table.all()) param.value.mutable_grad() = Tensor();
      }
      narrow.loss(got).backward();
      wide.loss(expected).backward();
      EXPECT_EQ(x.grad().scalar_type(), dtype) << what;
      expect_close(x.grad(), x64.grad(), dtype == at::kFloat ? 2e-5 : 1e-2, what + ": gradient of x");
      for (size_t i = 0; i < wide.table.all().size(); ++i) {
        expect_close(narrow.table.all()[i].value.grad(), wide.table.all()[i].value.grad(), 2e-5,
                     what + ": gradient of " + wide.table.all()[i].name);
      }
    }
  }
}

TEST(GatePath, PaddingAndReplayChooseAsThePlugInsDo) {
  TwoLayers net({"--stage.kind=gru"}, at::kFloat);
  const Tensor x = randn({kTokens, kWide}, 2, at::kFloat);
  const RoutingTrace all = net.run(x, {});
  Tensor valid = at::ones({kTokens}, at::kBool);
  valid.narrow(0, 40, 10).fill_(false);
  const RoutingTrace padded = net.run(x, {.valid_T = valid}), again = net.run(x, {.replay_TK = all[1].chosen_TK});
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(padded[i].ids_TK.narrow(0, 0, 40).equal(all[i].ids_TK.narrow(0, 0, 40)));
    EXPECT_TRUE(padded[i].ids_TK.narrow(0, 40, 10).eq(-1).all().item<bool>());
    expect_close(padded[i].weights_TK.narrow(0, 0, 40), all[i].weights_TK.narrow(0, 0, 40).to(at::kDouble), 1e-6, "");
  }
  EXPECT_TRUE(again[0].ids_TK.equal(all[1].ids_TK));
}

}  // namespace
}  // namespace rmoe::routing
