#include "rmoe/ops/span_attention.h"

#include <torch/csrc/autograd/autograd.h>

#include "rmoe/base/error.h"
#include "rmoe/ops/reference/span_attention.h"
#include "tests/support/accuracy.h"
#include "tests/support/gradcheck.h"
#include "tests/support/isas.h"

namespace rmoe {
namespace {

using testing::randn;

struct Inputs {
  Tensor q, k, v, key_pe;
  Inputs(int64_t B, int64_t H, int64_t M, int64_t S, int64_t C, at::ScalarType dtype = at::kDouble)
      : q(randn({B, H, M, C}, 1, dtype)),
        k(randn({B, H, S + M, C}, 2, dtype)),
        v(randn({B, H, S + M, C}, 3, dtype)),
        key_pe(randn({C, S}, 4, dtype)) {}
};

// Each query by itself over the S positions before it.
Tensor by_queries(const Inputs& in) {
  const int64_t S = in.key_pe.size(1);
  Tensor out = at::empty_like(in.q);
  for (int64_t b = 0; b < in.q.size(0); ++b) {
    for (int64_t h = 0; h < in.q.size(1); ++h) {
      for (int64_t m = 0; m < in.q.size(2); ++m) {
        const Tensor q = in.q[b][h][m], keys = in.k[b][h].narrow(0, m, S), values = in.v[b][h].narrow(0, m, S);
        const Tensor scores = (keys.mv(q) + in.key_pe.t().mv(q)) / std::sqrt(static_cast<double>(q.size(0)));
        out[b][h][m].copy_(values.t().mv(scores.softmax(0)));
      }
    }
  }
  return out;
}

TEST(SpanAttention, EqualsEveryQueryByItself) {
  for (const auto& [M, S] : {std::pair<int64_t, int64_t>{1, 1}, {1, 6}, {7, 3}, {5, 11}, {8, 8}}) {
    const Inputs in(2, 3, M, S, 4);
    const Tensor out = span_attention(in.q, in.k, in.v, in.key_pe, 0, {});
    EXPECT_LT((out - by_queries(in)).abs().max().item<double>(), 1e-13) << "M " << M << ", S " << S;
  }
}

TEST(SpanAttention, SeesExactlyTheSpanBeforeAndNotItself) {
  const int64_t M = 4, S = 3;
  const Inputs in(1, 1, M, S, 2);
  const Tensor before = span_attention(in.q, in.k, in.v, in.key_pe, 0, {});
  for (int64_t j = 0; j < S + M; ++j) {
    Inputs changed = in;
    changed.v = in.v.clone();
    changed.v.select(2, j).add_(1);
    const Tensor after = span_attention(in.q, in.k, changed.v, in.key_pe, 0, {});
    for (int64_t m = 0; m < M; ++m) {
      const bool sees = j >= m && j < m + S;  // key j lies S + m - j positions before query m; j = S + m is itself
      EXPECT_EQ(!before.select(2, m).equal(after.select(2, m)), sees) << "query " << m << ", key " << j;
    }
  }
}

TEST(SpanAttention, GradientsMatchFiniteDifferences) {
  const Inputs in(1, 2, 3, 4, 2);
  testing::expect_gradients([](const auto& v) { return span_attention(v[0], v[1], v[2], v[3], 0, {}); },
                            {in.q, in.k, in.v, in.key_pe});
}

TEST(SpanAttention, GradientsWithDropoutMatchFiniteDifferences) {
  const Inputs in(1, 2, 3, 4, 2);
  testing::expect_gradients([](const auto& v) { return span_attention(v[0], v[1], v[2], v[3], 0.4, {7}); },
                            {in.q, in.k, in.v, in.key_pe});
}

TEST(SpanAttention, ManyHeadsInPiecesEqualFewHeads) {
  // More elements than one piece holds: 40 heads of 160 x (160 + 200).
  const Inputs in(5, 8, 160, 200, 4);
  const Tensor all = span_attention(in.q, in.k, in.v, in.key_pe, 0, {});
  const Tensor last =
      span_attention(in.q.narrow(0, 4, 1), in.k.narrow(0, 4, 1), in.v.narrow(0, 4, 1), in.key_pe, 0, {});
  EXPECT_TRUE(at::allclose(all.narrow(0, 4, 1), last, 0, 1e-14));
}

TEST(SpanAttention, LowPrecisionIsAsAccurateAsThePlainFormula) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Inputs low(2, 2, 16, 24, 8, dtype);
    Inputs exact = low;
    for (Tensor* t : {&exact.q, &exact.k, &exact.v, &exact.key_pe}) *t = t->to(at::kDouble);
    testing::expect_as_accurate(c10::toString(dtype), span_attention(low.q, low.k, low.v, low.key_pe, 0, {}),
                                by_queries(low), by_queries(exact));
  }
}

struct Case {
  int64_t B, H, M, S, C;
};

// out, dq, dk, dv, dkey_pe through autograd.
std::vector<Tensor> run(const Inputs& in, const Tensor& grad, double p, DropoutKey key) {
  std::vector<Tensor> leaves;
  for (const Tensor& t : {in.q, in.k, in.v, in.key_pe}) leaves.push_back(t.detach().requires_grad_());
  const Tensor out = span_attention(leaves[0], leaves[1], leaves[2], leaves[3], p, key);
  out.backward(grad);
  return {out.detach(), leaves[0].grad(), leaves[1].grad(), leaves[2].grad(), leaves[3].grad()};
}

std::vector<Tensor> formula(const Inputs& in, const Tensor& grad, double p, DropoutKey key) {
  const auto k = static_cast<int64_t>(key.value);
  const auto [out, lse] = reference::span_attention(in.q, in.k, in.v, in.key_pe, p, k);
  auto [dq, dk, dv, dkey_pe] = reference::span_attention_backward(grad, in.q, in.k, in.v, in.key_pe, out, lse, p, k);
  return {out, dq, dk, dv, dkey_pe};
}

class SpanAttentionOp : public ::testing::TestWithParam<Case> {};

TEST_P(SpanAttentionOp, IsAsAccurateAsThePlainFormula) {
  const Case c = GetParam();
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const double p : {0.0, 0.3}) {
      const DropoutKey key{(uint64_t{5} << 32) + 3};
      Inputs in(c.B, c.H, c.M, c.S, c.C, dtype);
      in.key_pe = in.key_pe.to(at::kFloat);  // a master weight
      const Tensor grad = randn({c.B, c.H, c.M, c.C}, 9, dtype);
      Inputs wide = in;
      for (Tensor* t : {&wide.q, &wide.k, &wide.v, &wide.key_pe}) *t = t->to(at::kDouble);
      const auto exact = formula(wide, grad.to(at::kDouble), p, key), plain = formula(in, grad, p, key);
      testing::for_each_isa([&] {
        const auto ours = run(in, grad, p, key);
        const char* names[] = {"out", "dq", "dk", "dv", "dkey_pe"};
        for (size_t i = 0; i < ours.size(); ++i) testing::expect_as_accurate(names[i], ours[i], plain[i], exact[i]);
        EXPECT_EQ(ours[4].scalar_type(), at::kFloat);
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, SpanAttentionOp,
                         ::testing::Values(Case{1, 1, 1, 1, 1}, Case{2, 3, 1, 67, 44}, Case{2, 5, 4, 33, 17},
                                           Case{8, 8, 5, 7, 3}, Case{1, 2, 31, 352, 16}, Case{2, 1, 63, 65, 44},
                                           Case{1, 2, 64, 64, 64}, Case{1, 1, 65, 128, 33}, Case{1, 1, 131, 2, 15},
                                           Case{2, 3, 40, 1601, 8}, Case{1, 1, 17, 44, 256}, Case{1, 1, 200, 97, 1}));

TEST(SpanAttention, ScoresFarAboveTheFirstAreWeighedRight) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    for (const double p : {0.0, 0.3}) {
      const Inputs in(1, 1, 70, 256, 44, type);
      for (const int64_t key : {40, 200}) in.k.select(2, key).mul_(1024);
      Inputs wide = in;
      for (Tensor* t : {&wide.q, &wide.k, &wide.v, &wide.key_pe}) *t = t->to(at::kDouble);
      const Tensor grad = randn(in.q.sizes(), 5, type);
      const auto plain = formula(in, grad, p, {7}), exact = formula(wide, grad.to(at::kDouble), p, {7});
      testing::for_each_isa([&] {
        const auto ours = run(in, grad, p, {7});
        const char* names[] = {"out", "dq", "dk", "dv", "dkey_pe"};
        for (size_t i = 0; i < ours.size(); ++i) testing::expect_as_accurate(names[i], ours[i], plain[i], exact[i]);
      });
    }
  }
}

TEST(SpanAttention, AnyStridesGiveTheSameBits) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Inputs in(2, 3, 40, 50, 20, dtype);
    const Tensor grad = randn({2, 3, 40, 20}, 9, dtype);
    Inputs other = in;
    for (Tensor* t : {&other.q, &other.k, &other.v}) *t = t->transpose(1, 2).contiguous().transpose(1, 2);
    other.key_pe = in.key_pe.t().contiguous().t();
    testing::for_each_isa([&] {
      if (kernels::cpu_isa() == kernels::Isa::kPlain) return;  // the library's own products
      const auto a = run(in, grad, 0.2, {1}),
                 b = run(other, grad.transpose(2, 3).contiguous().transpose(2, 3), 0.2, {1});
      for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(a[i].equal(b[i])) << i;
    });
  }
}

TEST(SpanAttention, JoiningTheHeadsOfResultsIsAView) {
  if (kernels::cpu_isa() < kernels::Isa::kAvx2) GTEST_SKIP() << "no kernels";
  const Inputs in(2, 3, 8, 5, 4, at::kFloat);
  torch::autograd::variable_list leaves;
  for (const Tensor& t : {in.q, in.k, in.v}) leaves.push_back(t.detach().requires_grad_());
  const Tensor out = span_attention(leaves[0], leaves[1], leaves[2], in.key_pe, 0, {});
  auto results = torch::autograd::grad({out}, leaves, {at::ones_like(out)});
  results.push_back(out);
  for (size_t i = 0; i < results.size(); ++i) EXPECT_TRUE(results[i].transpose(1, 2).is_contiguous()) << i;
}

TEST(SpanAttention, ThreadsDoNotChangeTheBits) {
  const int threads = at::get_num_threads();
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Inputs in(1, 3, 200, 90, 44, dtype);
    const Tensor grad = randn({1, 3, 200, 44}, 9, dtype);
    testing::for_each_isa([&] {
      if (kernels::cpu_isa() == kernels::Isa::kPlain) return;  // the library's own products
      at::set_num_threads(1);
      const auto one = run(in, grad, 0.1, {4});
      at::set_num_threads(2);
      const auto two = run(in, grad, 0.1, {4});
      for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(one[i].equal(two[i])) << i;
    });
  }
  at::set_num_threads(threads);
}

TEST(SpanAttention, WrongShapesAreNamed) {
  const Inputs in(1, 1, 3, 4, 2);
  EXPECT_THROW(span_attention(in.q, in.k.narrow(2, 0, 5), in.v, in.key_pe, 0, {}), Error);
  EXPECT_THROW(span_attention(in.q, in.k, in.v, in.key_pe.t(), 0, {}), Error);
  EXPECT_THROW(span_attention(in.q, in.k, in.v, in.key_pe, 1.0, {}), Error);
}

}  // namespace
}  // namespace rmoe
