// experts: a layer's feed-forward networks from routed ids to summed answers, fp32 weights.
#include "rmoe/ops/experts.h"

#include "rmoe/bench/op.h"

namespace rmoe::bench {
namespace {

struct Sizes {
  int64_t T, D, F, N, K;
  bool gated = true;  // SwiGLU; false: relu with biases
  double dropout = 0;
  bool skewed = false;  // half of the slots go to one expert
};

OpCase experts_case(const std::string& what, const Sizes& s) {
  return {what, [=](at::ScalarType dtype) -> OpWork {
            const Tensor x = random_leaf({s.T, s.D}, dtype), weights = random_leaf({s.T, s.K}, at::kFloat);
            Tensor ids = std::get<1>(random({s.T, s.N}, at::kFloat).topk(s.K));
            if (s.skewed) ids = at::where(at::arange(s.T).remainder(2).eq(0).unsqueeze(1), 0, ids);
            ExpertWeights w{.w1_NFD = random_leaf({s.N, s.F, s.D}, at::kFloat),
                            .b1_NF = {},
                            .w2_NDF = random_leaf({s.N, s.D, s.F}, at::kFloat),
                            .b2_ND = {},
                            .w3_NFD = {}};
            if (s.gated) {
              w.w3_NFD = random_leaf({s.N, s.F, s.D}, at::kFloat);
            } else {
              w.b1_NF = random_leaf({s.N, s.F}, at::kFloat);
              w.b2_ND = random_leaf({s.N, s.D}, at::kFloat);
            }
            const auto product = 2 * static_cast<double>(s.T * s.K * s.D * s.F);
            const double flops = (s.gated ? 3 : 2) * product;
            OpWork work{.inputs = {x, weights},
                        .run = [=] { return experts(x, ids, weights, w, s.dropout, DropoutKey{1}); },
                        .flops = flops,
                        .backward_flops = 2 * flops};
            for (const Tensor& t : {w.w1_NFD, w.b1_NF, w.w2_NDF, w.b2_ND, w.w3_NFD}) {
              if (t.defined()) work.inputs.push_back(t);
            }
            return work;
          }};
}

RMOE_BENCH_OP(
    experts,
    {.floor = 1,
     .cases = {experts_case("llama T 2048, D 384, 16 x 384, K 2", {2048, 384, 384, 16, 2}),
               experts_case("wide T 2048, D 1280, 16 x 448, K 4", {2048, 1280, 448, 16, 4}),
               experts_case("span T 2048, D 352, 16 x 352 relu, K 2", {2048, 352, 352, 16, 2, false, 0.1}),
               experts_case("half of the slots on one expert", {2048, 384, 384, 16, 2, true, 0, true}),
               experts_case("8 experts", {2048, 384, 384, 8, 2}), experts_case("128 experts", {2048, 384, 384, 128, 2}),
               experts_case("T 256", {256, 384, 384, 16, 2}), experts_case("T 32768", {32768, 384, 384, 16, 2})}})

}  // namespace
}  // namespace rmoe::bench
