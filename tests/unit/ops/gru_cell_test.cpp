#include "rmoe/ops/gru_cell.h"

#include "rmoe/base/error.h"
#include "tests/support/gradcheck.h"

namespace rmoe {
namespace {

using testing::randn;

struct Inputs {
  Tensor x, state, w_ih, w_hh, b_ih, b_hh;
  Inputs(int64_t T, int64_t I, int64_t P, at::ScalarType dtype = at::kDouble)
      : x(randn({T, I}, 1, dtype)),
        state(randn({T, P}, 2, dtype)),
        w_ih(randn({3 * P, I}, 3, dtype)),
        w_hh(randn({3 * P, P}, 4, dtype)),
        b_ih(randn({3 * P}, 5, dtype)),
        b_hh(randn({3 * P}, 6, dtype)) {}
  Tensor run() const { return gru_cell(x, state, w_ih, w_hh, b_ih, b_hh); }
};

// The equations of the reference, section 1.2, one scalar at a time.
Tensor by_scalars(const Inputs& in) {
  const int64_t T = in.x.size(0), I = in.x.size(1), P = in.w_hh.size(1);
  Tensor out = at::empty({T, P}, at::kDouble);
  const auto wi = in.w_ih.accessor<double, 2>(), wh = in.w_hh.accessor<double, 2>();
  const auto bi = in.b_ih.accessor<double, 1>(), bh = in.b_hh.accessor<double, 1>();
  const auto x = in.x.accessor<double, 2>(), h = in.state.accessor<double, 2>();
  auto y = out.accessor<double, 2>();
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t p = 0; p < P; ++p) {
      double input[3], hidden[3];
      for (int64_t gate = 0; gate < 3; ++gate) {
        const int64_t row = gate * P + p;
        input[gate] = bi[row];
        hidden[gate] = bh[row];
        for (int64_t i = 0; i < I; ++i) input[gate] += wi[row][i] * x[t][i];
        for (int64_t i = 0; i < P; ++i) hidden[gate] += wh[row][i] * h[t][i];
      }
      const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
      const double s = sigmoid(input[0] + hidden[0]), z = sigmoid(input[1] + hidden[1]);
      const double n = std::tanh(input[2] + s * hidden[2]);
      y[t][p] = (1 - z) * n + z * h[t][p];
    }
  }
  return out;
}

TEST(GruCell, EqualsTheEquationsScalarByScalar) {
  for (const int64_t P : {1, 7, 16, 17}) {
    const Inputs in(5, 3, P);
    EXPECT_LT((in.run() - by_scalars(in)).abs().max().item<double>(), 1e-14) << "P = " << P;
  }
}

TEST(GruCell, ZeroStateEqualsUndefinedState) {
  Inputs in(4, 3, 5);
  in.state.zero_();
  EXPECT_TRUE(at::allclose(in.run(), gru_cell(in.x, {}, in.w_ih, in.w_hh, in.b_ih, in.b_hh), 0, 1e-15));
}

TEST(GruCell, GradientsMatchFiniteDifferences) {
  const Inputs in(3, 2, 4);
  testing::expect_gradients([](const auto& v) { return gru_cell(v[0], v[1], v[2], v[3], v[4], v[5]); },
                            {in.x, in.state, in.w_ih, in.w_hh, in.b_ih, in.b_hh});
}

TEST(GruCell, GradientsWithoutStateMatchFiniteDifferences) {
  const Inputs in(3, 2, 4);
  testing::expect_gradients([&](const auto& v) { return gru_cell(v[0], {}, v[1], in.w_hh, v[2], v[3]); },
                            {in.x, in.w_ih, in.b_ih, in.b_hh});
}

TEST(GruCell, GradientFlowsThroughTwoLayersOfState) {
  const Inputs in(3, 4, 4);
  testing::expect_gradients(
      [&](const auto& v) {
        const Tensor h1 = gru_cell(v[0], {}, v[1], v[2], in.b_ih, in.b_hh);
        const Tensor h2 = gru_cell(v[0], h1, v[1], v[2], in.b_ih, in.b_hh);
        return gru_cell(v[0], h2, v[1], v[2], in.b_ih, in.b_hh);
      },
      {in.x, in.w_ih, in.w_hh});
}

TEST(GruCell, NoTokensGiveNoRows) { EXPECT_EQ(Inputs(0, 3, 5).run().sizes(), at::IntArrayRef({0, 5})); }

TEST(GruCell, WrongShapesAreNamed) {
  Inputs in(4, 3, 5);
  in.state = randn({3, 5}, 1);
  try {
    in.run();
    FAIL() << "accepted a state of 3 rows for 4 tokens";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::kBadInput);
    EXPECT_EQ(error.message(), "gru_cell: state has 3 rows but x has 4 (state [3, 5], x [4, 3])");
  }
}

}  // namespace
}  // namespace rmoe
