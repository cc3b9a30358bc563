#include "rmoe/ops/recurrent_stage.h"

#include "rmoe/base/error.h"
#include "rmoe/ops/reference/recurrent_stage.h"
#include "tests/support/accuracy.h"
#include "tests/support/gradcheck.h"
#include "tests/support/isas.h"

namespace rmoe {
namespace {

using testing::randn;

struct Case {
  std::string cell;
  int64_t T, D, P;
  bool project = true, state = true;
  at::ScalarType dtype = at::kFloat;  // of x
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.cell << " T " << c.T << " D " << c.D << " P " << c.P << (c.project ? "" : ", no projection")
             << (c.state ? "" : ", no state") << ", x in " << c10::toString(c.dtype);
}

// x, h, c, projection, w_ih, w_hh, b_ih, b_hh, then the gradients of h and c; undefined where there is none.
std::vector<Tensor> inputs(const Case& c) {
  const int64_t G = c.cell == "rnn" ? 1 : c.cell == "gru" ? 3 : 4, I = c.project ? c.P : c.D;
  const auto matrix = [](int64_t out, int64_t in, uint64_t seed) {
    return (randn({out, in}, seed) / std::sqrt(static_cast<double>(std::max<int64_t>(in, 1)))).to(at::kFloat);
  };
  const auto vector = [](at::IntArrayRef sizes, uint64_t seed) { return randn(sizes, seed).to(at::kFloat); };
  const bool lstm = c.cell == "lstm";
  return {randn({c.T, c.D}, 1).to(c.dtype),
          c.state ? vector({c.T, c.P}, 2).tanh() : Tensor(),
          c.state && lstm ? vector({c.T, c.P}, 3) : Tensor(),
          c.project ? matrix(c.P, c.D, 4) : Tensor(),
          matrix(G * c.P, I, 5),
          matrix(G * c.P, c.P, 6),
          vector({G * c.P}, 7),
          vector({G * c.P}, 8),
          vector({c.T, c.P}, 9),
          lstm ? vector({c.T, c.P}, 10) : Tensor()};
}

std::optional<Tensor> optional(const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; }

// h, c and the gradients of x, h, c, projection, w_ih, w_hh, b_ih, b_hh through the op; undefined where there is none.
std::vector<Tensor> run(const std::string& cell, std::vector<Tensor> in) {
  for (size_t i = 0; i < 8; ++i) {
    if (in[i].defined()) in[i] = in[i].detach().requires_grad_(true);
  }
  const RecurrentState after =
      recurrent_stage(cell, in[0], {.h_TP = in[1], .c_TP = in[2]},
                      {.projection_PD = in[3], .ih = in[4], .hh = in[5], .b_ih = in[6], .b_hh = in[7]});
  Tensor loss = (after.h_TP * in[8]).sum();
  if (after.c_TP.defined()) loss = loss + (after.c_TP * in[9]).sum();
  loss.backward();
  std::vector<Tensor> out{after.h_TP.detach(), after.c_TP.defined() ? after.c_TP.detach() : Tensor()};
  for (size_t i = 0; i < 8; ++i) out.push_back(in[i].defined() ? in[i].grad() : Tensor());
  return out;
}

// The same by the reference.
std::vector<Tensor> by_reference(const std::string& cell, const std::vector<Tensor>& in) {
  const auto [h, c] = reference::recurrent_stage(cell, in[0], optional(in[1]), optional(in[2]), optional(in[3]), in[4],
                                                 in[5], in[6], in[7]);
  const auto [d_x, d_h, d_c, d_projection, d_w_ih, d_w_hh, d_b_ih, d_b_hh] =
      reference::recurrent_stage_backward(in[8], optional(in[9]), cell, in[0], optional(in[1]), optional(in[2]),
                                          optional(in[3]), in[4], in[5], in[6], in[7]);
  std::vector<Tensor> out{h,     cell == "lstm" ? c : Tensor(), d_x, d_h, d_c, d_projection, d_w_ih, d_w_hh, d_b_ih,
                          d_b_hh};
  for (size_t i = 1; i < 4; ++i) {
    if (!in[i].defined()) out[i + 2] = Tensor();
  }
  return out;
}

std::vector<Tensor> in_fp64(std::vector<Tensor> in) {
  for (Tensor& t : in) {
    if (t.defined()) t = t.to(at::kDouble);
  }
  return in;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const char* cell : {"rnn", "gru", "lstm"}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      for (const bool state : {true, false}) {
        all.push_back({cell, 37, 44, 17, true, state, dtype});
        all.push_back({cell, 37, 44, 17, false, state, dtype});
      }
      all.push_back({cell, 1, 352, 64, true, true, dtype});  // decoding
      all.push_back({cell, 8, 33, 31, false, true, dtype});  // the most rows that count as decoding
      all.push_back({cell, 9, 1, 1, true, true, dtype});     // the least that do not
      all.push_back({cell, 0, 5, 3, true, true, dtype});
      all.push_back({cell, 300, 352, 128, true, true, dtype});  // several blocks of tokens
    }
    all.push_back({cell, 129, 15, 16, true, true, at::kFloat});
  }
  return all;
}

// The equations of the reference, section 1.2, one scalar at a time.
Tensor gru_by_scalars(const std::vector<Tensor>& in) {
  const int64_t T = in[0].size(0), I = in[0].size(1), P = in[5].size(1);
  Tensor out = at::empty({T, P}, at::kDouble);
  const auto x = in[0].accessor<double, 2>(), h = in[1].accessor<double, 2>();
  const auto wi = in[4].accessor<double, 2>(), wh = in[5].accessor<double, 2>();
  const auto bi = in[6].accessor<double, 1>(), bh = in[7].accessor<double, 1>();
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
      const double r = sigmoid(input[0] + hidden[0]), z = sigmoid(input[1] + hidden[1]);
      const double n = std::tanh(input[2] + r * hidden[2]);
      y[t][p] = (1 - z) * n + z * h[t][p];
    }
  }
  return out;
}

TEST(RecurrentStage, TheGruIsTheEquationsScalarByScalar) {
  for (const int64_t P : {1, 7, 16, 17}) {
    for (const bool state : {true, false}) {
      std::vector<Tensor> in = inputs({.cell = "gru", .T = 5, .D = 3, .P = P, .project = false});
      for (Tensor& one : in) {
        if (one.defined()) one = one.to(at::kDouble);
      }
      if (!state) in[1].zero_();
      const Tensor h = recurrent_stage("gru", in[0], {.h_TP = state ? in[1] : Tensor()},
                                       {.ih = in[4], .hh = in[5], .b_ih = in[6], .b_hh = in[7]})
                           .h_TP;
      EXPECT_LT((h - gru_by_scalars(in)).abs().max().item<double>(), 1e-14) << "P = " << P;
    }
  }
}

TEST(RecurrentStage, IsAsAccurateAsTheReferenceWithEveryInstructionSet) {
  const char* names[] = {"h", "c", "d_x", "d_h", "d_c", "d_projection", "d_w_ih", "d_w_hh", "d_b_ih", "d_b_hh"};
  for (const Case& c : cases()) {
    const auto in = inputs(c);
    const auto plain = by_reference(c.cell, in), oracle = by_reference(c.cell, in_fp64(in));
    testing::with_every_isa([&](const std::string& isa) {
      const auto got = run(c.cell, in);
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_EQ(got[i].defined(), oracle[i].defined()) << c << ", " << isa << ", " << names[i];
        if (!got[i].defined()) continue;
        EXPECT_EQ(got[i].scalar_type(), i == 2 ? c.dtype : at::kFloat);
        testing::expect_as_accurate(::testing::PrintToString(c) + ", " + isa + ", " + names[i], got[i], plain[i],
                                    oracle[i]);
      }
    });
  }
}

TEST(RecurrentStage, DoesNotDependOnTheNumberOfThreads) {
  for (const char* cell : {"rnn", "gru", "lstm"}) {
    const auto in = inputs({cell, 700, 44, 48, true, true, at::kBFloat16});
    testing::with_every_isa([&](const std::string& isa) {
      if (isa == "plain") return;
      const auto one = testing::with_threads(1, [&] { return run(cell, in); });
      const auto two = testing::with_threads(2, [&] { return run(cell, in); });
      for (size_t i = 0; i < one.size(); ++i) {
        if (one[i].defined()) {
          EXPECT_TRUE(one[i].equal(two[i])) << cell << ", " << isa << ", output " << i;
        }
      }
    });
  }
}

TEST(RecurrentStage, GradientsMatchFiniteDifferences) {
  for (const char* cell : {"rnn", "gru", "lstm"}) {
    for (const bool state : {true, false}) {
      const auto in = in_fp64(inputs({cell, 3, 4, 2, true, state}));
      std::vector<Tensor> given;
      for (size_t i = 0; i < 8; ++i) {
        if (in[i].defined() && (state || i != 5)) given.push_back(in[i]);
      }
      testing::expect_gradients(
          [&](const std::vector<Tensor>& v) {
            std::vector<Tensor> a(8);
            for (size_t i = 0, j = 0; i < 8; ++i) {
              a[i] = !in[i].defined() ? Tensor() : state || i != 5 ? v[j++] : in[i];
            }
            const auto after =
                recurrent_stage(cell, a[0], {.h_TP = a[1], .c_TP = a[2]},
                                {.projection_PD = a[3], .ih = a[4], .hh = a[5], .b_ih = a[6], .b_hh = a[7]});
            return after.c_TP.defined() ? at::cat({after.h_TP, after.c_TP}, 1) : after.h_TP;
          },
          given);
    }
  }
}

TEST(RecurrentStage, TheGradientOfOneOutputIsEnough) {
  const auto in = inputs({"lstm", 20, 7, 5});
  Tensor x = in[0].detach().requires_grad_(true);
  const RecurrentWeights w{.projection_PD = in[3], .ih = in[4], .hh = in[5], .b_ih = in[6], .b_hh = in[7]};
  const auto gradient = [&](bool of_h, bool zero_times_the_other) {
    x.mutable_grad() = Tensor();
    const auto after = recurrent_stage("lstm", x, {.h_TP = in[1], .c_TP = in[2]}, w);
    Tensor loss = (of_h ? after.h_TP : after.c_TP).sum();
    if (zero_times_the_other) loss = loss + 0 * (of_h ? after.c_TP : after.h_TP).sum();
    loss.backward();
    return x.grad().clone();
  };
  EXPECT_TRUE(gradient(true, false).equal(gradient(true, true)));
  EXPECT_TRUE(gradient(false, false).equal(gradient(false, true)));
}

TEST(RecurrentStage, WeightsInBf16AreTaken) {
  auto in = inputs({"gru", 12, 20, 8});
  for (size_t i = 3; i < 8; ++i) in[i] = in[i].to(at::kBFloat16);
  auto widened = in;
  for (size_t i = 3; i < 8; ++i) widened[i] = in[i].to(at::kFloat);
  EXPECT_TRUE(run("gru", in)[0].equal(run("gru", widened)[0]));
}

TEST(RecurrentStage, SaturatedGatesStayFinite) {
  for (const char* cell : {"rnn", "gru", "lstm"}) {
    auto in = inputs({cell, 40, 8, 16});
    in[0] *= 1e4;
    testing::with_every_isa([&](const std::string& isa) {
      for (const Tensor& t : run(cell, in)) {
        if (t.defined()) {
          EXPECT_TRUE(t.isfinite().all().item<bool>()) << cell << ", " << isa;
        }
      }
    });
  }
}

TEST(RecurrentStage, WrongShapesAreNamed) {
  auto in = inputs({"gru", 4, 3, 5});
  in[1] = randn({3, 5}, 1);
  try {
    run("gru", in);
    FAIL() << "accepted a state of 3 rows for 4 tokens";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::kBadInput);
    EXPECT_EQ(error.message(), "recurrent_stage: state must be [4, 5], got [3, 5]");
  }
}

}  // namespace
}  // namespace rmoe
