// Attention: our kernels against the plain formula, taken in turn, forward alone and with backward.
//   bench_attention span|causal [--threads=N] [--rounds=N] [--batch=B] [--heads=H] [--kv-heads=H] [--width=C]
//                   [--queries=M] [--keys=S] [--dropout=P] [--fp32]
// span: queries see --keys positions before them; the formula is our reference in ATen. causal: of --keys keys, the
// queries are the last (fewer: a cache, forward only); the formula is torch's scaled dot product behind a composed
// rotary embedding. RMOE_CPU_ISA chooses among our kernels.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/ops/causal_attention.h"
#include "rmoe/ops/runtime.h"
#include "rmoe/ops/span_attention.h"

namespace {

using at::Tensor;
using Clock = std::chrono::steady_clock;

struct Options {
  bool causal = false, fp32 = false;
  int64_t threads = 0, rounds = 10, batch = 4, heads = 0, kv_heads = 0, width = 0, queries = 512, keys = 512;
  double dropout = 0.1;
};

struct Workload {
  std::vector<Tensor> leaves;
  Tensor grad;
  std::function<Tensor(const std::vector<Tensor>&)> ours, plain;
  double multiplications;
  bool backward = true;
};

Tensor formula(const Tensor& q, const Tensor& k, const Tensor& v, const rmoe::RotaryAngles& angles) {
  const auto heads = [](const Tensor& t) { return t.transpose(1, 2); };
  const auto turned = [&](const Tensor& x) {
    const Tensor cos = at::cat({angles.cos, angles.cos}, 1).unsqueeze(1), sin = at::cat({angles.sin, angles.sin}, 1);
    const auto half = x.to(at::kFloat).chunk(2, -1);
    return (x * cos + at::cat({-half[1], half[0]}, -1) * sin.unsqueeze(1)).to(x.scalar_type());
  };
  const Tensor turned_q = angles.cos.defined() ? turned(q) : q, turned_k = angles.cos.defined() ? turned(k) : k;
  const int64_t group = q.size(2) / k.size(2);
  const auto repeated = [&](const Tensor& t) { return group == 1 ? heads(t) : heads(t).repeat_interleave(group, 1); };
  const Tensor out = at::scaled_dot_product_attention(heads(turned_q), repeated(turned_k), repeated(v), std::nullopt,
                                                      0.0, q.size(1) == k.size(1) && q.size(1) > 1);
  return out.transpose(1, 2).contiguous();
}

Workload causal(const Options& o, at::ScalarType type) {
  const int64_t M = o.queries, S = o.keys;
  const auto of_heads = [&](int64_t heads, int64_t positions) {
    return at::randn({o.batch, positions, heads, o.width}).to(type);
  };
  Workload w;
  w.leaves = {of_heads(o.heads, M), of_heads(o.kv_heads, S), of_heads(o.kv_heads, S)};
  w.grad = of_heads(o.heads, M);
  rmoe::RotaryAngles angles;
  if (M == S) angles = rmoe::rotary_angles(0, S, o.width, 10000, at::kFloat);
  if (M < S) {
    // As in a cache.
    for (size_t i : {1, 2}) w.leaves[i] = w.leaves[i].transpose(1, 2).contiguous().transpose(1, 2);
  }
  w.ours = [=](const auto& t) { return rmoe::causal_attention(t[0], t[1], t[2], angles); };
  w.plain = [=](const auto& t) { return formula(t[0], t[1], t[2], angles); };
  w.multiplications = static_cast<double>(o.batch * o.heads * o.width * M * (2 * S - M));
  w.backward = M == S;
  return w;
}

Workload span(const Options& o, at::ScalarType type) {
  const int64_t M = o.queries, S = o.keys;
  const auto of_heads = [&](int64_t positions) {
    return at::randn({o.batch, positions, o.heads, o.width}).to(type).transpose(1, 2);
  };
  Workload w;
  w.leaves = {of_heads(M), of_heads(S + M), of_heads(S + M), at::randn({o.width, S})};
  w.grad = of_heads(M);
  w.ours = [o](const auto& t) { return rmoe::span_attention(t[0], t[1], t[2], t[3], o.dropout, {1}); };
  w.plain = w.ours;
  w.multiplications = static_cast<double>(o.batch * o.heads * o.width * M * S) * 3;
  w.backward = M > 1;
  return w;
}

double seconds(const std::function<void()>& f) {
  const auto start = Clock::now();
  f();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void time(const Workload& w, bool ours, double& forward, double& both) {
  const auto& f = ours ? w.ours : w.plain;
  {
    const at::NoGradGuard no_grad;
    forward = std::min(forward, seconds([&] { f(w.leaves); }));
  }
  if (!w.backward) return;
  std::vector<Tensor> leaves;
  for (const Tensor& t : w.leaves) leaves.push_back(t.detach().requires_grad_());
  both = std::min(both, seconds([&] { f(leaves).backward(w.grad); }));
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i], name = flag.substr(0, flag.find('='));
    const std::string value = name == flag ? "" : flag.substr(name.size() + 1);
    const auto number = [&](int64_t& to) { to = std::atoll(value.c_str()); };
    if (name == "causal" || name == "span")
      o.causal = name == "causal";
    else if (name == "--threads")
      number(o.threads);
    else if (name == "--rounds")
      number(o.rounds);
    else if (name == "--batch")
      number(o.batch);
    else if (name == "--heads")
      number(o.heads);
    else if (name == "--kv-heads")
      number(o.kv_heads);
    else if (name == "--width")
      number(o.width);
    else if (name == "--queries")
      number(o.queries);
    else if (name == "--keys")
      number(o.keys);
    else if (name == "--dropout")
      o.dropout = std::atof(value.c_str());
    else if (name == "--fp32")
      o.fp32 = true;
    else
      return std::fprintf(stderr, "bench_attention: unknown flag %s\n", argv[i]), 2;
  }
  if (o.heads == 0) o.heads = o.causal ? 6 : 8;
  if (o.kv_heads == 0) o.kv_heads = o.heads;
  if (o.width == 0) o.width = o.causal ? 64 : 44;
  rmoe::configure_runtime(o.threads);
  const auto isa = rmoe::kernels::cpu_isa();
  const auto type = o.fp32 ? at::kFloat : at::kBFloat16;
  const Workload w = o.causal ? causal(o, type) : span(o, type);
  double ours = 1e9, plain = 1e9, ours_both = 1e9, plain_both = 1e9;
  for (int64_t round = 0; round < o.rounds; ++round) {
    rmoe::kernels::set_cpu_isa(isa);
    time(w, true, ours, ours_both);
    rmoe::kernels::set_cpu_isa(rmoe::kernels::Isa::kPlain);
    time(w, false, plain, plain_both);
  }
  const auto line = [&](const char* what, double mine, double formula, double share) {
    const double flops = 2 * w.multiplications * share;
    std::printf("%-18s %9.3f ms %7.0f GFLOP/s   plain formula %9.3f ms %7.0f GFLOP/s   ratio %.2f\n", what, mine * 1e3,
                flops / mine * 1e-9, formula * 1e3, flops / formula * 1e-9, formula / mine);
  };
  line("forward", ours, plain, 1);
  if (w.backward) line("forward, backward", ours_both, plain_both, o.causal ? 3.5 : 11.0 / 3);
}
