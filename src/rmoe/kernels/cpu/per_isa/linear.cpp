// Linear layers and their gradients: B packed once and shared, C converted while it is in the cache.
#include "rmoe/kernels/cpu/linear.h"

#include <omp.h>

#include "rmoe/kernels/cpu/per_isa/gemm.h"

namespace rmoe::kernels {
namespace RMOE_ISA {
namespace {

using T = RMOE_TYPE;

constexpr bool kNarrow = std::is_same_v<T, Bf16>;
// A block of C stays in the second-level cache beside the packed columns that it is multiplied with.
constexpr int64_t kRowBlock = kNarrow ? 64 : kFp32InTiles ? 256 : 5 * gemm::kRows;
constexpr int64_t kColumnBlock = kNarrow ? 384 : kFp32InTiles ? 512 : 128;
constexpr int64_t kDepthBlock = 256;  // rows of the batch that a weight gradient sums at once

enum Slot { kRowsOfA, kBlockOfC, kSharedB };

// Rows of `a` [rows, k] as a product reads them: in place, or copied with zeros behind.
const T* padded_rows(const T* a, int64_t rows, int64_t k, int64_t* stride) {
  *stride = padded_depth<T>(k);
  if (*stride == k) return a;
  T* copy = scratch<T>(kRowsOfA, rows * *stride);
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(copy + i * *stride, a + i * k, static_cast<size_t>(k) * sizeof(T));
    std::memset(copy + i * *stride + k, 0, static_cast<size_t>(*stride - k) * sizeof(T));
  }
  return copy;
}

// Columns [first, first + count) of out [M, N] = a [M, K] B + bias, where pack(packed, j, n) packs columns [j, j + n)
// of B.
template <class Pack>
void product_columns(T* out, const T* a, const float* bias, int64_t M, int64_t N, int64_t K, int64_t first,
                     int64_t count, Pack&& pack) {
  constexpr int64_t kPieceColumns = 64, kPieceRows = kNarrow ? 128 : 512;
  T* packed = scratch<T>(kSharedB, packed_size<T>(K, count));
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t j = 0; j < count; j += kPieceColumns) {
      pack(packed + packed_size<T>(K, j), first + j, std::min(kPieceColumns, count - j));
    }
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (int64_t piece = 0; piece < M; piece += kPieceRows) {
      for (int64_t j = 0; j < count; j += kColumnBlock) {
        const int64_t n = std::min(kColumnBlock, count - j), ldc = round_up(n, kPanel);
        float* c = scratch<float>(kBlockOfC, kRowBlock * ldc);
        const int64_t end = std::min(M, piece + kPieceRows);
        for (int64_t i = piece; i < end; i += kRowBlock) {
          const int64_t rows = std::min(kRowBlock, end - i);
          int64_t stride;
          const T* block_of_a = padded_rows(a + i * K, rows, K, &stride);
          multiply(c, ldc, block_of_a, stride, packed + packed_size<T>(K, j), rows, n, K);
          for (int64_t r = 0; r < rows; ++r) {
            for_each_stretch(n, [&](int64_t x, int64_t lanes) {
              Vec value = load(c + r * ldc + x);
              if (bias) value = value + load(bias + first + j + x, lanes);
              store(out + (i + r) * N + first + j + x, value, lanes);
            });
          }
        }
      }
    }
  }
}

template <class Pack>
void product(T* out, const T* a, const float* bias, int64_t M, int64_t N, int64_t K, Pack&& pack) {
  // The packed columns stay in memory after the call: not as many as an output layer has.
  constexpr int64_t kMostBytes = int64_t{32} << 20;
  const int64_t block_bytes = packed_size<T>(K, kColumnBlock) * static_cast<int64_t>(sizeof(T));
  const int64_t most = kColumnBlock * std::max<int64_t>(1, kMostBytes / std::max<int64_t>(1, block_bytes));
  for (int64_t first = 0; first < N; first += most) {
    product_columns(out, a, bias, M, N, K, first, std::min(most, N - first), pack);
  }
}

// At most kFewRows rows: R.
template <int64_t R, class W>
void few_rows(T* y, const T* x, const W* w, const float* b, int64_t N, int64_t K) {
  constexpr int64_t kPiece = 64;
#pragma omp parallel for schedule(static) if (N * K > 32768)
  for (int64_t j = 0; j < N; j += kPiece) {
    const int64_t end = std::min(N, j + kPiece);
    float dots[R * kPiece];
    few_dots<R>(dots, kPiece, x, w, j, end, K);
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t i = j; i < end; ++i) y[r * N + i] = from_float<T>(dots[r * kPiece + i - j] + (b ? b[i] : 0.0f));
    }
  }
}

void forward(T* y, const T* x, Weight<T> w, const float* b, int64_t M, int64_t N, int64_t K) {
  with_weight(w, [&](const auto* weight) {
    if (M == 1) return few_rows<1>(y, x, weight, b, N, K);
    if (M == 2) return few_rows<2>(y, x, weight, b, N, K);
    if (M == 3) return few_rows<3>(y, x, weight, b, N, K);
    if (M == kFewRows) return few_rows<kFewRows>(y, x, weight, b, N, K);
    product(y, x, b, M, N, K, [&](T* packed, int64_t j, int64_t n) {
      pack_nk(packed, [&](int64_t i) { return weight + (j + i) * K; }, n, K);
    });
  });
}

void input_gradient(T* dx, const T* dy, Weight<T> w, int64_t M, int64_t N, int64_t K) {
  with_weight(w, [&](const auto* weight) {
    product(dx, dy, nullptr, M, K, N, [&](T* packed, int64_t j, int64_t n) {
      pack_kn(packed, [&](int64_t i) { return weight + i * K + j; }, n, N);
    });
  });
}

void weight_gradient(float* dw, float* db, const T* dy, const T* x, int64_t M, int64_t N, int64_t K) {
  const int64_t depth_blocks = (M + kDepthBlock - 1) / kDepthBlock, block_size = packed_size<T>(kDepthBlock, K);
  T* packed = scratch<T>(kSharedB, depth_blocks * block_size);
  // Rows of dw at once: many, since each passes over the whole packed x; and as many for every thread.
  constexpr int64_t kMostRows = 192, kUnit = 16;
  const int64_t threads = omp_get_max_threads(),
                turns = std::max<int64_t>(1, (N + threads * kMostRows - 1) / (threads * kMostRows));
  const int64_t rows_of_dw = std::max(kUnit, round_up((N + threads * turns - 1) / (threads * turns), kUnit));
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t block = 0; block < depth_blocks; ++block) {
      const int64_t m = block * kDepthBlock;
      pack_kn(packed + block * block_size, [&](int64_t i) { return x + (m + i) * K; }, K, std::min(kDepthBlock, M - m));
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t j = 0; j < N; j += rows_of_dw) {
      const int64_t n = std::min(rows_of_dw, N - j), ldc = round_up(K, kPanel);
      float* c = ldc == K ? dw + j * K : scratch<float>(kBlockOfC, n * ldc);
      for (int64_t block = 0; block < depth_blocks; ++block) {
        const int64_t m = block * kDepthBlock, depth = std::min(kDepthBlock, M - m);
        T* a = scratch<T>(kRowsOfA, n * padded_depth<T>(depth));
        transpose_rows(a, [&](int64_t i) { return dy + (m + i) * N + j; }, n, depth);
        multiply(c, ldc, a, padded_depth<T>(depth), packed + block * block_size, n, K, depth, block > 0);
      }
      if (M == 0) std::memset(c, 0, static_cast<size_t>(n * ldc) * sizeof(float));
      for (int64_t r = 0; ldc != K && r < n; ++r) {
        std::memcpy(dw + (j + r) * K, c + r * ldc, static_cast<size_t>(K) * sizeof(float));
      }
      if (!db) continue;
      for_each_stretch(n, [&](int64_t at, int64_t count) {
        // Sums of sums: one long chain would lose digits.
        constexpr int64_t kChain = 32;
        Vec total(0.0f);
        for (int64_t m = 0; m < M; m += kChain) {
          Vec part(0.0f);
          for (int64_t i = m; i < std::min(M, m + kChain); ++i) part = part + load(dy + i * N + j + at, count);
          total = total + part;
        }
        store(db + j + at, total, count);
      });
    }
  }
}

}  // namespace

extern const LinearKernels<T> linear;
const LinearKernels<T> linear = {&forward, &input_gradient, &weight_gradient};

}  // namespace RMOE_ISA
}  // namespace rmoe::kernels
