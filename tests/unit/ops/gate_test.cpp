#include "rmoe/ops/gate.h"

#include "rmoe/base/error.h"
#include "rmoe/ops/reference/gate.h"
#include "tests/support/accuracy.h"
#include "tests/support/gradcheck.h"
#include "tests/support/isas.h"

namespace rmoe {
namespace {

using testing::randn;

struct Case {
  int64_t T, R, N, K;
  bool bias = true, renormalize = true;
  at::ScalarType dtype = at::kFloat;  // of the feature
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "T " << c.T << " R " << c.R << " N " << c.N << " K " << c.K << (c.bias ? ", bias" : "")
             << (c.renormalize ? ", renormalized" : "") << ", feature in " << c10::toString(c.dtype);
}

// feature, weight, bias, then the gradients of weights, probs and logits.
std::vector<Tensor> inputs(const Case& c) {
  const double scale = 3 / std::sqrt(static_cast<double>(std::max<int64_t>(c.R, 1)));
  return {randn({c.T, c.R}, 1).to(c.dtype),
          (randn({c.N, c.R}, 2) * scale).to(at::kFloat),
          c.bias ? randn({c.N}, 3, at::kFloat) : Tensor(),
          randn({c.T, c.K}, 4, at::kFloat),
          randn({c.T, c.N}, 5, at::kFloat),
          randn({c.T, c.N}, 6, at::kFloat)};
}

std::optional<Tensor> optional(const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; }

struct Results {
  Tensor ids, counts;
  std::vector<Tensor> values;  // weights, probs, logits, gradients of feature, weight, bias (undefined without)
};
constexpr const char* kNames[] = {"weights", "probs", "logits", "d_feature", "d_weight", "d_bias"};

Results run(const Case& c, std::vector<Tensor> in) {
  for (size_t i = 0; i < 3; ++i) {
    if (in[i].defined()) in[i] = in[i].detach().requires_grad_(true);
  }
  const Gated g = gate(in[0], in[1], in[2], c.K, c.renormalize);
  ((g.weights_TK * in[3]).sum() + (g.probs_TN * in[4]).sum() + (g.logits_TN * in[5]).sum()).backward();
  return {g.ids_TK,
          g.counts_N,
          {g.weights_TK.detach(), g.probs_TN.detach(), g.logits_TN.detach(), in[0].grad(), in[1].grad(),
           in[2].defined() ? in[2].grad() : Tensor()}};
}

Results by_reference(const Case& c, const std::vector<Tensor>& in) {
  const auto [ids, weights, probs, logits, counts] = reference::gate(in[0], in[1], optional(in[2]), c.K, c.renormalize);
  const auto [d_feature, d_weight, d_bias] =
      reference::gate_backward(in[3], in[4], in[5], in[0], in[1], optional(in[2]), ids, weights, probs, c.renormalize);
  return {ids, counts, {weights, probs, logits, d_feature, d_weight, c.bias ? d_bias : Tensor()}};
}

std::vector<Tensor> in_fp64(std::vector<Tensor> in) {
  for (Tensor& t : in) {
    if (t.defined()) t = t.to(at::kDouble);
  }
  return in;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const bool renormalize : {true, false}) {
      for (const bool bias : {true, false}) all.push_back({61, 44, 16, 2, bias, renormalize, dtype});
      all.push_back({1, 352, 16, 2, false, renormalize, dtype});  // decoding
      all.push_back({8, 33, 17, 3, true, renormalize, dtype});
      all.push_back({9, 1, 1, 1, false, renormalize, dtype});
      all.push_back({0, 5, 4, 2, true, renormalize, dtype});
      all.push_back({300, 128, 67, 8, true, renormalize, dtype});  // several tiles, N over two panels
      all.push_back({130, 7, 15, 15, false, renormalize, dtype});  // all experts
    }
  }
  return all;
}

TEST(Gate, IsAsAccurateAsTheReferenceWithEveryInstructionSet) {
  for (const Case& c : cases()) {
    const auto in = inputs(c);
    const Results oracle = by_reference(c, in_fp64(in));
    Results plain;
    testing::with_every_isa([&](const std::string& isa) {
      if (isa == "plain") plain = by_reference(c, in);  // its products, too, are the library's
      const Results got = run(c, in);
      const std::string what = ::testing::PrintToString(c) + ", " + isa;
      EXPECT_TRUE(got.ids.equal(oracle.ids)) << what;
      EXPECT_TRUE(got.counts.equal(oracle.counts)) << what;
      for (size_t i = 0; i < got.values.size(); ++i) {
        ASSERT_EQ(got.values[i].defined(), oracle.values[i].defined()) << what << ", " << kNames[i];
        if (!got.values[i].defined()) continue;
        EXPECT_EQ(got.values[i].scalar_type(), i == 3 ? c.dtype : at::kFloat) << what;
        testing::expect_as_accurate(what + ", " + kNames[i], got.values[i], plain.values[i], oracle.values[i]);
      }
    });
  }
}

TEST(Gate, DoesNotDependOnTheNumberOfThreads) {
  const Case c{700, 44, 16, 2, true, true, at::kBFloat16};
  const auto in = inputs(c);
  testing::with_every_isa([&](const std::string& isa) {
    if (isa == "plain") return;
    const Results one = testing::with_threads(1, [&] { return run(c, in); });
    const Results two = testing::with_threads(2, [&] { return run(c, in); });
    EXPECT_TRUE(one.ids.equal(two.ids) && one.counts.equal(two.counts)) << isa;
    for (size_t i = 0; i < one.values.size(); ++i) EXPECT_TRUE(one.values[i].equal(two.values[i])) << isa << kNames[i];
  });
}

TEST(Gate, EqualProbabilitiesGoToTheLowerExpert) {
  for (const int64_t T : {3, 40}) {
    const Tensor feature = at::ones({T, 4}), weight = at::zeros({6, 4});
    weight[2].fill_(1);
    weight[4].fill_(1);
    testing::with_every_isa([&](const std::string& isa) {
      const Gated g = gate(feature, weight, {}, 4, true);
      EXPECT_TRUE(g.ids_TK[T - 1].equal(at::tensor({2, 4, 0, 1}, at::kLong))) << isa;
      EXPECT_TRUE(g.counts_N.equal(at::tensor({T, T, T, int64_t{0}, T, int64_t{0}}, at::kLong))) << isa;
    });
  }
}

TEST(Gate, FarApartLogitsGiveExactWeights) {
  const Tensor feature = at::eye(3).repeat({4, 1});
  const Tensor weight = at::tensor({1e4f, 0.f, -1e4f, 0.f, 200.f, 0.f, -1e4f, 0.f, 0.f}).view({3, 3});
  testing::with_every_isa([&](const std::string& isa) {
    const Gated g = gate(feature, weight, {}, 2, true);
    const auto [ids, weights, probs, logits, counts] = reference::gate(feature, weight, {}, 2, true);
    EXPECT_TRUE(g.ids_TK.equal(ids)) << isa;
    EXPECT_TRUE(at::allclose(g.weights_TK, weights, 1e-6, 1e-30)) << isa;
  });
}

TEST(Gate, GradientsMatchFiniteDifferences) {
  for (const bool renormalize : {true, false}) {
    const auto in = in_fp64(inputs({5, 3, 6, 2}));
    testing::expect_gradients(
        [&](const auto& v) {
          const Gated g = gate(v[0], v[1], v[2], 2, renormalize);
          return at::cat({g.weights_TK, g.probs_TN, g.logits_TN}, 1);
        },
        {in[0], in[1], in[2]});
  }
}

TEST(Gate, WrongShapesAreNamed) {
  try {
    gate(at::ones({2, 3}), at::ones({4, 5}), {}, 1, true);
    FAIL() << "accepted a weight of 5 columns for a feature of 3";
  } catch (const Error& error) {
    EXPECT_EQ(error.message(), "gate: weight must be [N, 3], got [4, 5]");
  }
}

}  // namespace
}  // namespace rmoe
