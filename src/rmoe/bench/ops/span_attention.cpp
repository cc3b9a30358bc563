// span_attention: the paper's medium model (heads of 44) and a width that fills vectors.
#include "rmoe/ops/span_attention.h"

#include "rmoe/bench/op.h"

namespace rmoe::bench {
namespace {

OpCase span_case(int64_t C, double dropout) {
  return {"B 4, H 8, M 512, S 512, C " + std::to_string(C) + (dropout > 0 ? ", dropout" : ""),
          [=](at::ScalarType dtype) -> OpWork {
            constexpr int64_t B = 4, H = 8, M = 512, S = 512;
            const Tensor q = random_leaf({B, H, M, C}, dtype), key_pe = random_leaf({C, S}, dtype);
            const Tensor k = random_leaf({B, H, S + M, C}, dtype), v = random_leaf({B, H, S + M, C}, dtype);
            // Three products over the span each way; backward makes the scores once more.
            const auto product = 2 * static_cast<double>(B * H * M * S * C);
            return {.inputs = {q, k, v, key_pe},
                    .run = [=] { return span_attention(q, k, v, key_pe, dropout, DropoutKey{1}); },
                    .flops = 3 * product,
                    .backward_flops = 8 * product};
          }};
}

RMOE_BENCH_OP(span_attention, {.floor = 1, .cases = {span_case(44, 0.1), span_case(44, 0), span_case(64, 0.1)}})

}  // namespace
}  // namespace rmoe::bench
