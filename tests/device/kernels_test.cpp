// The kernels of kernels/cuda/, compiled for the host, behind the ops: every value and gradient against the formula in
// fp64, as accurate as the plain formula in the same dtype, and the same bits whichever thread runs first.
#include <gtest/gtest.h>

#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/ops/causal_attention.h"
#include "rmoe/ops/device.h"
#include "rmoe/ops/device_kernels.h"
#include "rmoe/ops/experts.h"
#include "rmoe/ops/gate.h"
#include "rmoe/ops/linear_cross_entropy.h"
#include "rmoe/ops/norm.h"
#include "rmoe/ops/recurrent_stage.h"
#include "rmoe/ops/span_attention.h"
#include "tests/device/modes.h"
#include "tests/support/accuracy.h"
#include "tests/support/gradcheck.h"

namespace rmoe {
namespace {

using testing::randn;
using Tensors = std::vector<Tensor>;
using Function = std::function<Tensors(const Tensors&)>;

// Outputs of f and gradients of its inputs there, on the CPU.
Tensors results(const Function& f, const Tensors& inputs, at::Device device, at::ScalarType dtype) {
  Tensors leaves, all;
  for (const Tensor& input : inputs) {
    const Tensor there = input.to(device, input.is_floating_point() ? dtype : input.scalar_type(),
                                  /*non_blocking=*/false, /*copy=*/true);
    leaves.push_back(there.is_floating_point() ? there.requires_grad_() : there);
  }
  const Tensors outputs = f(leaves);
  Tensor loss = at::zeros({}, at::TensorOptions(device).dtype(at::kFloat));
  for (size_t i = 0; i < outputs.size(); ++i) {
    all.push_back(outputs[i].detach().cpu());
    const Tensor weights = randn(outputs[i].sizes(), 50 + i).to(device);
    if (outputs[i].requires_grad()) loss = loss + (outputs[i].to(at::kDouble) * weights).sum();
  }
  loss.backward();
  for (const Tensor& leaf : leaves) {
    if (leaf.requires_grad()) all.push_back(leaf.grad().cpu());
  }
  return all;
}

class CudaKernels : public testing::OnFarDevice {};

void expect_kernels(const std::string& what, const Function& f, const Tensors& inputs,
                    std::vector<at::ScalarType> dtypes = {at::kFloat, at::kBFloat16}) {
  const at::Device far = device_named(testing::test_device());
  for (const at::ScalarType dtype : dtypes) {
    Tensors rounded;
    for (const Tensor& input : inputs) rounded.push_back(input.is_floating_point() ? input.to(dtype) : input);
    const Tensors exact = results(f, rounded, at::kCPU, at::kDouble), plain = results(f, rounded, at::kCPU, dtype);
    Tensors first;
    for (const auto mode : {testing::Mode::kKernels, testing::Mode::kKernelsBackward}) {
      const testing::ModeScope scope(mode);
      const Tensors ours = results(f, rounded, far, dtype);
      ASSERT_EQ(ours.size(), exact.size());
      for (size_t i = 0; i < ours.size(); ++i) {
        const std::string name = what + ", " + c10::toString(dtype) + ", result " + std::to_string(i);
        testing::expect_as_accurate(name, ours[i], plain[i], exact[i]);
        EXPECT_TRUE(first.empty() || at::equal(ours[i], first[i])) << name << " depends on which thread runs first";
      }
      first = ours;
    }
  }
}

TEST_F(CudaKernels, Norms) {
  for (const auto& [M, D] : {std::pair{1, 8}, {7, 33}, {130, 257}, {66, 600}}) {
    const Tensors inputs = {randn({M, D}, 1), randn({M, D}, 2), randn({D}, 3), randn({D}, 4)};
    const std::string size = std::to_string(M) + " x " + std::to_string(D);
    expect_kernels("rms_norm " + size, [](const Tensors& t) { return Tensors{rms_norm(t[0], t[1], 1e-5)}; },
                   {inputs[0], inputs[2]});
    for (const double p : {0.0, 0.3}) {
      expect_kernels("add_rms_norm " + size,
                     [p](const Tensors& t) {
                       const auto out = add_rms_norm(t[0], t[1], t[2], 1e-5, p, DropoutKey{7});
                       return Tensors{out.sum, out.normed};
                     },
                     {inputs[0], inputs[1], inputs[2]});
      expect_kernels(
          "add_layer_norm " + size,
          [p](const Tensors& t) {
            return Tensors{add_layer_norm(t[0], t[1], t[2], t[3], 1e-5, p, DropoutKey{7}).normed};
          },
          inputs);
    }
  }
}

TEST_F(CudaKernels, Gates) {
  struct Size {
    int64_t T, R, N, K;
  };
  for (const Size& s : {Size{5, 8, 5, 2}, {67, 16, 70, 8}, {9, 4, 33, 33}, {1, 3, 1, 1}}) {
    for (const bool renormalize : {false, true}) {
      const Tensors inputs = {randn({s.T, s.R}, 1), randn({s.N, s.R}, 2), randn({s.N}, 3)};
      const auto name = str("gate ", s.T, " ", s.N, " ", s.K, renormalize ? ", renormalized" : "");
      expect_kernels(name,
                     [&](const Tensors& t) {
                       const Gated g = gate(t[0], t[1], t[2], s.K, renormalize);
                       return Tensors{g.weights_TK, g.probs_TN, g.logits_TN};
                     },
                     inputs, {at::kFloat});
      const testing::ModeScope scope(testing::Mode::kKernels);
      const at::Device far = device_named(testing::test_device());
      const Gated here = gate(inputs[0].to(at::kFloat), inputs[1].to(at::kFloat), {}, s.K, renormalize);
      const Gated there = gate(inputs[0].to(far, at::kFloat), inputs[1].to(far, at::kFloat), {}, s.K, renormalize);
      EXPECT_TRUE(at::equal(there.ids_TK.cpu(), here.ids_TK)) << name;
      EXPECT_TRUE(at::equal(there.counts_N.cpu(), here.counts_N)) << name;
    }
  }
}

TEST_F(CudaKernels, EqualProbabilitiesGoToTheLowerExpert) {
  const at::Device far = device_named(testing::test_device());
  const testing::ModeScope scope(testing::Mode::kKernels);
  const Gated g = gate(at::ones({3, 2}, far), at::zeros({40, 2}, far), {}, 5, false);
  EXPECT_TRUE(at::equal(g.ids_TK.cpu(), at::arange(5, at::kLong).expand({3, 5})));
}

TEST_F(CudaKernels, Cells) {
  constexpr int64_t T = 37, D = 12, P = 9;
  for (const auto& [cell, G] : {std::pair{"rnn", 1}, {"gru", 3}, {"lstm", 4}}) {
    for (const bool state : {false, true}) {
      for (const bool projected : {false, true}) {
        const std::string name = cell;
        Tensors inputs = {randn({T, D}, 1), randn({G * P, projected ? P : D}, 2), randn({G * P, P}, 3),
                          randn({G * P}, 4), randn({G * P}, 5)};
        if (projected) inputs.push_back(randn({P, D}, 6));
        if (state) inputs.push_back(randn({T, P}, 7));
        if (state && name == "lstm") inputs.push_back(randn({T, P}, 8));
        expect_kernels(str(name, state ? ", state" : "", projected ? ", projected" : ""),
                       [&](const Tensors& t) {
                         size_t next = 5;
                         RecurrentWeights w{.ih = t[1], .hh = t[2], .b_ih = t[3], .b_hh = t[4]};
                         if (projected) w.projection_PD = t[next++];
                         RecurrentState before;
                         if (state) before.h_TP = t[next++];
                         if (state && name == "lstm") before.c_TP = t[next++];
                         const RecurrentState after = recurrent_stage(name, t[0], before, w);
                         // Without a state, its weights have a gradient of zeros in one way and none in the other.
                         Tensors out{after.h_TP + 0 * t[2].sum()};
                         if (name == "lstm") out.push_back(after.c_TP);
                         return out;
                       },
                       inputs, {at::kFloat});
      }
    }
  }
}

TEST_F(CudaKernels, Experts) {
  struct Size {
    int64_t T, N, K, D, F;
  };
  // The last is not aligned for a grouped product in bf16, the others are.
  for (const Size& s : {Size{29, 5, 3, 16, 24}, {300, 7, 2, 32, 8}, {40, 300, 1, 8, 8}, {11, 3, 2, 12, 20}}) {
    at::Generator generator = at::detail::createCPUGenerator(9);
    const Tensor ids = at::randint(-1, s.N, {s.T, s.K}, generator, at::kLong);
    for (const bool gated : {false, true}) {
      Tensors inputs = {randn({s.T, s.D}, 1), ids, randn({s.T, s.K}, 2), randn({s.N, s.F, s.D}, 3),
                        randn({s.N, s.D, s.F}, 4)};
      if (gated) {
        inputs.push_back(randn({s.N, s.F, s.D}, 5));
      } else {
        inputs.push_back(randn({s.N, s.F}, 6));
        inputs.push_back(randn({s.N, s.D}, 7));
      }
      expect_kernels(
          str("experts ", s.T, " ", s.N, gated ? ", gated" : ""),
          [&](const Tensors& t) {
            ExpertWeights w;
            w.w1_NFD = t[3], w.w2_NDF = t[4];
            if (gated) {
              w.w3_NFD = t[5];
            } else {
              w.b1_NF = t[5], w.b2_ND = t[6];
            }
            return Tensors{experts(t[0], t[1], t[2], w, gated ? 0 : 0.25, DropoutKey{3})};
          },
          inputs);
    }
  }
}

TEST_F(CudaKernels, LinearCrossEntropy) {
  for (const auto& [T, V] : {std::pair{13, 77}, {3, 1000}, {70, 5}}) {
    at::Generator generator = at::detail::createCPUGenerator(9);
    Tensor targets = at::randint(0, V, {T}, generator, at::kLong);
    targets[1] = -100;
    for (const bool bias : {false, true}) {
      Tensors inputs = {randn({T, 24}, 1), randn({V, 24}, 2), targets};
      if (bias) inputs.push_back(randn({V}, 3));
      expect_kernels(
          str("linear_cross_entropy ", T, " ", V, bias ? ", bias" : ""),
          [&](const Tensors& t) {
            const auto out =
                linear_cross_entropy(t[0], t[1], bias ? t[3] : Tensor(), t[2], {.z_loss = 1e-2, .scale = 0.5});
            return Tensors{out.loss, out.losses_T};
          },
          inputs);
    }
  }
}

TEST_F(CudaKernels, SpanAttention) {
  struct Size {
    int64_t B, H, M, S, C;
  };
  // Less than a tile, more than one, tiles that end inside; every width that there is code for, and one too wide.
  for (const Size& s : {Size{2, 2, 5, 3, 4},
                        {1, 1, 1, 1, 1},
                        {1, 1, 70, 130, 44},
                        {2, 1, 130, 20, 20},
                        {1, 1, 64, 64, 64},
                        {1, 1, 66, 65, 90},
                        {1, 1, 7, 150, 31},
                        {1, 1, 9, 8, 130}}) {
    for (const double p : {0.0, 0.3}) {
      const auto heads = [&](int64_t positions, uint64_t seed) { return randn({s.B, s.H, positions, s.C}, seed); };
      expect_kernels(
          str("span_attention ", s.M, " ", s.S, " ", s.C, p > 0 ? ", dropout" : ""),
          [p](const Tensors& t) { return Tensors{span_attention(t[0], t[1], t[2], t[3], p, DropoutKey{5})}; },
          {heads(s.M, 1), heads(s.S + s.M, 2), heads(s.S + s.M, 3), randn({s.C, s.S}, 4)});
    }
  }
}

// As the model has them: heads side by side in a row, a bias of fp32.
TEST_F(CudaKernels, SpanAttentionOfHeadsSideBySide) {
  const at::Device far = device_named(testing::test_device());
  const auto heads = [](const Tensor& rows) { return rows.unflatten(-1, {3, 8}).transpose(1, 2); };
  const Tensor q = randn({2, 9, 24}, 1).to(at::kBFloat16), kv = randn({2, 14, 48}, 2).to(at::kBFloat16);
  const Tensor key_pe = randn({8, 5}, 3).to(at::kFloat);
  const auto outputs = [&](at::Device device) {
    const auto both = kv.to(device).chunk(2, -1);
    return span_attention(heads(q.to(device)), heads(both[0]), heads(both[1]), key_pe.to(device), 0, {}).cpu();
  };
  const Tensor plain = outputs(at::kCPU);
  const testing::ModeScope scope(testing::Mode::kKernels);
  EXPECT_LE((outputs(far) - plain).abs().max().item<float>(), 0.02);
}

TEST_F(CudaKernels, CausalAttentionByTheLibrary) {
  for (const auto& [Sq, Sk, H, Hkv] : {std::tuple{6, 6, 4, 2}, {1, 5, 2, 2}, {3, 8, 4, 1}}) {
    expect_kernels(str("causal_attention ", Sq, " ", Sk),
                   [](const Tensors& t) { return Tensors{causal_attention(t[0], t[1], t[2], {})}; },
                   {randn({2, Sq, H, 8}, 1), randn({2, Sk, Hkv, 8}, 2), randn({2, Sk, Hkv, 8}, 3)});
  }
}

}  // namespace
}  // namespace rmoe
