// Products of fp32 matrices, C (+)= A B, in one of two ways that the type T stands for.
//   float  multiply-adds.
//   Bf16   tiles of AMX. An fp32 number is split into three bf16 terms, x = x0 + x1 + x2 within 2^-26 |x|, and the
//          products of terms that reach fp32's precision, x_s y_t with s + t <= 2, are summed in fp32. What is bf16
//          from the start has one term.
// Included by kernel files only.
#pragma once

#include "rmoe/kernels/cpu/per_isa/gemm.h"

namespace rmoe::kernels {
namespace RMOE_ISA {

template <class T>
constexpr int kTerms = 1;
template <>
inline constexpr int kTerms<Bf16> = 3;

// A [m, k] as a product reads it. A[i][k] is the sum over terms of data[term * plane + i * ld + k * step].
template <class T>
struct Left {
  const T* data = nullptr;
  int64_t ld = 0, plane = 0, step = 1;
  int terms = 1;

  Left columns(int64_t first) const {
    Left part = *this;
    part.data += first * step;
    return part;
  }
};

// B [k, n], packed, one plane per term.
template <class T>
struct Right {
  const T* data = nullptr;
  int64_t plane = 0;
  int terms = 1;
  int64_t depth = 0;  // padded

  // From column `first` on, a multiple of kPanel.
  Right columns(int64_t first) const {
    Right part = *this;
    part.data += first * depth;
    return part;
  }
};

#if defined(__AVX512BF16__)
// Rows of fp32 become `terms` planes of bf16 rows; zeros behind k up to the padded depth.
inline void split_rows(Bf16* out, int64_t plane, int64_t ld, const float* rows, int64_t rows_ld, int64_t m, int64_t k,
                       int terms) {
  const int64_t depth = padded_depth<Bf16>(k);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < depth; j += Vec::kLanes) {
      Vec rest = load(rows + i * rows_ld + std::min(j, k), k - j);
      Bf16* to = out + i * ld + j;
      for (int term = 0; term < terms; ++term, to += plane) {
        const __m256i bits = narrow(rest);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
        rest = rest - widen(bits);
      }
    }
  }
}
#endif

// Elements that left() may need for [m, k].
template <class T>
constexpr int64_t left_size(int64_t m, int64_t k) {
  return kTerms<T> * m * (padded_depth<T>(k) + 32);  // rows not a power of two apart, which would share cache lines
}

// fp32 rows as A: in place, or split into the buffer.
template <class T>
Left<T> left(T* buffer, const float* rows, int64_t rows_ld, int64_t m, int64_t k) {
  if constexpr (std::is_same_v<T, float>) {
    return {.data = rows, .ld = rows_ld};
  } else {
    const int64_t ld = padded_depth<T>(k) + 32, plane = m * ld;
    split_rows(buffer, plane, ld, rows, rows_ld, m, k, kTerms<T>);
    return {.data = buffer, .ld = ld, .plane = plane, .terms = kTerms<T>};
  }
}

// bf16 rows as A: widened into the buffer, or copied there, which reads memory in order where tiles would not.
template <class T>
Left<T> left(T* buffer, const Bf16* rows, int64_t rows_ld, int64_t m, int64_t k) {
  const int64_t depth = padded_depth<T>(k), ld = depth + 32;
  for (int64_t i = 0; i < m; ++i) {
    T* to = buffer + i * ld;
    if constexpr (std::is_same_v<T, float>) {
      for_each_stretch(k, [&](int64_t j, int64_t n) { store(to + j, load(rows + i * rows_ld + j, n), n); });
    } else {
      std::memcpy(to, rows + i * rows_ld, static_cast<size_t>(k) * sizeof(T));
      std::memset(to + k, 0, static_cast<size_t>(depth - k) * sizeof(T));
    }
  }
  return {.data = buffer, .ld = ld};
}

// Columns [0, m) of a [k, ...] as the rows of its transpose, for sums over tokens.
template <class T>
Left<T> transposed(T* buffer, const Left<T>& a, int64_t m, int64_t k) {
  if constexpr (std::is_same_v<T, float>) {
    return {.data = a.data, .ld = a.step, .step = a.ld};
  } else {
    const int64_t depth = padded_depth<T>(k), plane = m * depth;
    for (int term = 0; term < a.terms; ++term) {
      transpose_rows(buffer + term * plane, [&](int64_t i) { return a.data + term * a.plane + i * a.ld; }, m, k);
    }
    return {.data = buffer, .ld = depth, .plane = plane, .terms = a.terms};
  }
}

template <class T>
constexpr int64_t right_size(int64_t k, int64_t n) {
  return kTerms<T> * packed_size<T>(k, n);
}
template <class T>
Right<T> right(const T* packed, int64_t k, int64_t n, int terms = kTerms<T>) {
  return {.data = packed, .plane = packed_size<T>(k, n), .terms = terms, .depth = padded_depth<T>(k)};
}

// Packs the panel of columns [panel * kPanel, ...) of B[k][n] = row(n)[k]; row(i) points to k floats.
template <class T, class Row>
void pack_panel_nk(T* out, T* buffer, Row&& row, int64_t n, int64_t k, int64_t panel) {
  const int64_t j = panel * kPanel, depth = padded_depth<T>(k), columns = std::min(kPanel, n - j);
  if constexpr (std::is_same_v<T, float>) {
    pack_nk(out + j * depth, [&](int64_t i) { return row(j + i); }, columns, k);
  } else {
    const int64_t plane = kPanel * depth;
    for (int64_t i = 0; i < columns; ++i) split_rows(buffer + i * depth, plane, depth, row(j + i), 0, 1, k, kTerms<T>);
    for (int term = 0; term < kTerms<T>; ++term) {
      pack_nk(
          out + term * packed_size<T>(k, n) + j * depth, [&](int64_t i) { return buffer + term * plane + i * depth; },
          columns, depth);
    }
  }
}

// The same of B[k][n] = row(k)[n]; row(i) points to n floats.
template <class T, class Row>
void pack_panel_kn(T* out, T* buffer, Row&& row, int64_t n, int64_t k, int64_t panel) {
  const int64_t j = panel * kPanel, depth = padded_depth<T>(k), columns = std::min(kPanel, n - j);
  if constexpr (std::is_same_v<T, float>) {
    pack_kn(out + j * depth, [&](int64_t i) { return row(i) + j; }, columns, k);
  } else {
    const int64_t plane = k * kPanel;
    for (int64_t i = 0; i < k; ++i) {
      split_rows(buffer + i * kPanel, plane, kPanel, row(i) + j, 0, 1, columns, kTerms<T>);
    }
    for (int term = 0; term < kTerms<T>; ++term) {
      pack_kn(
          out + term * packed_size<T>(k, n) + j * depth, [&](int64_t i) { return buffer + term * plane + i * kPanel; },
          columns, k);
    }
  }
}
// Elements of the buffer of the two.
template <class T>
constexpr int64_t pack_buffer_size(int64_t k) {
  return kTerms<T> * kPanel * padded_depth<T>(k);
}

// Rows of tokens, as A has them, packed as the B [k, n] that a sum over the tokens multiplies with.
template <class T>
Right<T> right_of_rows(T* packed, const Left<T>& a, int64_t n, int64_t k) {
  for (int term = 0; term < a.terms; ++term) {
    pack_kn(packed + term * packed_size<T>(k, n), [&](int64_t i) { return a.data + term * a.plane + i * a.ld; }, n, k);
  }
  return right(static_cast<const T*>(packed), k, n, a.terms);
}

namespace gemm {

#if defined(__AMX_BF16__)
// `rows` <= 32 rows by 32 columns of C, summed over [begin, end) of the depth; the tiles are shaped for them.
template <bool kTwo>
inline void split_tile(float* c, int64_t ldc, const Left<Bf16>& a, const Right<Bf16>& b, int64_t begin, int64_t end,
                       int highest, bool accumulate) {
  const int64_t c_bytes = ldc * 4, a_bytes = a.ld * 2;
  constexpr int64_t kBBytes = kPanel * 4;
  see_memory();
  if (accumulate) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + 16, c_bytes);
    if (kTwo) _tile_loadd(2, c + 16 * ldc, c_bytes);
    if (kTwo) _tile_loadd(3, c + 16 * ldc + 16, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (kTwo) _tile_zero(2);
    if (kTwo) _tile_zero(3);
  }
  for (int64_t i = begin; i < end; i += 32) {
    for (int s = 0; s < a.terms; ++s) {
      const Bf16* rows = a.data + s * a.plane + i;
      _tile_loadd(4, rows, a_bytes);
      if (kTwo) _tile_loadd(5, rows + 16 * a.ld, a_bytes);
      for (int t = 0; t < std::min(b.terms, highest + 1 - s); ++t) {
        const Bf16* columns = b.data + t * b.plane + i * kPanel;
        _tile_stream_loadd(6, columns, kBBytes);
        _tile_dpbf16ps(0, 4, 6);
        if (kTwo) _tile_dpbf16ps(2, 5, 6);
        _tile_stream_loadd(7, columns + 32, kBBytes);
        _tile_dpbf16ps(1, 4, 7);
        if (kTwo) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  if (kTwo) _tile_stored(2, c + 16 * ldc, c_bytes);
  if (kTwo) _tile_stored(3, c + 16 * ldc + 16, c_bytes);
}
#endif

}  // namespace gemm

enum class Precision { kFp32, kBf16 };  // kBf16: the result is rounded to bf16, so that 2^-17 is exact enough

// C (+)= A B. c [m, ldc]: whole panels of columns are written, ldc >= round_up(n, kPanel).
template <class T>
void product(float* c, int64_t ldc, const Left<T>& a, const Right<T>& b, int64_t m, int64_t n, int64_t k,
             bool accumulate = false, [[maybe_unused]] Precision precision = Precision::kFp32) {
  if constexpr (std::is_same_v<T, float>) {
    multiply_strided(c, ldc, a.data, a.ld, a.step, b.data, m, n, k, accumulate);
  } else {
#if defined(__AMX_BF16__)
    const int highest = precision == Precision::kFp32 ? 2 : 1;
    Left<T> rows = a;
    rows.terms = std::min(a.terms, highest + 1);
    for (int t = 0; t < std::max(rows.terms, b.terms); ++t) {
      gemm::tell_product(c, ldc, a.data + std::min(t, rows.terms - 1) * a.plane, a.ld,
                         b.data + std::min(t, b.terms - 1) * b.plane, m, n, b.depth, b.depth);
    }
    // The rows of A stay in the first-level cache while B streams by.
    const int64_t stretch = round_up(512 / rows.terms, kDepth<T>);
    for (int64_t i = 0; i < m; i += 32, rows.data += 32 * a.ld) {
      if (i == 0 || m - i < 32) gemm::shape_tiles(std::min<int64_t>(32, m - i));
      const auto tile = m - i > 16 ? &gemm::split_tile<true> : &gemm::split_tile<false>;
      for (int64_t d = 0; d < b.depth; d += stretch) {
        for (int64_t j = 0; j < n; j += kPanel) {
          tile(c + i * ldc + j, ldc, rows, b.columns(j), d, std::min(b.depth, d + stretch), highest,
               accumulate || d > 0);
        }
      }
    }
    if (m > 0) _tile_release();
#endif
  }
}

// A few rows (decoding) are not worth packing a weight for: sum_k a[k] w[k].
inline float dot(const float* a, const float* w, int64_t k) {
  Vec sums[4] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
  int64_t i = 0;
  for (; i + 4 * Vec::kLanes <= k; i += 4 * Vec::kLanes) {
    for (int64_t s = 0; s < 4; ++s) {
      sums[s] = fma(load(a + i + s * Vec::kLanes), load(w + i + s * Vec::kLanes), sums[s]);
    }
  }
  for (; i < k; i += Vec::kLanes) sums[0] = fma(load(a + i, k - i), load(w + i, k - i), sums[0]);
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Gradients of weights are sums over tokens: each chunk of tokens has a partial sum of its own, and the partial sums
// are added in order. Chunks depend on the shapes alone, so that the result does not depend on the threads.
struct Chunks {
  int64_t tokens, count, size;

  Chunks(int64_t T, int64_t partial_floats) : tokens(T) {
    constexpr int64_t kLeast = 256, kMost = 32, kMostFloats = int64_t{1} << 23;
    const int64_t most = std::clamp<int64_t>(kMostFloats / partial_floats, 2, kMost);
    size = round_up(std::max(kLeast, (T + most - 1) / most), kLeast);
    count = (T + size - 1) / size;
  }
  int64_t begin(int64_t chunk) const { return std::min(tokens, chunk * size); }
};

// out[i] = sum over chunks of partials[chunk * stride + i] for i < n.
inline void add_partials(float* out, const float* partials, int64_t stride, int64_t chunks, int64_t n) {
  for_each_stretch(n, [&](int64_t i, int64_t count) {
    Vec total(0.0f);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total = total + load(partials + chunk * stride + i, count);
    store(out + i, total, count);
  });
}

}  // namespace RMOE_ISA
}  // namespace rmoe::kernels
