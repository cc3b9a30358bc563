// Backward ops are called from Python as well, by whoever has a backward pass of his own: what they would misread in
// memory is refused.
#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/kernels/cpu/isa.h"
#include "tests/support/gradcheck.h"

namespace rmoe {
namespace {

using testing::randn;
using OptionalTensor = std::optional<Tensor>;

template <class F>
auto op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}
Tensor fp32(at::IntArrayRef sizes, uint64_t seed) { return randn(sizes, seed).to(at::kFloat); }

TEST(BackwardArguments, AttentionRefusesGradientsAndOutputsOfAnotherType) {
  if (kernels::cpu_isa() == kernels::Isa::kPlain) GTEST_SKIP() << "no kernels";
  const auto forward = op<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                                                     const OptionalTensor&)>("rmoe::causal_attention");
  const auto backward = op<std::tuple<Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
      const Tensor&, const Tensor&)>("rmoe::causal_attention_backward");
  const Tensor q = fp32({1, 8, 2, 16}, 1), grad = fp32({1, 8, 2, 16}, 2);
  const auto [out, lse] = forward.call(q, q, q, std::nullopt, std::nullopt);
  const auto run = [&](const Tensor& g, const Tensor& o, const Tensor& l) {
    backward.call(g, q, q, q, std::nullopt, std::nullopt, o, l);
  };
  EXPECT_NO_THROW(run(grad, out, lse));
  EXPECT_THROW(run(grad.to(at::kBFloat16), out, lse), Error);
  EXPECT_THROW(run(grad, out.to(at::kDouble), lse), Error);
  EXPECT_THROW(run(grad, out, lse.to(at::kDouble)), Error);
}

TEST(BackwardArguments, AnglesMayBeOfAnyType) {
  const auto rotate = op<Tensor(const Tensor&, const Tensor&, const Tensor&, bool)>("rmoe::rotate");
  const Tensor x = fp32({1, 8, 2, 16}, 1), cos = fp32({8, 8}, 2), sin = fp32({8, 8}, 3);
  const Tensor expected = rotate.call(x, cos, sin, false);
  EXPECT_TRUE(at::allclose(rotate.call(x, cos, sin.to(at::kDouble), false).to(at::kFloat), expected, 1e-5, 1e-6));
}

TEST(BackwardArguments, ANormReadsStridedDeviations) {
  const auto backward = op<std::tuple<Tensor, Tensor, Tensor, Tensor>(
      const Tensor&, const OptionalTensor&, const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&,
      const Tensor&, double, int64_t)>("rmoe::norm_backward");
  const Tensor x = fp32({5, 32}, 1), grad = fp32({5, 32}, 2), weight = at::ones({32}), bias = at::zeros({32});
  const Tensor mean = fp32({5}, 3), rstd = fp32({5}, 4).abs();
  const auto strided = [](const Tensor& t) { return at::stack({t, at::zeros_like(t)}, 1).select(1, 0); };
  const auto run = [&](const Tensor& m, const Tensor& r) {
    return std::get<0>(backward.call(grad, std::nullopt, x, weight, bias, m, r, 0, 0));
  };
  EXPECT_TRUE(run(strided(mean), strided(rstd)).equal(run(mean, rstd)));
}

TEST(BackwardArguments, AGateRefusesIdsBeyondItsExperts) {
  if (kernels::cpu_isa() == kernels::Isa::kPlain) GTEST_SKIP() << "no kernels";
  const auto backward = op<std::tuple<Tensor, Tensor, Tensor>(
      const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const Tensor&, const Tensor&,
      const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&, bool)>("rmoe::gate_backward");
  const Tensor feature = fp32({20, 16}, 1), weight = fp32({8, 16}, 2), slots = fp32({20, 2}, 3).abs(),
               probs = fp32({20, 8}, 4).softmax(1);
  for (const int64_t id : {int64_t{8}, int64_t{-1}, int64_t{1} << 40}) {
    Tensor ids = at::zeros({20, 2}, at::kLong);
    ids[3][1] = id;
    EXPECT_THROW(
        backward.call(slots, std::nullopt, std::nullopt, feature, weight, std::nullopt, ids, slots, probs, true), Error)
        << id;
  }
}

}  // namespace
}  // namespace rmoe
