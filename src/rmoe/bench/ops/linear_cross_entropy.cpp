// linear_cross_entropy: the head and the loss; with gradients it makes them in its forward pass.
#include "rmoe/ops/linear_cross_entropy.h"

#include "rmoe/bench/op.h"

namespace rmoe::bench {
namespace {

OpCase loss_case(int64_t T, int64_t D, int64_t V) {
  return {"T " + std::to_string(T) + ", D " + std::to_string(D) + ", V " + std::to_string(V),
          [=](at::ScalarType dtype) -> OpWork {
            const Tensor x = random_leaf({T, D}, dtype), w = at::mul(random({V, D}, at::kFloat), 0.02).requires_grad_();
            const Tensor targets = at::arange(T).remainder(V);
            const auto flops = 2 * static_cast<double>(T * D * V);
            return {.inputs = {x, w},
                    .run = [=] { return linear_cross_entropy(x, w, {}, targets).loss; },
                    .flops = flops,
                    .backward_flops = 2 * flops};
          }};
}

RMOE_BENCH_OP(linear_cross_entropy, {.floor = 0.8, .cases = {loss_case(2048, 384, 32000), loss_case(2048, 352, 205)}})

}  // namespace
}  // namespace rmoe::bench
