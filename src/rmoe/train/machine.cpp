#include "rmoe/train/machine.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>

#include "rmoe/kernels/cpu/peak.h"
#include "rmoe/ops/torch.h"

namespace rmoe {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// The best rate of `work`, which returns its operations, in repetitions for this long; at least two.
template <class Work>
double best_rate(double seconds, const Work& work) {
  const Clock::time_point start = Clock::now();
  double best = 0;
  for (int repetition = 0; repetition < 2 || seconds_since(start) < seconds; ++repetition) {
    const Clock::time_point begin = Clock::now();
    const double operations = work();
    best = std::max(best, operations / seconds_since(begin));
  }
  return best;
}

// A loop on every thread at once, each repetition a few milliseconds.
double loop_rate(kernels::PeakLoop loop) {
  const int64_t threads = at::get_num_threads();
  const auto all = [&](int64_t rounds) {
    std::vector<double> operations(static_cast<size_t>(threads));
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) operations[static_cast<size_t>(i)] = loop.run(rounds);
    });
    double sum = 0;
    for (const double o : operations) sum += o;
    return sum;
  };
  int64_t rounds = 1024;
  for (double taken = 0; taken < 0.002; rounds *= 2) {
    const Clock::time_point begin = Clock::now();
    all(rounds);
    taken = seconds_since(begin);
  }
  return best_rate(0.04, [&] { return all(rounds); });
}

// The largest product of square matrices that takes a few hundredths of a second at most.
double mm_rate(at::ScalarType dtype, double expected_rate) {
  int64_t n = 512;
  while (n < 4096 && 2.0 * static_cast<double>(8 * n * n * n) / expected_rate < 0.02) n *= 2;
  const Tensor a = at::ones({n, n}, dtype), b = at::ones({n, n}, dtype);
  Tensor out = at::empty({n, n}, dtype);
  return best_rate(0.08, [&] {
    at::mm_out(out, a, b);
    return 2.0 * static_cast<double>(n * n * n);
  });
}

double measure(Precision precision) {
  const at::NoGradGuard no_grad;
  const double fp32 = loop_rate(kernels::fp32_peak_loop());
  if (precision == Precision::kFp32) return std::max(fp32, mm_rate(at::kFloat, fp32));
  const kernels::PeakLoop loop = kernels::bf16_peak_loop();
  const double bf16 = loop.run ? loop_rate(loop) : 0;
  return std::max(bf16, mm_rate(at::kBFloat16, std::max(bf16, fp32)));
}

}  // namespace

double measured_peak_flops(Precision precision) {
  static std::mutex mutex;
  static std::map<std::pair<Precision, int>, double> known;
  const std::lock_guard lock(mutex);
  double& rate = known[{precision, at::get_num_threads()}];
  if (rate == 0) rate = measure(precision);
  return rate;
}

}  // namespace rmoe
