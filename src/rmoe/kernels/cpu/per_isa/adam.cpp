// Adam and AdamW, and the norm of a gradient, each in one pass over memory: see adam.h.
#include "rmoe/kernels/cpu/adam.h"

#include <vector>

#include "rmoe/kernels/cpu/per_isa/vec.h"

#if !defined(__AVX512BF16__)

namespace rmoe::kernels {
namespace RMOE_ISA {
namespace {

// The tensors, one behind the other, are cut into pieces of this many elements whatever their sizes and the number of
// threads: many small tensors share a piece, a large one has many.
constexpr int64_t kPiece = int64_t{1} << 16;
constexpr int64_t kAhead = 512;  // elements

// Sums of squares in fp64.
#if defined(__AVX512F__)
struct Squares {
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
  void add(Vec x) {
    const __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256(x.v)), b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x.v, 1));
    low = _mm512_fmadd_pd(a, a, low);
    high = _mm512_fmadd_pd(b, b, high);
  }
  double sum() const { return _mm512_reduce_add_pd(_mm512_add_pd(low, high)); }
};
#else
struct Squares {
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  void add(Vec x) {
    const __m256d a = _mm256_cvtps_pd(_mm256_castps256_ps128(x.v)), b = _mm256_cvtps_pd(_mm256_extractf128_ps(x.v, 1));
    low = _mm256_fmadd_pd(a, a, low);
    high = _mm256_fmadd_pd(b, b, high);
  }
  double sum() const {
    double lanes[4];
    _mm256_storeu_pd(lanes, _mm256_add_pd(low, high));
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
  }
};
#endif

// f(piece, tensor, begin, end) for every stretch [begin, end) of a tensor in every piece, pieces in parallel.
template <class F>
void for_each_piece(const AdamTensor* tensors, const std::vector<int64_t>& starts, F&& f) {
  const int64_t total = starts.back(), pieces = (total + kPiece - 1) / kPiece;
#pragma omp parallel for schedule(static)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t first = piece * kPiece, last = std::min(total, first + kPiece);
    auto i = static_cast<size_t>(std::upper_bound(starts.begin(), starts.end(), first) - starts.begin() - 1);
    for (; i + 1 < starts.size() && starts[i] < last; ++i) {
      f(piece, tensors[i], std::max(first, starts[i]) - starts[i], std::min(last, starts[i + 1]) - starts[i]);
    }
  }
}

// Where each tensor begins among all elements, and behind them the end.
std::vector<int64_t> starts_of(const AdamTensor* tensors, int64_t count) {
  std::vector<int64_t> starts(1, 0);
  for (int64_t i = 0; i < count; ++i) starts.push_back(starts.back() + tensors[i].count);
  return starts;
}

void step(const AdamTensor* tensors, int64_t count, const AdamStep& s) {
  const auto constant = [](double value) { return Vec(static_cast<float>(value)); };
  const Vec grad_scale = constant(s.grad_scale), new1 = constant(1 - s.beta1), old2 = constant(s.beta2),
            new2 = constant(1 - s.beta2), root_scale = constant(s.root_scale), eps = constant(s.eps),
            step_size = constant(s.step_size), zero(0.0f);
  for_each_piece(tensors, starts_of(tensors, count), [&](int64_t, const AdamTensor& t, int64_t begin, int64_t end) {
    const Vec decay = constant(t.decays ? s.weight_decay : 0), keep = constant(t.decays ? s.keep : 1);
    const auto update = [&](Vec value, Vec grad, Vec& m, Vec& v) {
      const Vec g = fma(decay, value, grad * grad_scale);
      m = fma(new1, g - m, m);
      v = fma(new2 * g, g, old2 * v);
      return fma(zero - step_size, m / fma(root_scale, sqrt(v), eps), keep * value);
    };
    int64_t i = begin;
    for (; i + Vec::kLanes <= end; i += Vec::kLanes) {
      // Of four streams at once the hardware alone looks too little ahead: 8 % less.
      for (const float* stream : {static_cast<const float*>(t.value), t.grad, static_cast<const float*>(t.exp_avg),
                                  static_cast<const float*>(t.exp_avg_sq)}) {
        prefetch(stream + i + kAhead);
      }
      Vec m = load(t.exp_avg + i), v = load(t.exp_avg_sq + i);
      store(t.value + i, update(load(t.value + i), load(t.grad + i), m, v));
      store(t.exp_avg + i, m);
      store(t.exp_avg_sq + i, v);
    }
    if (const int64_t n = end - i; n > 0) {
      Vec m = load(t.exp_avg + i, n), v = load(t.exp_avg_sq + i, n);
      store(t.value + i, update(load(t.value + i, n), load(t.grad + i, n), m, v), n);
      store(t.exp_avg + i, m, n);
      store(t.exp_avg_sq + i, v, n);
    }
  });
}

double sum_of_squares(const AdamTensor* tensors, int64_t count) {
  const std::vector<int64_t> starts = starts_of(tensors, count);
  std::vector<double> sums(static_cast<size_t>((starts.back() + kPiece - 1) / kPiece), 0.0);
  for_each_piece(tensors, starts, [&](int64_t piece, const AdamTensor& t, int64_t begin, int64_t end) {
    // Four sums side by side hide the latency of an addition.
    Squares parts[4];
    int64_t i = begin;
    for (; i + 4 * Vec::kLanes <= end; i += 4 * Vec::kLanes) {
      for (int j = 0; j < 4; ++j) parts[j].add(load(t.grad + i + j * Vec::kLanes));
    }
    for (; i < end; i += Vec::kLanes) parts[0].add(load(t.grad + i, end - i));
    for (const Squares& part : parts) sums[static_cast<size_t>(piece)] += part.sum();
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace

extern const AdamKernels<RMOE_TYPE> adam;
const AdamKernels<RMOE_TYPE> adam = {&step, &sum_of_squares};

}  // namespace RMOE_ISA
}  // namespace rmoe::kernels

#endif
