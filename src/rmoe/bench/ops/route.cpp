// The two halves of a route: the recurrent stage, and the head with softmax and top-k. In fp32 whatever x is.
#include "rmoe/bench/op.h"
#include "rmoe/ops/gate.h"
#include "rmoe/ops/recurrent_stage.h"

namespace rmoe::bench {
namespace {

OpCase stage_case(const std::string& cell, int64_t gates, int64_t T, int64_t D, int64_t P) {
  return {cell + " T " + std::to_string(T) + ", D " + std::to_string(D) + ", P " + std::to_string(P),
          [=](at::ScalarType dtype) -> OpWork {
            const auto leaf = [](at::IntArrayRef sizes) {
              return at::mul(random(sizes, at::kFloat), 0.1).requires_grad_();
            };
            const Tensor x = random_leaf({T, D}, dtype);
            const RecurrentState before{.h_TP = leaf({T, P}), .c_TP = cell == "lstm" ? leaf({T, P}) : Tensor()};
            const RecurrentWeights w{.projection_PD = leaf({P, D}),
                                     .ih = leaf({gates * P, P}),
                                     .hh = leaf({gates * P, P}),
                                     .b_ih = leaf({gates * P}),
                                     .b_hh = leaf({gates * P})};
            const auto flops = 2 * static_cast<double>(T * P) * static_cast<double>(D + 2 * gates * P);
            OpWork work{.inputs = {x, before.h_TP, w.projection_PD, w.ih, w.hh, w.b_ih, w.b_hh},
                        .run = [=] { return recurrent_stage(cell, x, before, w).h_TP; },
                        .flops = flops,
                        .backward_flops = 2 * flops};
            if (before.c_TP.defined()) work.inputs.push_back(before.c_TP);
            return work;
          }};
}

OpCase gate_case(int64_t T, int64_t R, int64_t N, int64_t K) {
  return {
      "T " + std::to_string(T) + ", R " + std::to_string(R) + ", N " + std::to_string(N) + ", K " + std::to_string(K),
      [=](at::ScalarType dtype) -> OpWork {
        const Tensor feature = random_leaf({T, R}, dtype), weight = random_leaf({N, R}, at::kFloat);
        const auto flops = 2 * static_cast<double>(T * R * N);
        return {.inputs = {feature, weight},
                .run = [=] { return gate(feature, weight, {}, K, true).weights_TK; },
                .flops = flops,
                .backward_flops = 2 * flops};
      }};
}

RMOE_BENCH_OP(recurrent_stage, {.floor = 1.1,
                                .cases = {stage_case("gru", 3, 2048, 384, 128), stage_case("gru", 3, 2048, 384, 64),
                                          stage_case("gru", 3, 2048, 384, 512), stage_case("gru", 3, 2048, 1280, 128),
                                          stage_case("rnn", 1, 2048, 384, 128), stage_case("lstm", 4, 2048, 384, 128)}})
RMOE_BENCH_OP(gate, {.floor = 1, .cases = {gate_case(2048, 384, 16, 2), gate_case(2048, 128, 128, 8)}})

}  // namespace
}  // namespace rmoe::bench
