// The experts of one layer: our kernels against the plain formula, taken in turn, forward alone and with backward.
//   bench_experts [--threads=N] [--rounds=N] [--tokens=T] [--width=D] [--inner=F] [--experts=N] [--top-k=K] [--relu]
//                 [--dropout=P] [--skewed] [--fp32] [--bf16-weights]
// --relu: with biases, not gated. --skewed: one expert has half of the slots. RMOE_CPU_ISA chooses among our kernels.
#include "rmoe/ops/experts.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/ops/runtime.h"

namespace {

using at::Tensor;
using Clock = std::chrono::steady_clock;

struct Options {
  int64_t threads = 0, rounds = 10, tokens = 2048, width = 384, inner = 384, experts = 16, top_k = 2;
  double dropout = 0;
  bool relu = false, skewed = false, fp32 = false, narrow = false;
};

struct Times {
  double forward = 1e9, both = 1e9;
};

class Layer {
 public:
  explicit Layer(const Options& o) : options_(o) {
    const auto type = o.fp32 ? at::kFloat : at::kBFloat16, stored = o.narrow ? type : at::kFloat;
    const auto matrix = [&](at::IntArrayRef shape) { return (at::randn(shape) * 0.05).to(stored); };
    x_ = at::randn({o.tokens, o.width}).to(type);
    grad_ = at::randn({o.tokens, o.width}).to(type);
    ids_ = std::get<1>(at::rand({o.tokens, o.experts}).topk(o.top_k));
    if (o.skewed) ids_ = at::where(at::rand(ids_.sizes()).lt(0.5), 0, ids_);
    weights_ = at::rand({o.tokens, o.top_k});
    w_.w1_NFD = matrix({o.experts, o.inner, o.width});
    w_.w2_NDF = matrix({o.experts, o.width, o.inner});
    if (o.relu) {
      w_.b1_NF = matrix({o.experts, o.inner});
      w_.b2_ND = matrix({o.experts, o.width});
    } else {
      w_.w3_NFD = matrix({o.experts, o.inner, o.width});
    }
  }

  void time(Times& best) {
    const auto clock = [](auto&& f) {
      const auto start = Clock::now();
      f();
      return std::chrono::duration<double>(Clock::now() - start).count();
    };
    {
      const at::NoGradGuard no_grad;
      best.forward = std::min(best.forward, clock([&] { run(); }));
    }
    if (options_.narrow) return;
    for (Tensor* t : {&x_, &weights_, &w_.w1_NFD, &w_.b1_NF, &w_.w2_NDF, &w_.b2_ND, &w_.w3_NFD}) {
      if (t->defined()) *t = t->detach().requires_grad_();
    }
    best.both = std::min(best.both, clock([&] { run().backward(grad_); }));
  }

  double flops() const {
    return 2.0 * static_cast<double>(options_.tokens * options_.top_k * options_.width * options_.inner) *
           (options_.relu ? 2 : 3);
  }

 private:
  Tensor run() const { return rmoe::experts(x_, ids_, weights_, w_, options_.dropout, {1}); }

  Options options_;
  Tensor x_, grad_, ids_, weights_;
  rmoe::ExpertWeights w_;
};

}  // namespace

int main(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i], name = flag.substr(0, flag.find('='));
    const std::string value = name == flag ? "" : flag.substr(name.size() + 1);
    const auto number = [&](int64_t& to) { to = std::atoll(value.c_str()); };
    if (name == "--threads")
      number(o.threads);
    else if (name == "--rounds")
      number(o.rounds);
    else if (name == "--tokens")
      number(o.tokens);
    else if (name == "--width")
      number(o.width);
    else if (name == "--inner")
      number(o.inner);
    else if (name == "--experts")
      number(o.experts);
    else if (name == "--top-k")
      number(o.top_k);
    else if (name == "--dropout")
      o.dropout = std::atof(value.c_str());
    else if (name == "--relu")
      o.relu = true;
    else if (name == "--skewed")
      o.skewed = true;
    else if (name == "--fp32")
      o.fp32 = true;
    else if (name == "--bf16-weights")
      o.narrow = true;
    else
      return std::fprintf(stderr, "bench_experts: unknown flag %s\n", argv[i]), 2;
  }
  rmoe::configure_runtime(o.threads);
  const auto isa = rmoe::kernels::cpu_isa();
  Layer layer(o);
  Times ours, plain;
  for (int64_t round = 0; round < o.rounds; ++round) {
    rmoe::kernels::set_cpu_isa(isa);
    layer.time(ours);
    rmoe::kernels::set_cpu_isa(rmoe::kernels::Isa::kPlain);
    layer.time(plain);
  }
  const auto line = [&](const char* what, double mine, double formula, double flops) {
    std::printf("%-18s %9.3f ms %7.0f GFLOP/s   plain formula %9.3f ms %7.0f GFLOP/s   ratio %.2f\n", what, mine * 1e3,
                flops / mine * 1e-9, formula * 1e3, flops / formula * 1e-9, formula / mine);
  };
  line("forward", ours.forward, plain.forward, layer.flops());
  if (!o.narrow) line("forward, backward", ours.both, plain.both, 3 * layer.flops());
}
