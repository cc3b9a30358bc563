// dropout: a mask from a counter instead of one that is stored. It has one loop for all CPUs, so the plain formula is
// torch's own.
#include "rmoe/ops/dropout.h"

#include "rmoe/bench/op.h"

namespace rmoe::bench {
namespace {

OpCase dropout_case(int64_t T, int64_t D) {
  return {std::to_string(T) + " x " + std::to_string(D), [=](at::ScalarType dtype) -> OpWork {
            const Tensor x = random_leaf({T, D}, dtype);
            return {.inputs = {x},
                    .run = [x] { return dropout(x, 0.1, DropoutKey{1}); },
                    .plain = [x] { return at::dropout(x, 0.1, true); }};
          }};
}

RMOE_BENCH_OP(dropout, {.floor = 1, .cases = {dropout_case(2048, 352), dropout_case(4096, 704)}})

}  // namespace
}  // namespace rmoe::bench
