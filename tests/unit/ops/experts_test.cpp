#include "rmoe/ops/experts.h"

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/ops/reference/experts.h"
#include "tests/support/accuracy.h"
#include "tests/support/gradcheck.h"
#include "tests/support/isas.h"

namespace rmoe {
namespace {

using testing::randn;

struct Case {
  int64_t T, D, F, N, K;
  bool gated, bias;
  double dropout = 0;
  bool skewed = false;  // one expert has half of the slots
  bool unused = false;  // every third slot goes nowhere, half of them by -1, half by an id beyond N
};

constexpr DropoutKey kKey{0x9e3779b97f4a7c15u};

// Numbers that bf16 holds exactly: else the formula's rounding of the parameters would turn some signs before the relu.
Tensor short_numbers(at::IntArrayRef shape, uint64_t seed, double scale) {
  return (randn(shape, seed) * scale).to(at::kBFloat16).to(at::kDouble);
}

struct Inputs {
  explicit Inputs(const Case& c) : gated(c.gated), dropout(c.dropout) {
    at::Generator generator = at::detail::createCPUGenerator(7);
    ids = at::randint(c.N, {c.T, c.K}, generator, at::TensorOptions().dtype(at::kLong));
    const Tensor slot = at::arange(c.T * c.K, at::kLong).view({c.T, c.K});
    if (c.skewed) ids = at::where(slot.remainder(4).lt(2), c.N / 2, ids);
    if (c.unused) ids = at::where(slot.remainder(6).eq(1), -1, at::where(slot.remainder(6).eq(4), c.N + 1, ids));
    const double scale = 1 / std::sqrt(static_cast<double>(c.D));
    x = short_numbers({c.T, c.D}, 1, 1);
    grad = short_numbers({c.T, c.D}, 2, 1);
    weights = randn({c.T, c.K}, 3).abs();
    parameters.w1_NFD = short_numbers({c.N, c.F, c.D}, 4, scale);
    parameters.w2_NDF = short_numbers({c.N, c.D, c.F}, 5, scale);
    if (c.gated) parameters.w3_NFD = short_numbers({c.N, c.F, c.D}, 6, scale);
    if (c.bias) parameters.b1_NF = short_numbers({c.N, c.F}, 7, 0.5);
    if (c.bias) parameters.b2_ND = short_numbers({c.N, c.D}, 8, 0.5);
  }
  // x and grad in one dtype, everything else in another.
  Inputs to(at::ScalarType activations, at::ScalarType others) const {
    Inputs in = *this;
    for (Tensor* t : {&in.x, &in.grad}) *t = t->to(activations);
    for (Tensor* t : in.leaves()) {
      if (t->defined() && t != &in.x) *t = t->to(others);
    }
    return in;
  }
  std::vector<Tensor*> leaves() {
    return {
        &x, &weights, &parameters.w1_NFD, &parameters.b1_NF, &parameters.w2_NDF, &parameters.b2_ND, &parameters.w3_NFD};
  }

  bool gated;
  double dropout;
  Tensor x, grad, ids, weights;
  ExpertWeights parameters;
};

const char* const kNames[] = {"y", "dx", "dweights", "dw1", "db1", "dw2", "db2", "dw3"};

// y and the gradients, through autograd.
std::vector<Tensor> run(Inputs in) {
  for (Tensor* t : in.leaves()) {
    if (t->defined()) *t = t->detach().clone().requires_grad_();
  }
  const Tensor y = experts(in.x, in.ids, in.weights, in.parameters, in.dropout, kKey);
  y.backward(in.grad);
  std::vector<Tensor> results = {y.detach()};
  for (Tensor* t : in.leaves()) results.push_back(t->defined() ? t->grad() : Tensor());
  return results;
}

// The same by the formula.
std::vector<Tensor> formula(const Inputs& in) {
  const auto optional = [](const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; };
  const ExpertWeights& p = in.parameters;
  const auto key = static_cast<int64_t>(kKey.value);
  const auto [y, before] = reference::experts(in.x, in.ids, in.weights, p.w1_NFD, optional(p.b1_NF), p.w2_NDF,
                                              optional(p.b2_ND), optional(p.w3_NFD), in.dropout, key, true);
  auto [dx, d_weights, d_w1, d_b1, d_w2, d_b2, d_w3] =
      reference::experts_backward(in.grad, before, in.x, in.ids, in.weights, p.w1_NFD, optional(p.b1_NF), p.w2_NDF,
                                  optional(p.b2_ND), optional(p.w3_NFD), in.dropout, key, {true, true, true});
  return {y, dx, d_weights, d_w1, d_b1, d_w2, d_b2, d_w3};
}

// y_t = sum_k w_tk E(x_t), token by token.
Tensor by_tokens(const Inputs& in, const std::vector<Tensor>& v) {
  const int64_t N = v[2].size(0);
  std::vector<Tensor> rows;
  for (int64_t t = 0; t < in.ids.size(0); ++t) {
    Tensor y = at::zeros({v[0].size(1)}, v[0].options());
    for (int64_t k = 0; k < in.ids.size(1); ++k) {
      const int64_t e = in.ids[t][k].item<int64_t>();
      if (e < 0 || e >= N) continue;
      Tensor inner = v[2][e].mv(v[0][t]);
      if (v[3].defined()) inner = inner + v[3][e];
      inner = in.gated ? at::silu(inner) * v[6][e].mv(v[0][t]) : inner.relu();
      Tensor out = v[4][e].mv(inner);
      if (v[5].defined()) out = out + v[5][e];
      y = y + v[1][t][k] * out;
    }
    rows.push_back(y);
  }
  return at::stack(rows);
}

TEST(Experts, FormulaEqualsTokenByToken) {
  for (const bool gated : {false, true}) {
    for (const auto& [T, N, K] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {1, 5, 2}, {17, 4, 1}, {33, 8, 3}, {6, 4, 4}}) {
      for (const bool unused : {false, true}) {
        Inputs in({T, 5, 3, N, K, gated, !gated, 0, false, unused});
        std::vector<Tensor> leaves;
        for (Tensor* t : in.leaves()) leaves.push_back(*t);
        EXPECT_LT((run(in)[0] - by_tokens(in, leaves)).abs().max().item<double>(), 1e-13)
            << "T " << T << ", N " << N << ", K " << K << (unused ? ", some slots unused" : "");
      }
    }
  }
}

TEST(Experts, GradientsMatchFiniteDifferencesWithUnusedSlotsAndAnIdleExpert) {
  for (const bool gated : {false, true}) {
    for (const bool bias : {false, true}) {
      Inputs in({7, 3, 2, 4, 2, gated, bias, 0.3, false, true});
      in.ids = at::where(in.ids == 2, 3, in.ids);  // expert 2 idle; a token may choose expert 3 twice
      std::vector<Tensor> leaves;
      for (Tensor* t : in.leaves()) {
        if (t->defined()) leaves.push_back(*t);
      }
      testing::expect_gradients(
          [&](const std::vector<Tensor>& v) {
            Inputs at = in;
            size_t next = 0;
            for (Tensor* t : at.leaves()) {
              if (t->defined()) *t = v[next++];
            }
            return experts(at.x, at.ids, at.weights, at.parameters, at.dropout, kKey);
          },
          leaves);
    }
  }
}

class ExpertsOp : public ::testing::TestWithParam<Case> {};

TEST_P(ExpertsOp, IsAsAccurateAsThePlainFormula) {
  const Inputs in(GetParam());
  const auto exact = formula(in);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Inputs narrow = in.to(dtype, at::kFloat);
    const auto plain = formula(narrow);
    testing::for_each_isa([&] {
      const auto ours = run(narrow);
      for (size_t i = 0; i < ours.size(); ++i) testing::expect_as_accurate(kNames[i], ours[i], plain[i], exact[i]);
      const at::NoGradGuard no_grad;  // nothing is kept
      EXPECT_TRUE(
          at::equal(experts(narrow.x, narrow.ids, narrow.weights, narrow.parameters, narrow.dropout, kKey), ours[0]));
    });
  }
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, ExpertsOp,
    ::testing::Values(Case{1, 1, 1, 1, 1, false, true}, Case{0, 5, 3, 2, 2, true, false},
                      Case{3, 44, 45, 3, 2, true, false}, Case{5, 352, 44, 4, 2, false, true, 0.1},
                      Case{33, 31, 33, 4, 2, false, true, 0.3, false, true}, Case{67, 64, 130, 5, 3, true, true, 0.2},
                      Case{300, 16, 17, 7, 2, true, false, 0, true, true}, Case{90, 45, 352, 2, 1, false, true, 0.1},
                      Case{60, 300, 15, 128, 2, true, false}, Case{2100, 17, 20, 2, 1, false, true, 0.1, true}));

TEST(Experts, AnyNumberOfThreadsGivesTheSameBits) {
  for (const Case& c : {Case{700, 48, 70, 5, 2, true, false, 0, true}, Case{1500, 17, 33, 3, 2, false, true, 0.1, true},
                        Case{3, 64, 130, 8, 2, true, false}, Case{400, 33, 40, 4, 2, false, true, 0, false, true}}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      const Inputs in = Inputs(c).to(dtype, at::kFloat);
      testing::for_each_kernel_isa([&] {
        const auto one = testing::with_threads(1, [&] { return run(in); });
        for (const int count : {2, 3}) {
          const auto more = testing::with_threads(count, [&] { return run(in); });
          for (size_t i = 0; i < one.size(); ++i) {
            if (!one[i].defined()) continue;
            EXPECT_TRUE(at::equal(one[i], more[i])) << kNames[i] << ", T " << c.T;
          }
        }
      });
    }
  }
}

TEST(Experts, IdleExpertHasZeroGradientsAndUnusedSlotsToo) {
  Inputs in = Inputs({50, 8, 6, 4, 2, false, true, 0, false, true}).to(at::kFloat, at::kFloat);
  in.ids = at::where(in.ids == 2, 3, in.ids);
  const auto results = run(in);
  for (const size_t i : {3, 4, 5, 6}) {
    EXPECT_TRUE(results[i][2].eq(0).all().item<bool>()) << kNames[i];
    EXPECT_FALSE(results[i][3].eq(0).all().item<bool>()) << kNames[i];
  }
  const Tensor unused = in.ids.lt(0).logical_or(in.ids.ge(4));
  EXPECT_TRUE(results[2].masked_select(unused).eq(0).all().item<bool>());
}

TEST(Experts, ReadsNarrowParametersAndViews) {
  const Inputs in({40, 32, 24, 3, 2, true, true}), masters = in.to(at::kBFloat16, at::kFloat);
  Inputs narrow = in.to(at::kBFloat16, at::kBFloat16);
  narrow.weights = masters.weights;
  narrow.x = at::cat({narrow.x, narrow.x}, 1).narrow(1, 32, 32);
  const auto plain = formula(narrow), ours = run(narrow), exact = formula(in);
  for (size_t i = 0; i < ours.size(); ++i) testing::expect_as_accurate(kNames[i], ours[i], plain[i], exact[i]);
  // These parameters are the masters' numbers.
  EXPECT_TRUE(at::equal(ours[0], run(masters)[0]));
  EXPECT_EQ(ours[3].scalar_type(), at::kBFloat16);
}

TEST(Experts, StoredNarrowOrAsMastersTheAnswerIsTheSame) {
  for (const int64_t T : {1, 3, 90}) {
    Inputs in = Inputs({T, 45, 33, 4, 2, true, true}).to(at::kBFloat16, at::kFloat);
    const auto answer = [&] { return experts(in.x, in.ids, in.weights, in.parameters); };
    for (Tensor* w : {&in.parameters.w1_NFD, &in.parameters.w2_NDF, &in.parameters.w3_NFD}) *w = *w * 1.001;
    const Tensor before = answer();
    for (Tensor* w : {&in.parameters.w1_NFD, &in.parameters.w2_NDF, &in.parameters.w3_NFD}) *w = w->to(at::kBFloat16);
    EXPECT_TRUE(at::equal(answer(), before)) << "T " << T;
  }
}

TEST(Experts, GivesOnlyTheGradientsThatAreAsked) {
  Inputs in = Inputs({40, 8, 6, 3, 2, true, false}).to(at::kFloat, at::kFloat);
  const auto all = run(in);
  in.x.requires_grad_();
  experts(in.x, in.ids, in.weights, in.parameters).backward(in.grad);
  EXPECT_TRUE(at::equal(in.x.grad(), all[1]));
  in.x = in.x.detach();
  in.parameters.w2_NDF.requires_grad_();
  experts(in.x, in.ids, in.weights, in.parameters).backward(in.grad);
  EXPECT_TRUE(at::equal(in.parameters.w2_NDF.grad(), all[5]));
}

TEST(Experts, ShapesThatDoNotFitAreNamed) {
  const Inputs in({5, 4, 3, 2, 2, true, true});
  const auto with = [&](auto change) {
    Inputs other = in;
    change(other);
    experts(other.x, other.ids, other.weights, other.parameters, other.dropout, kKey);
  };
  EXPECT_THROW(with([](Inputs& o) { o.x = o.x.narrow(1, 0, 3); }), Error);
  EXPECT_THROW(with([](Inputs& o) { o.ids = o.ids.narrow(0, 0, 4); }), Error);
  EXPECT_THROW(with([](Inputs& o) { o.weights = o.weights.narrow(1, 0, 1); }), Error);
  EXPECT_THROW(with([](Inputs& o) { o.parameters.w2_NDF = o.parameters.w1_NFD; }), Error);
  EXPECT_THROW(with([](Inputs& o) { o.parameters.b1_NF = o.parameters.b2_ND; }), Error);
  EXPECT_THROW(with([](Inputs& o) { o.dropout = 1; }), Error);
}

}  // namespace
}  // namespace rmoe
