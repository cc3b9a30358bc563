// gru_cell: a layer's step of the recurrent stage, in fp32 as routers are.
#include "rmoe/bench/op.h"
#include "rmoe/ops/gru_cell.h"

namespace rmoe::bench {
namespace {

OpCase gru_cell_case(int64_t T, int64_t P) {
  return {"T " + std::to_string(T) + ", p " + std::to_string(P), [=](at::ScalarType dtype) -> OpWork {
            const Tensor x = random_leaf({T, P}, dtype), h = random_leaf({T, P}, dtype);
            const Tensor w_ih = random_leaf({3 * P, P}, dtype), w_hh = random_leaf({3 * P, P}, dtype);
            const Tensor b_ih = random_leaf({3 * P}, dtype), b_hh = random_leaf({3 * P}, dtype);
            const auto flops = 2 * static_cast<double>(6 * T * P * P);
            // Backward computes the gates once more.
            return {.inputs = {x, h, w_ih, w_hh, b_ih, b_hh},
                    .run = [=] { return gru_cell(x, h, w_ih, w_hh, b_ih, b_hh); },
                    .flops = flops,
                    .backward_flops = 3 * flops};
          }};
}

RMOE_BENCH_OP(gru_cell, {.floor = 1,
                         .dtypes = {at::kFloat},
                         .cases = {gru_cell_case(2048, 64), gru_cell_case(2048, 128), gru_cell_case(2048, 256),
                                   gru_cell_case(2048, 512), gru_cell_case(2048, 100)}})

}  // namespace
}  // namespace rmoe::bench
