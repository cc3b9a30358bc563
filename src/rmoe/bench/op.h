// The ops that `rmoe bench op` measures, each in a file of ops/:
//
//   RMOE_BENCH_OP(relu, {.floor = 1.5, .cases = {{"2048 x 384", [](at::ScalarType dtype) -> OpWork {
//                   const Tensor x = random({2048, 384}, dtype);
//                   return {.inputs = {x}, .run = [x] { return ops::relu(x); }};
//                 }}}})
#pragma once

#include <functional>

#include "rmoe/ops/torch.h"

namespace rmoe::bench {

// One call of an op on inputs that exist already.
struct OpWork {
  std::vector<Tensor> inputs;   // what it reads; gradients are computed of those that require one
  std::function<Tensor()> run;  // ours: the kernels that the CPU has, and with those switched off the reference formula
  std::function<Tensor()> plain = {};  // the plain formula of an op without a reference; empty: run() without kernels
  double flops = 0;                    // of run(), 2 per multiply-add
  double backward_flops = 0;           // of its gradients
};

struct OpCase {
  std::string name;  // its sizes
  std::function<OpWork(at::ScalarType dtype)> make;
};

struct Op {
  // Of the plain formula's time over ours, in every case on a CPU with kernels; the short bench among the tests fails
  // below half of it.
  double floor = 1;
  std::vector<at::ScalarType> dtypes = {at::kBFloat16, at::kFloat};
  std::vector<OpCase> cases;
};

// By name, in alphabetical order.
const std::vector<std::pair<std::string, Op>>& ops();
bool register_op(const char* name, Op op);

// N(0, 1), without and with a gradient of its own; the same numbers each time.
Tensor random(at::IntArrayRef sizes, at::ScalarType dtype);
Tensor random_leaf(at::IntArrayRef sizes, at::ScalarType dtype);

}  // namespace rmoe::bench

#define RMOE_BENCH_OP(name, ...) [[maybe_unused]] const bool name##_is_measured = register_op(#name, Op __VA_ARGS__);
