// A row at a time: it stays in the first-level cache from the addition to the result.
#include "rmoe/kernels/cpu/norm.h"

#include "rmoe/kernels/cpu/dropout.h"
#include "rmoe/kernels/cpu/per_isa/gemm.h"

namespace rmoe::kernels {
namespace RMOE_ISA {
namespace {

using T = RMOE_TYPE;

constexpr int64_t kFewElements = 16384;  // not worth waking threads up for
constexpr int64_t kRowsOfPart = 64;      // whose weight gradients are summed before those of other rows are added

enum Slot { kBranch, kPartsOfWeight, kPartsOfBias };

void drop(T* out, const T* in, int64_t row, int64_t D, const NormDropout& d) {
  dropout(out, in, D, d.key, static_cast<uint64_t>(row * D), d.probability,
          static_cast<float>(1 / (1 - d.probability)));
}

void forward(const NormForward<T>& f) {
  const int64_t D = f.D;
  const float share = 1.0f / static_cast<float>(D);
#pragma omp parallel for schedule(static) if (f.M * D > kFewElements)
  for (int64_t r = 0; r < f.M; ++r) {
    const T* row = f.x + r * D;
    Vec total(0.0f);
    if (f.branch) {
      const T* branch = f.branch + r * D;
      if (f.dropout.probability > 0) {
        T* kept = scratch<T>(kBranch, D);
        drop(kept, branch, r, D, f.dropout);
        branch = kept;
      }
      T* sums = f.sum + r * D;
      for_each_stretch(D, [&](int64_t i, int64_t n) { store(sums + i, load(row + i, n) + load(branch + i, n), n); });
      row = sums;
    }
    Vec mean(0.0f);
    if (f.mean) {
      for_each_stretch(D, [&](int64_t i, int64_t n) { total = total + load(row + i, n); });
      f.mean[r] = sum(total) * share;
      mean = Vec(f.mean[r]);
      total = Vec(0.0f);
    }
    for_each_stretch(D, [&](int64_t i, int64_t n) {
      const Vec v = first(load(row + i, n) - mean, n, Vec(0.0f));
      total = fma(v, v, total);
    });
    f.rstd[r] = 1.0f / std::sqrt(sum(total) * share + f.eps);
    const Vec rstd(f.rstd[r]);
    T* normed = f.normed + r * D;
    for_each_stretch(D, [&](int64_t i, int64_t n) {
      Vec v = (load(row + i, n) - mean) * rstd * load(f.weight + i, n);
      if (f.bias) v = v + load(f.bias + i, n);
      store(normed + i, v, n);
    });
  }
}

// Row r of dx and dbranch; adds its part of the weights' gradients to dw and db.
void backward_row(const NormBackward<T>& b, int64_t r, float* dw, float* db) {
  const int64_t D = b.D;
  const T *grad = b.grad + r * D, *row = b.sum + r * D;
  const Vec mean(b.mean ? b.mean[r] : 0.0f), rstd(b.rstd[r]);
  Vec along(0.0f), total(0.0f);  // the gradient along the normed row; its sum
  for_each_stretch(D, [&](int64_t i, int64_t n) {
    const Vec g = load(grad + i, n), normed = (load(row + i, n) - mean) * rstd, weighted = g * load(b.weight + i, n);
    store(dw + i, fma(g, normed, load(dw + i, n)), n);
    if (db) store(db + i, load(db + i, n) + g, n);
    along = fma(weighted, normed, along);
    total = total + weighted;
  });
  const float share = 1.0f / static_cast<float>(D);
  const Vec slope(sum(along) * share), offset(b.mean ? sum(total) * share : 0.0f);
  T* dx = b.dx + r * D;
  for_each_stretch(D, [&](int64_t i, int64_t n) {
    const Vec normed = (load(row + i, n) - mean) * rstd, weighted = load(grad + i, n) * load(b.weight + i, n);
    Vec d = (weighted - offset - normed * slope) * rstd;
    if (b.grad_sum) d = d + load(b.grad_sum + r * D + i, n);
    store(dx + i, d, n);
  });
  if (b.dbranch) drop(b.dbranch + r * D, dx, r, D, b.dropout);
}

void backward(const NormBackward<T>& b) {
  const int64_t D = b.D, parts = (b.M + kRowsOfPart - 1) / kRowsOfPart;
  float* dw = scratch<float>(kPartsOfWeight, std::max<int64_t>(parts, 1) * D);
  float* db = b.db ? scratch<float>(kPartsOfBias, std::max<int64_t>(parts, 1) * D) : nullptr;
#pragma omp parallel if (b.M * D > kFewElements)
  {
#pragma omp for schedule(static)
    for (int64_t part = 0; part < parts; ++part) {
      std::memset(dw + part * D, 0, static_cast<size_t>(D) * sizeof(float));
      if (db) std::memset(db + part * D, 0, static_cast<size_t>(D) * sizeof(float));
      for (int64_t r = part * kRowsOfPart; r < std::min(b.M, (part + 1) * kRowsOfPart); ++r) {
        backward_row(b, r, dw + part * D, db ? db + part * D : nullptr);
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < D; i += Vec::kLanes) {
      const int64_t n = std::min(Vec::kLanes, D - i);
      Vec weight(0.0f), bias(0.0f);
      for (int64_t part = 0; part < parts; ++part) {
        weight = weight + load(dw + part * D + i, n);
        if (db) bias = bias + load(db + part * D + i, n);
      }
      store(b.dw + i, weight, n);
      if (db) store(b.db + i, bias, n);
    }
  }
}

}  // namespace

extern const NormKernels<T> norm;
const NormKernels<T> norm = {&forward, &backward};

}  // namespace RMOE_ISA
}  // namespace rmoe::kernels
