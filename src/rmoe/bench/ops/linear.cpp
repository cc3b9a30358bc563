// linear: bf16 or fp32 activations, fp32 weights, with the gradients of both.
#include "rmoe/bench/op.h"
#include "rmoe/ops/affine.h"

namespace rmoe::bench {
namespace {

OpCase linear_case(const std::string& what, int64_t M, int64_t N, int64_t K) {
  return {what + " " + std::to_string(M) + " x " + std::to_string(K) + " -> " + std::to_string(N),
          [=](at::ScalarType dtype) -> OpWork {
            const Tensor x = random_leaf({M, K}, dtype), w = random_leaf({N, K}, at::kFloat);
            const auto flops = 2 * static_cast<double>(M * N * K);
            return {.inputs = {x, w}, .run = [=] { return affine(x, w); }, .flops = flops, .backward_flops = 2 * flops};
          }};
}

RMOE_BENCH_OP(linear, {.floor = 0.8,
                       .cases = {linear_case("llama", 2048, 384, 384), linear_case("wide", 2048, 1280, 1280),
                                 linear_case("odd", 2048, 352, 352), linear_case("long", 16384, 384, 384)}})

}  // namespace
}  // namespace rmoe::bench
