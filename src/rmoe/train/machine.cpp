#include "rmoe/train/machine.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>

#include "rmoe/base/process.h"
#include "rmoe/kernels/cpu/linear.h"
#include "rmoe/kernels/cpu/peak.h"
#include "rmoe/ops/device.h"

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

// The size of the largest product of square matrices that takes a few hundredths of a second at most.
int64_t product_size(double expected_rate) {
  int64_t n = 512;
  while (n < 4096 && 2.0 * static_cast<double>(8 * n * n * n) / expected_rate < 0.02) n *= 2;
  return n;
}

// Products of square matrices of T: torch's, and our kernels' where they run on this CPU.
template <class T>
double product_rate(at::ScalarType dtype, double expected_rate) {
  const int64_t n = product_size(expected_rate);
  const Tensor a = at::ones({n, n}, dtype), b = at::ones({n, n}, dtype);
  Tensor out = at::empty({n, n}, dtype);
  const double operations = 2.0 * static_cast<double>(n * n * n);
  const double torch_rate = best_rate(0.08, [&] {
    at::mm_out(out, a, b);
    return operations;
  });
  const kernels::LinearKernels<T>* ours = kernels::linear_kernels<T>();
  if (!ours) return torch_rate;
  const auto data = [](const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); };
  return std::max(torch_rate, best_rate(0.08, [&] {
                    ours->forward(data(out), data(a), {.master = nullptr, .narrow = data(b)}, nullptr, n, n, n);
                    return operations;
                  }));
}

}  // namespace

double measure_peak_flops(Precision precision) {
  const at::NoGradGuard no_grad;
  const double fp32 = loop_rate(kernels::fp32_peak_loop());
  if (precision == Precision::kFp32) return std::max(fp32, product_rate<float>(at::kFloat, fp32));
  const kernels::PeakLoop loop = kernels::bf16_peak_loop();
  const double bf16 = loop.run ? loop_rate(loop) : 0;
  return std::max(bf16, product_rate<kernels::Bf16>(at::kBFloat16, std::max(bf16, fp32)));
}

double measured_peak_flops(Precision precision) {
  static std::mutex mutex;
  static std::map<std::pair<Precision, int>, double> known;
  const std::lock_guard lock(mutex);
  double& rate = known[{precision, at::get_num_threads()}];
  if (rate == 0) rate = measure_peak_flops(precision);
  return rate;
}

double measured_peak_flops(Precision precision, at::Device device) {
  return device.is_cpu() ? measured_peak_flops(precision) : measure_peak_flops(precision, device);
}

double measure_peak_flops(Precision precision, at::Device device) {
  if (device.is_cpu()) return measure_peak_flops(precision);
  const at::NoGradGuard no_grad;
  const auto dtype = precision == Precision::kBf16 ? at::kBFloat16 : at::kFloat;
  double best = 0;
  // Until they take long enough for a device to be busy.
  for (int64_t n = 512; n <= 8192; n *= 2) {
    const Tensor a = at::ones({n, n}, at::TensorOptions(device).dtype(dtype));
    Tensor out = at::empty_like(a);
    const double operations = 2.0 * static_cast<double>(n * n * n);
    best = std::max(best, best_rate(0.05, [&] {
                      at::mm_out(out, a, a);
                      synchronize(device);
                      return operations;
                    }));
    if (operations / best > 2e-3) break;
  }
  return best;
}

MemoryRate measured_memory_rate() {
  constexpr int64_t kLeast = int64_t{64} << 20, kMost = int64_t{1} << 30;
  int64_t total = std::clamp<int64_t>(4 * std::max<int64_t>(0, ::sysconf(_SC_LEVEL3_CACHE_SIZE)), kLeast, kMost);
  if (const int64_t memory = memory_total_bytes(); memory > 0) total = std::min(total, std::max(kLeast, memory / 16));
  const int64_t n = total / 3 / 64 * 16;  // floats per array, whole cache lines
  const Tensor a = at::zeros({n}, at::kFloat), b = at::ones({n}, at::kFloat), c = at::ones({n}, at::kFloat);
  float* a_n = a.mutable_data_ptr<float>();
  const float *b_n = b.const_data_ptr<float>(), *c_n = c.const_data_ptr<float>();
  constexpr int64_t kGrain = 1 << 16;
  MemoryRate rate;
  rate.triad = best_rate(0.2, [&] {
    at::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
      kernels::triad(a_n + begin, b_n + begin, c_n + begin, end - begin);
    });
    return 3.0 * sizeof(float) * static_cast<double>(n);
  });
  const auto* words = static_cast<const uint64_t*>(b.const_data_ptr());
  rate.read = best_rate(0.2, [&] {
    at::parallel_for(0, n / 2, kGrain, [&](int64_t begin, int64_t end) {
      [[maybe_unused]] const volatile uint64_t sum = kernels::read_all(words + begin, end - begin);
    });
    return static_cast<double>(sizeof(float)) * static_cast<double>(n);
  });
  return rate;
}

MemoryRate measured_memory_rate(at::Device device) {
  if (device.is_cpu()) return measured_memory_rate();
  constexpr int64_t kFloats = int64_t{1} << 24;
  const at::NoGradGuard no_grad;
  const Tensor b = at::ones({kFloats}, at::TensorOptions(device).dtype(at::kFloat)), c = at::ones_like(b);
  Tensor a = at::empty_like(b), sum;
  MemoryRate rate;
  rate.triad = best_rate(0.1, [&] {
    at::add_out(a, b, c, 0.5);
    synchronize(device);
    return 3.0 * sizeof(float) * static_cast<double>(kFloats);
  });
  rate.read = best_rate(0.1, [&] {
    sum = b.sum();
    synchronize(device);
    return static_cast<double>(sizeof(float)) * static_cast<double>(kFloats);
  });
  return rate;
}

}  // namespace rmoe
