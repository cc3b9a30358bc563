#include "rmoe/ops/causal_attention.h"

#include "rmoe/base/error.h"
#include "rmoe/ops/reference/causal_attention.h"
#include "tests/support/accuracy.h"
#include "tests/support/gradcheck.h"
#include "tests/support/isas.h"

namespace rmoe {
namespace {

using testing::randn;

struct Case {
  int64_t B, Sq, Sk, H, Hkv, C;
  bool rotated;
};

struct Inputs {
  Tensor q, k, v, grad;
  RotaryAngles angles;
  explicit Inputs(const Case& c, at::ScalarType type = at::kDouble)
      : q(randn({c.B, c.Sq, c.H, c.C}, 1, type)),
        k(randn({c.B, c.Sk, c.Hkv, c.C}, 2, type)),
        v(randn({c.B, c.Sk, c.Hkv, c.C}, 3, type)),
        grad(randn({c.B, c.Sq, c.H, c.C}, 4, type)) {
    if (c.rotated) angles = rotary_angles(3, c.Sq, c.C, 100, type == at::kDouble ? at::kDouble : at::kFloat);
  }
  // With the same numbers, those of the angles too.
  Inputs exact() const {
    Inputs copy = *this;
    for (Tensor* t : {&copy.q, &copy.k, &copy.v, &copy.grad, &copy.angles.cos, &copy.angles.sin}) {
      if (t->defined()) *t = t->to(at::kDouble);
    }
    return copy;
  }
};

// out, dq, dk, dv through autograd.
std::vector<Tensor> run(const Inputs& in) {
  std::vector<Tensor> leaves;
  for (const Tensor& t : {in.q, in.k, in.v}) leaves.push_back(t.detach().requires_grad_());
  const Tensor out = causal_attention(leaves[0], leaves[1], leaves[2], in.angles);
  out.backward(in.grad);
  return {out.detach(), leaves[0].grad(), leaves[1].grad(), leaves[2].grad()};
}

std::vector<Tensor> formula(const Inputs& in) {
  const auto optional = [](const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; };
  const auto cos = optional(in.angles.cos), sin = optional(in.angles.sin);
  const auto [out, lse] = reference::causal_attention(in.q, in.k, in.v, cos, sin);
  const auto [dq, dk, dv] = reference::causal_attention_backward(in.grad, in.q, in.k, in.v, cos, sin, out, lse);
  return {out, dq, dk, dv};
}

class CausalAttentionOp : public ::testing::TestWithParam<Case> {};

TEST_P(CausalAttentionOp, IsAsAccurateAsThePlainFormula) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const Inputs in(GetParam(), type);
    const auto exact = formula(in.exact()), plain = formula(in);
    testing::for_each_isa([&] {
      const auto ours = run(in);
      const char* names[] = {"out", "dq", "dk", "dv"};
      for (size_t i = 0; i < ours.size(); ++i) testing::expect_as_accurate(names[i], ours[i], plain[i], exact[i]);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, CausalAttentionOp,
                         ::testing::Values(Case{1, 1, 1, 1, 1, 2, true}, Case{2, 3, 3, 2, 1, 6, true},
                                           Case{2, 1, 67, 6, 2, 64, false}, Case{1, 4, 300, 2, 2, 44, false},
                                           Case{2, 5, 5, 4, 2, 30, true}, Case{1, 63, 64, 2, 1, 16, false},
                                           Case{1, 64, 64, 3, 3, 64, true}, Case{2, 65, 65, 2, 1, 34, true},
                                           Case{1, 131, 352, 2, 2, 44, false}, Case{1, 33, 33, 1, 1, 352, true},
                                           Case{1, 7, 1601, 2, 1, 3, false}, Case{1, 257, 257, 4, 1, 256, true},
                                           Case{1, 129, 900, 1, 1, 1, false}));

TEST(CausalAttention, EqualsSoftmaxOfMaskedScores) {
  const Inputs in({2, 5, 9, 6, 2, 4, false});
  const auto heads = [](const Tensor& t) { return t.transpose(1, 2).repeat_interleave(6 / t.size(2), 1); };
  const Tensor scores = heads(in.q).matmul(heads(in.k).transpose(-1, -2)) / 2;
  const Tensor hidden = at::ones({5, 9}, at::kBool).triu(5);
  const Tensor plain = scores.masked_fill(hidden, -INFINITY).softmax(-1).matmul(heads(in.v)).transpose(1, 2);
  EXPECT_TRUE(at::allclose(causal_attention(in.q, in.k, in.v, {}), plain, 0, 1e-13));
}

TEST(CausalAttention, AnglesTurnQueriesAndKeys) {
  const Inputs in({2, 7, 7, 4, 2, 6, true});
  const Tensor turned = causal_attention(rotate(in.q, in.angles), rotate(in.k, in.angles), in.v, {});
  EXPECT_TRUE(at::allclose(causal_attention(in.q, in.k, in.v, in.angles), turned, 0, 1e-13));
}

TEST(CausalAttention, OneQueryAtATimeEqualsAllAtOnce) {
  for (const auto type : {at::kDouble, at::kFloat}) {
    const Inputs in({2, 9, 9, 4, 2, 32, false}, type);
    const Tensor all = causal_attention(in.q, in.k, in.v, {});
    for (int64_t i = 0; i < 9; ++i) {
      const Tensor one = causal_attention(in.q.narrow(1, i, 1), in.k.narrow(1, 0, i + 1), in.v.narrow(1, 0, i + 1), {});
      EXPECT_TRUE(at::allclose(one, all.narrow(1, i, 1), 1e-5, 1e-6)) << i;
    }
  }
}

TEST(CausalAttention, GradientsMatchFiniteDifferences) {
  for (const bool rotated : {false, true}) {
    const Inputs in({2, 3, rotated ? 3 : 5, 4, 2, 2, rotated});
    testing::expect_gradients([&](const auto& t) { return causal_attention(t[0], t[1], t[2], in.angles); },
                              {in.q, in.k, in.v});
  }
}

TEST(CausalAttention, AnyStridesGiveTheSameBits) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const Inputs in({2, 70, 70, 4, 2, 24, true}, type);
    Inputs other = in;
    for (Tensor* t : {&other.q, &other.k, &other.v, &other.grad}) *t = t->transpose(1, 2).contiguous().transpose(1, 2);
    other.v = in.v.transpose(1, 3).contiguous().transpose(1, 3);
    testing::for_each_isa([&] {
      if (kernels::cpu_isa() == kernels::Isa::kPlain) return;  // the library's own products
      const auto a = run(in), b = run(other);
      for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(a[i].equal(b[i])) << i;
    });
  }
}

TEST(CausalAttention, ThreadsDoNotChangeTheBits) {
  const int threads = at::get_num_threads();
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const Inputs in({1, 300, 300, 2, 1, 64, true}, type);
    testing::for_each_isa([&] {
      if (kernels::cpu_isa() == kernels::Isa::kPlain) return;  // the library's own products
      at::set_num_threads(1);
      const auto one = run(in);
      at::set_num_threads(2);
      const auto two = run(in);
      for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(one[i].equal(two[i])) << i;
    });
  }
  at::set_num_threads(threads);
}

TEST(CausalAttention, LargeScoresAndFarKeysStayFinite) {
  Inputs in({1, 150, 150, 1, 1, 32, false}, at::kFloat);
  in.q.mul_(40);  // scores rise and fall by thousands
  in.k.mul_(40);
  const Tensor exact = formula(in.exact())[0];
  testing::for_each_isa([&] {
    for (const Tensor& t : run(in)) EXPECT_TRUE(t.isfinite().all().item<bool>());
    EXPECT_TRUE(at::allclose(run(in)[0].to(at::kDouble), exact, 1e-2, 1e-2));
  });
}

// Weights in bf16 are relative to one of a row's first scores until others are far above it.
void expect_accurate_on_every_isa(const Inputs& in) {
  const auto exact = formula(in.exact()), plain = formula(in);
  testing::for_each_isa([&] {
    const auto ours = run(in);
    const char* names[] = {"out", "dq", "dk", "dv"};
    for (size_t i = 0; i < ours.size(); ++i) testing::expect_as_accurate(names[i], ours[i], plain[i], exact[i]);
  });
}

TEST(CausalAttention, ScoresFarAboveTheFirstAreWeighedRight) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    for (const int64_t key : {3, 40, 100, 130, 290}) {
      const Inputs in({1, 300, 300, 1, 1, 64, false}, type);
      in.k.select(1, key).mul_(1024);
      expect_accurate_on_every_isa(in);
    }
  }
}

// Scores of 26 and 28, all others 0: relative to the first, the second is what no longer fits beside the sums, and the
// first keeps a share of it that counts.
TEST(CausalAttention, WhatWasSummedBeforeALargerScoreKeepsItsShare) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const Inputs in({1, 300, 300, 1, 1, 64, false}, type);
    in.q.zero_().select(3, 0).fill_(8);
    in.k.zero_();
    in.k.select(3, 0).select(1, 40).fill_(26);
    in.k.select(3, 0).select(1, 130).fill_(28);
    expect_accurate_on_every_isa(in);
  }
}

TEST(CausalAttention, AScoreOfMinusInfinityWeighsNothing) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const Inputs in({1, 40, 300, 1, 1, 64, false}, type);
    in.q.select(3, 0).fill_(3e38);
    in.k.select(3, 0).zero_().narrow(1, 0, 150).fill_(-3e38);  // their products overflow
    const Tensor out = formula(in)[0];
    ASSERT_TRUE(out.isfinite().all().item<bool>());
    testing::for_each_isa([&] { testing::expect_as_accurate("out", run(in)[0], out, formula(in.exact())[0]); });
  }
}

TEST(CausalAttention, NoSequencesGiveEmptyResults) {
  const Inputs in({0, 3, 3, 2, 1, 4, true}, at::kFloat);
  EXPECT_EQ(causal_attention(in.q, in.k, in.v, in.angles).sizes(), in.q.sizes());
}

TEST(CausalAttention, WrongShapesAreNamed) {
  const Inputs in({1, 4, 6, 4, 2, 2, false});
  EXPECT_THROW(causal_attention(in.q, in.k.narrow(1, 0, 3), in.v.narrow(1, 0, 3), {}), Error);
  EXPECT_THROW(causal_attention(in.q.narrow(2, 0, 3), in.k, in.v, {}), Error);
  EXPECT_THROW(causal_attention(in.q, in.k, in.v.narrow(1, 0, 5), {}), Error);
  EXPECT_THROW(causal_attention(in.q, in.k, in.v, rotary_angles(0, 4, 2, 100, at::kDouble)), Error);
}

TEST(Rotate, IsUndoneByItsGradient) {
  const Inputs in({2, 5, 5, 3, 3, 26, true});
  testing::expect_gradients([&](const auto& t) { return rotate(t[0], in.angles); }, {in.q});
  const Tensor x = in.q.detach().requires_grad_();
  rotate(x, in.angles).backward(rotate(in.grad, in.angles));
  EXPECT_TRUE(at::allclose(x.grad(), in.grad, 0, 1e-13));
}

TEST(Rotate, KernelsEqualTheFormula) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    for (const int64_t C : {2, 34, 64, 352}) {
      const Inputs in({2, 5, 5, 3, 3, C, true}, type);
      const Tensor plain = reference::rotate(in.q, in.angles.cos, in.angles.sin, false);
      const Tensor exact =
          reference::rotate(in.q.to(at::kDouble), in.angles.cos.to(at::kDouble), in.angles.sin.to(at::kDouble), false);
      testing::for_each_isa([&] { testing::expect_as_accurate("x", rotate(in.q, in.angles), plain, exact); });
    }
  }
}

}  // namespace
}  // namespace rmoe
