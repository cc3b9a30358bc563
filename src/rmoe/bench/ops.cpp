// The measurement of single ops: see op.h for what they are.
#include <algorithm>
#include <chrono>
#include <cmath>

#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/autograd/autograd.h>

#include "rmoe/base/error.h"
#include "rmoe/base/log.h"
#include "rmoe/base/nearest.h"
#include "rmoe/base/process.h"
#include "rmoe/bench/machine.h"
#include "rmoe/bench/op.h"
#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/ops/runtime.h"

namespace rmoe::bench {
namespace {

using Clock = std::chrono::steady_clock;

std::vector<std::pair<std::string, Op>>& table() {
  static std::vector<std::pair<std::string, Op>> all;
  return all;
}

// Goes on with this instruction set, and with the one before at the end.
class WithIsa {
 public:
  explicit WithIsa(kernels::Isa isa) : before_(kernels::cpu_isa()) { kernels::set_cpu_isa(isa); }
  ~WithIsa() { kernels::set_cpu_isa(before_); }
  WithIsa(const WithIsa&) = delete;
  WithIsa& operator=(const WithIsa&) = delete;

 private:
  kernels::Isa before_;
};

template <class F>
double seconds_of(F&& f) {
  const Clock::time_point start = Clock::now();
  f();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double bytes_of(const std::vector<Tensor>& tensors) {
  double sum = 0;
  for (const Tensor& t : tensors) {
    if (t.defined()) sum += static_cast<double>(t.nbytes());
  }
  return sum;
}

// One of the two that are compared: a call, with or without gradients, with or without kernels.
class Variant {
 public:
  Variant(const OpWork& work, bool plain, bool backward)
      : run_(plain && work.plain ? work.plain : work.run),
        isa_(plain ? kernels::Isa::kPlain : kernels::cpu_isa()),
        backward_(backward) {
    for (const Tensor& t : work.inputs) {
      if (t.requires_grad()) leaves_.push_back(t);
    }
  }

  // Once, for the sizes of what comes out: bytes of results and gradients.
  double warm_up() {
    const WithIsa with(isa_);
    const at::AutoGradMode grad(backward_);
    const Tensor out = run_();
    double bytes = bytes_of({out});
    if (backward_) {
      grad_ = at::ones_like(out);
      bytes += bytes_of(torch::autograd::grad({out}, leaves_, {grad_})) + bytes_of({grad_});
    }
    return bytes;
  }

  // As many calls as fit, each timed.
  std::vector<double> round(double seconds) {
    const WithIsa with(isa_);
    const at::AutoGradMode grad(backward_);
    std::vector<double> times;
    for (double sum = 0; sum < seconds && times.size() < 10000; sum += times.back()) {
      times.push_back(seconds_of([&] { call(); }));
    }
    return times;
  }

 private:
  void call() const {
    const Tensor out = run_();
    if (backward_) torch::autograd::grad({out}, leaves_, {grad_});
  }

  std::function<Tensor()> run_;
  kernels::Isa isa_;
  bool backward_;
  std::vector<Tensor> leaves_;
  Tensor grad_;
};

// Goes on for `tries` times as many rounds while the ratio is below `enough`: somebody else may have had the CPU.
OpRow measure(const OpWork& work, bool backward, const BenchOptions& options, double enough, int64_t tries) {
  Variant ours(work, false, backward), plain(work, true, backward);
  OpRow row;
  row.backward = backward;
  row.flops = work.flops + (backward ? work.backward_flops : 0);
  // Backward reads the inputs once more.
  row.bytes = bytes_of(work.inputs) * (backward ? 2 : 1) + ours.warm_up();
  plain.warm_up();
  const double length = options.quick ? 0.01 : 0.05;
  std::vector<double> our_times, plain_times, faults;
  const int64_t rounds = options.number_of_rounds();
  for (int64_t round = 0; round < rounds || (round < tries * rounds && row.ratio() < enough); ++round) {
    for (const size_t turn : turns(round, 2)) {
      const int64_t before = page_faults();
      const std::vector<double> times = (turn == 0 ? ours : plain).round(length);
      auto& all = turn == 0 ? our_times : plain_times;
      all.insert(all.end(), times.begin(), times.end());
      if (turn == 0) faults.push_back(static_cast<double>(page_faults() - before) / static_cast<double>(times.size()));
    }
    row.ours = times_of(our_times);
    row.plain = times_of(plain_times);
  }
  row.page_faults = times_of(faults).median;
  return row;
}

Precision precision_of(at::ScalarType dtype) { return dtype == at::kBFloat16 ? Precision::kBf16 : Precision::kFp32; }

std::vector<const std::pair<std::string, Op>*> chosen_ops(const std::string& name) {
  std::vector<const std::pair<std::string, Op>*> chosen;
  std::vector<std::string> known{"all"};
  for (const auto& op : ops()) {
    known.push_back(op.first);
    if (name == "all" || name == op.first) chosen.push_back(&op);
  }
  if (chosen.empty()) {
    throw Error(Exit::kBadInput, str("bench op: unknown op '", name, "'"), help_for_unknown(name, known));
  }
  return chosen;
}

void check(const OpRow& row, OpReport& report) {
  // Without kernels both are the same code.
  if (kernels::cpu_isa() == kernels::Isa::kPlain || row.ratio() >= row.floor / 2) return;
  report.failures.push_back(str(row.op, " ", row.name, ", ", enum_name(row.dtype),
                                row.backward ? ", with gradients" : "", ": ", std::round(100 * row.ratio()) / 100,
                                " times as fast as the plain formula, expected ", row.floor, " and at least half"));
}

}  // namespace

const std::vector<std::pair<std::string, Op>>& ops() {
  auto& all = table();
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  return all;
}

bool register_op(const char* name, Op op) {
  table().emplace_back(name, std::move(op));
  return true;
}

Tensor random(at::IntArrayRef sizes, at::ScalarType dtype) {
  auto generator = at::detail::createCPUGenerator(1);
  return at::randn(sizes, generator, at::TensorOptions().dtype(at::kFloat)).to(dtype);
}

Tensor random_leaf(at::IntArrayRef sizes, at::ScalarType dtype) { return random(sizes, dtype).requires_grad_(); }

OpReport bench_op(const OpCommand& command) {
  const auto chosen = chosen_ops(command.op);
  configure_runtime(command.options.threads);
  OpReport report;
  Progress progress;
  for (const auto* entry : chosen) {
    const auto& [name, op] = *entry;
    for (const OpCase& op_case : op.cases) {
      if ((name + " " + op_case.name).find(command.filter) == std::string::npos) continue;
      for (const at::ScalarType dtype : op.dtypes) {
        if (command.dtype.value_or(precision_of(dtype)) != precision_of(dtype)) continue;
        if (report.machine.threads == 0) report.machine = measure_machine();
        if (progress.due()) progress.update(str("bench op ", name, " ", op_case.name));
        const OpWork work = op_case.make(dtype);
        const bool leaves = std::ranges::any_of(work.inputs, [](const Tensor& t) { return t.requires_grad(); });
        for (const bool backward : {false, true}) {
          if (backward && !leaves) continue;
          OpRow row = measure(work, backward, command.options, op.floor / 2, command.check ? 4 : 1);
          row.op = name;
          row.name = op_case.name;
          row.dtype = precision_of(dtype);
          row.floor = op.floor;
          if (command.check) check(row, report);
          report.rows.push_back(std::move(row));
        }
      }
    }
  }
  if (report.rows.empty()) {
    throw Error(Exit::kBadInput,
                str("bench op: no case of '", command.op, "' contains '", command.filter, "'",
                    command.dtype ? str(" in ", enum_name(*command.dtype)) : std::string()),
                "without --filter and --dtype all cases are measured");
  }
  measure_again(report.machine);
  for (OpRow& row : report.rows) row.peak_share = row.flops / row.ours.best / report.machine.flops(row.dtype);
  return report;
}

}  // namespace rmoe::bench
