// adam_step: a parameter, its gradient and its moments in one pass.
#include "rmoe/ops/adam.h"

#include "rmoe/bench/op.h"

namespace rmoe::bench {
namespace {

OpCase adam_case(int64_t millions) {
  return {std::to_string(millions) + " M parameters", [=](at::ScalarType dtype) -> OpWork {
            const int64_t count = millions * 1'000'000;
            const Tensor value = random({count}, dtype), grad = random({count}, dtype);
            const AdamParam param{
                .value = value, .grad = grad, .exp_avg = at::zeros_like(value), .exp_avg_sq = at::zeros_like(value)};
            return {.inputs = {value, grad, param.exp_avg, param.exp_avg_sq}, .run = [=] {
                      adam_step({param}, {.weight_decay = 0.1}, 10);
                      return param.value;
                    }};
          }};
}

RMOE_BENCH_OP(adam_step, {.floor = 1, .dtypes = {at::kFloat}, .cases = {adam_case(1), adam_case(60)}})

}  // namespace
}  // namespace rmoe::bench
