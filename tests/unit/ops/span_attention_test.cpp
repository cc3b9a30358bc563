#include "rmoe/ops/span_attention.h"

#include "rmoe/base/error.h"
#include "tests/support/gradcheck.h"

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
    testing::expect_as_accurate(span_attention(low.q, low.k, low.v, low.key_pe, 0, {}), by_queries(low),
                                by_queries(exact), c10::toString(dtype));
  }
}

TEST(SpanAttention, WrongShapesAreNamed) {
  const Inputs in(1, 1, 3, 4, 2);
  EXPECT_THROW(span_attention(in.q, in.k.narrow(2, 0, 5), in.v, in.key_pe, 0, {}), Error);
  EXPECT_THROW(span_attention(in.q, in.k, in.v, in.key_pe.t(), 0, {}), Error);
  EXPECT_THROW(span_attention(in.q, in.k, in.v, in.key_pe, 1.0, {}), Error);
}

}  // namespace
}  // namespace rmoe
