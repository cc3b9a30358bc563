// The norms with the residual before them.
#include "rmoe/ops/norm.h"

#include "rmoe/bench/op.h"

namespace rmoe::bench {
namespace {

constexpr double kEps = 1e-5;

OpCase rms_case(int64_t T, int64_t D) {
  return {"T " + std::to_string(T) + ", D " + std::to_string(D), [=](at::ScalarType dtype) -> OpWork {
            const Tensor x = random_leaf({T, D}, dtype), branch = random_leaf({T, D}, dtype);
            const Tensor weight = random_leaf({D}, at::kFloat);
            return {.inputs = {x, branch, weight}, .run = [=] { return add_rms_norm(x, branch, weight, kEps).normed; }};
          }};
}

OpCase layer_case(int64_t T, int64_t D, double dropout) {
  return {"T " + std::to_string(T) + ", D " + std::to_string(D) + (dropout > 0 ? ", dropout" : ""),
          [=](at::ScalarType dtype) -> OpWork {
            const Tensor x = random_leaf({T, D}, dtype), branch = random_leaf({T, D}, dtype);
            const Tensor weight = random_leaf({D}, at::kFloat), bias = random_leaf({D}, at::kFloat);
            return {.inputs = {x, branch, weight, bias}, .run = [=] {
                      return add_layer_norm(x, branch, weight, bias, kEps, dropout, DropoutKey{1}).normed;
                    }};
          }};
}

RMOE_BENCH_OP(add_rms_norm, {.floor = 1.5, .cases = {rms_case(2048, 384), rms_case(2048, 1280)}})
RMOE_BENCH_OP(add_layer_norm, {.floor = 1, .cases = {layer_case(2048, 352, 0), layer_case(2048, 352, 0.1)}})

}  // namespace
}  // namespace rmoe::bench
