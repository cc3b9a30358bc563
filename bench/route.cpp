// What the routing of one layer costs: forward and backward of the second MoE layer's pipeline, with and without our
// kernels (RMOE_CPU_ISA=plain's path), taken in turn.
//   bench_route [--threads=N] [--rounds=N] [--tokens=T] [--width=D] [--fp32] [--profile] [MOE FLAGS]
// MOE FLAGS are those of a config's model.moe, as --stage.kind=gru; without any it walks the routers of the paper.
// --profile adds each operator's own time.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include <ATen/record_function.h>
#include <torch/csrc/autograd/autograd.h>

#include "rmoe/base/config.h"
#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/ops/runtime.h"
#include "rmoe/routing/pipeline.h"

namespace {

using at::Tensor;
using Clock = std::chrono::steady_clock;

struct BenchConfig {
  int64_t threads = 0, rounds = 30, tokens = 2048, width = 384;
  bool bf16 = true, profile = false;
};

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Each operator's own time, without that of the operators it calls.
struct Profile {
  struct Frame {
    std::string name;
    Clock::time_point start;
    double inner = 0;
  };
  static std::vector<Frame>& frames() {
    thread_local std::vector<Frame> stack;
    return stack;
  }
  static std::map<std::string, std::pair<double, int64_t>>& times() {
    static std::map<std::string, std::pair<double, int64_t>> map;
    return map;
  }
  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& f) {
    frames().push_back({f.name(), Clock::now()});
    return nullptr;
  }
  static void end(const at::RecordFunction&, at::ObserverContext*) {
    const Frame frame = frames().back();
    frames().pop_back();
    const double time = seconds_since(frame.start);
    auto& [total, calls] = times()[frame.name];
    total += time - frame.inner;
    ++calls;
    if (!frames().empty()) frames().back().inner += time;
  }
};

class Route {
 public:
  Route(const BenchConfig& bench, const std::vector<std::string>& flags) {
    rmoe::bind(moe_, rmoe::parse_flags(flags));
    std::vector<rmoe::ParamScope> scopes;
    for (int i = 0; i < 2; ++i) scopes.emplace_back(table_, "layers." + std::to_string(i));
    pipeline_ = std::make_unique<rmoe::routing::Pipeline>(
        moe_, rmoe::routing::PipelineShape{.model_width = bench.width, .vocab_size = 256, .init_deviation = 0},
        rmoe::ParamScope(table_, "shared"), scopes);
    const auto type = bench.bf16 ? at::kBFloat16 : at::kFloat;
    x_TD_ = at::randn({bench.tokens, bench.width}).to(type).requires_grad_(true);
    context_.training = true;
    context_.tokens_T = at::randint(256, {bench.tokens}, at::kLong);
    const at::NoGradGuard no_grad;
    carry_ = pipeline_->route(0, x_TD_, {}, context_).carry;
    for (Tensor* state : {&carry_.state_TP, &carry_.cell_TP}) {
      if (state->defined()) *state = state->detach().requires_grad_(true);
    }
    const int64_t K = moe_.top_k;
    grad_TK_ = at::randn({bench.tokens, K});
    if (carry_.state_TP.defined()) grad_state_ = at::randn_like(carry_.state_TP);
  }

  // One forward and backward pass, in seconds.
  double operator()() {
    for (rmoe::Param& param : table_.all()) param.value.mutable_grad() = Tensor();
    x_TD_.mutable_grad() = Tensor();
    for (Tensor* state : {&carry_.state_TP, &carry_.cell_TP}) {
      if (state->defined()) state->mutable_grad() = Tensor();
    }
    const auto start = Clock::now();
    auto [routing, carry] = pipeline_->route(1, x_TD_, carry_, context_);
    std::vector<Tensor> roots{routing.weights_TK, pipeline_->loss({routing})}, grads{grad_TK_, Tensor()};
    if (carry.state_TP.defined()) {
      roots.push_back(carry.state_TP);
      grads.push_back(grad_state_);
    }
    torch::autograd::backward(roots, grads);
    return seconds_since(start);
  }

 private:
  rmoe::MoeConfig moe_;
  rmoe::ParamTable table_{1, at::kFloat};
  std::unique_ptr<rmoe::routing::Pipeline> pipeline_;
  Tensor x_TD_, grad_TK_, grad_state_;
  rmoe::routing::RouterCarry carry_;
  rmoe::routing::RouteContext context_;
};

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

void measure(const BenchConfig& bench, const std::vector<std::string>& flags) {
  using rmoe::kernels::Isa;
  Route route(bench, flags);
  const Isa isa = rmoe::kernels::cpu_isa();
  std::vector<double> plain, ours;
  for (int64_t i = 0; i < bench.rounds + 2; ++i) {
    rmoe::kernels::set_cpu_isa(Isa::kPlain);
    const double a = route();
    rmoe::kernels::set_cpu_isa(isa);
    const double b = route();
    if (i < 2) continue;
    plain.push_back(a);
    ours.push_back(b);
  }
  std::string name;
  for (const std::string& flag : flags) name += flag + " ";
  std::printf("%-60s plain %7.3f ms, ours %7.3f ms (medians %.3f, %.3f): %.2fx\n", name.c_str(),
              1e3 * *std::min_element(plain.begin(), plain.end()), 1e3 * *std::min_element(ours.begin(), ours.end()),
              1e3 * median(plain), 1e3 * median(ours), median(plain) / median(ours));
  if (!bench.profile) return;
  Profile::times().clear();
  const auto handle = at::addGlobalCallback(at::RecordFunctionCallback(&Profile::begin, &Profile::end));
  for (int64_t i = 0; i < bench.rounds; ++i) route();
  at::removeCallback(handle);
  std::vector<std::pair<double, std::string>> sorted;
  for (const auto& [op, time] : Profile::times()) {
    char line[200];
    std::snprintf(line, sizeof line, "  %8.3f ms %6.1f calls  %s", 1e3 * time.first / static_cast<double>(bench.rounds),
                  static_cast<double>(time.second) / static_cast<double>(bench.rounds), op.c_str());
    sorted.emplace_back(time.first, line);
  }
  std::sort(sorted.rbegin(), sorted.rend());
  for (const auto& [time, line] : sorted) std::printf("%s\n", line.c_str());
}

}  // namespace

int main(int count, char** words) {
  BenchConfig bench;
  std::vector<std::string> flags;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const auto number = [&](const char* name, int64_t& value) {
      const std::string start = std::string("--") + name + "=";
      if (word.rfind(start, 0) != 0) return false;
      value = std::stoll(word.substr(start.size()));
      return true;
    };
    if (number("threads", bench.threads) || number("rounds", bench.rounds) || number("tokens", bench.tokens) ||
        number("width", bench.width)) {
      continue;
    }
    if (word == "--profile") {
      bench.profile = true;
    } else if (word == "--fp32") {
      bench.bf16 = false;
    } else {
      flags.push_back(word);
    }
  }
  rmoe::configure_runtime(bench.threads);
  std::printf("%s\n", rmoe::kernels::isa_name(rmoe::kernels::cpu_isa()));
  if (!flags.empty()) {
    measure(bench, flags);
    return 0;
  }
  for (const char* stage : {"none", "gru", "rnn", "lstm"}) measure(bench, {std::string("--stage.kind=") + stage});
  measure(bench, {"--stage.kind=gru", "--stage.project=false"});
  measure(bench, {"--stage.kind=gru", "--stage.pass=false"});
  for (const char* router : {"mlp", "xmoe", "cosine"}) {
    for (const char* stage : {"none", "gru"}) {
      measure(bench, {std::string("--router.kind=") + router, std::string("--stage.kind=") + stage});
    }
  }
  return 0;
}
