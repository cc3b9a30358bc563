// causal_attention: rotary positions inside, grouped queries.
#include "rmoe/ops/causal_attention.h"

#include "rmoe/bench/op.h"

namespace rmoe::bench {
namespace {

OpCase causal_case(int64_t B, int64_t S, int64_t H, int64_t kv_heads, int64_t C) {
  return {"B " + std::to_string(B) + ", S " + std::to_string(S) + ", H " + std::to_string(H) + "/" +
              std::to_string(kv_heads) + ", C " + std::to_string(C),
          [=](at::ScalarType dtype) -> OpWork {
            const Tensor q = random_leaf({B, S, H, C}, dtype), k = random_leaf({B, S, kv_heads, C}, dtype);
            const Tensor v = random_leaf({B, S, kv_heads, C}, dtype);
            const RotaryAngles angles = rotary_angles(0, S, C, 10000, at::kFloat);
            // Two products over the keys before a query; backward makes the scores once more.
            const double product = static_cast<double>(B * H * S * C) * static_cast<double>(S + 1);
            return {.inputs = {q, k, v},
                    .run = [=] { return causal_attention(q, k, v, angles); },
                    .flops = 2 * product,
                    .backward_flops = 5 * product};
          }};
}

RMOE_BENCH_OP(causal_attention, {.floor = 1.5,
                                 .cases = {causal_case(4, 512, 6, 6, 64), causal_case(4, 512, 6, 2, 64),
                                           causal_case(1, 2048, 6, 6, 64), causal_case(4, 512, 8, 8, 44)}})

}  // namespace
}  // namespace rmoe::bench
