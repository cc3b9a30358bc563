// Matrix products of the CPU kernels: C (+)= A B with A read in place row by row, B packed in panels, C in fp32.
//
// Everything that is multiplied here is either fp32 or bf16 (products summed in fp32). B is packed by pack_nk or
// pack_kn into panels of kPanel columns; for bf16 two consecutive k lie side by side, as both the dot-product
// instruction and the tiles of AMX read them. Where RMOE_FP32_IN_TILES is defined, the tiles multiply fp32 too: a
// number is split into three bf16 terms, x = x0 + x1 + x2 within 2^-26 |x|, and the products of terms that reach fp32's
// precision, x_s y_t with s + t < 3, are summed. (An infinity gives nan then, and so does what rounds to one in bf16.)
// Whatever surrounds a product is done by the callers: gathering rows while they pack, activations on the block of C
// while it is in the cache. Included by kernel files only.
#pragma once

#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/kernels/cpu/per_isa/vec.h"
#include "rmoe/kernels/cpu/scratch.h"

namespace rmoe::kernels {
namespace RMOE_ISA {

constexpr int64_t kPanel = 32;  // columns of B in a panel

inline constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

#if defined(RMOE_FP32_IN_TILES)
constexpr bool kFp32InTiles = true;
#else
constexpr bool kFp32InTiles = false;
#endif
constexpr int64_t kSplit = 3;  // bf16 terms of an fp32 number

// k of a packed B is a multiple of this; A's rows hold zeros (not just anything) up to there.
template <class T>
constexpr int64_t kDepth = kFp32InTiles ? 32 : 1;
template <>
inline constexpr int64_t kDepth<Bf16> = 32;

template <class T>
constexpr int64_t padded_depth(int64_t k) {
  return round_up(k, kDepth<T>);
}
// Elements of a packed B [k, n]; so many precede column n, a multiple of kPanel.
template <class T>
constexpr int64_t packed_size(int64_t k, int64_t n) {
  const int64_t size = padded_depth<T>(k) * round_up(n, kPanel);
  return kFp32InTiles && std::is_same_v<T, float> ? size * kSplit / 2 : size;
}

// Memory of one thread, aligned to cache lines, kept from call to call. The slots of one kernel are told apart by
// number; what a slot held before is lost.
template <class T>
T* scratch(int slot, int64_t count) {
  constexpr int kSlots = 16;
  thread_local Scratch blocks[kSlots];
  return reinterpret_cast<T*>(blocks[slot].at_least(static_cast<size_t>(count) * sizeof(T) + 64));
}

// Cuts one piece of memory into arrays, aligned to cache lines. Without memory it only counts.
class Carver {
 public:
  explicit Carver(std::byte* memory = nullptr) : memory_(memory) {}
  template <class U>
  U* take(int64_t count) {
    const int64_t at = used_;
    used_ += round_up(count * static_cast<int64_t>(sizeof(U)), 64) + 64;  // off the powers of two
    return memory_ ? reinterpret_cast<U*>(memory_ + at) : nullptr;
  }
  template <class U>
  void take(U*& array, int64_t count) {
    array = take<U>(count);
  }
  int64_t used() const { return used_; }

 private:
  std::byte* memory_;
  int64_t used_ = 0;
};

// The arrays of a struct that takes them from a carver in its constructor, in a thread's scratch memory.
template <class Arrays, class... Args>
Arrays carve(int slot, const Args&... args) {
  Carver count;
  Arrays(count, args...);
  Carver carver(scratch<std::byte>(slot, count.used()));
  return Arrays(carver, args...);
}

#if defined(__AVX512F__)

// Row i of the 16x16 matrix of 32-bit elements becomes column i.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

inline void transpose(Vec (&r)[16]) {
  __m512i bits[16];
  for (int i = 0; i < 16; ++i) bits[i] = _mm512_castps_si512(r[i].v);
  transpose(bits);
  for (int i = 0; i < 16; ++i) r[i] = _mm512_castsi512_ps(bits[i]);
}

#else

// Row i of the 8x8 matrix becomes column i.
inline void transpose(Vec (&r)[8]) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    const __m256 low = _mm256_permute2f128_ps(r[i].v, r[i + 4].v, 0x20);
    r[i + 4] = _mm256_permute2f128_ps(r[i].v, r[i + 4].v, 0x31);
    r[i] = low;
  }
}

#endif

#if defined(__AVX512BF16__)

// 32 elements as bf16; zeros behind the first n.
inline __m512i load_32(const Bf16* p, int64_t n) {
  const __mmask32 mask = n >= 32 ? 0xffffffffu : n <= 0 ? 0u : (1u << n) - 1;
  tell_read(p, std::min<int64_t>(n, 32));
  return _mm512_maskz_loadu_epi16(mask, p);
}
inline __m512i load_32(const float* p, int64_t n) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(load(p + (n > 16 ? 16 : 0), n - 16).v, load(p, n).v));
}
inline void prefetch_32(const Bf16* p) { prefetch(p); }
inline void prefetch_32(const float* p) { prefetch(p), prefetch(p + 16); }
constexpr int64_t kPackAhead = 128;    // elements of a row that packing fetches ahead
constexpr int64_t kPackRowsAhead = 8;  // or rows
// 16 elements of each of two rows as bf16, taken in turn; zeros behind the first n.
inline __m512i load_pairs(const Bf16* even, const Bf16* odd, int64_t n) {
  tell_read(even, std::min<int64_t>(n, 16));
  tell_read(odd, std::min<int64_t>(n, 16));
  const __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes(n), even));
  const __m512i b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes(n), odd));
  return _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
}
inline __m512i load_pairs(const float* even, const float* odd, int64_t n) {
  const __m512i a = _mm512_cvtepu16_epi32(narrow(load(even, n))), b = _mm512_cvtepu16_epi32(narrow(load(odd, n)));
  return _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
}

#endif

#if defined(RMOE_FP32_IN_TILES)

// The next bf16 term of 16 fp32 numbers, taken off them.
inline __m256i take_term(Vec& rest) {
  const __m256i bits = narrow(rest);
  rest = rest - widen(bits);
  return bits;
}

// Where step i / 32 of term 0 of a column begins in a packed B; the other terms follow, 32 * kPanel elements each.
inline Bf16* split_step(float* packed, int64_t column, int64_t depth, int64_t i) {
  return reinterpret_cast<Bf16*>(packed) + kSplit * (column / kPanel * depth + i / 32 * 32) * kPanel +
         column % kPanel * 2;
}

template <class Row>
void pack_split_nk(float* out, Row&& row, int64_t n, int64_t k) {
  const int64_t depth = padded_depth<float>(k);
  for (int64_t j = 0; j < round_up(n, kPanel); j += 16) {
    for (int64_t i = 0; i < depth; i += 32) {
      __m512i terms[kSplit][16];
      for (int64_t c = 0; c < 16; ++c) {
        Vec low(0.0f), high(0.0f);
        if (j + c < n) low = load(row(j + c) + i, k - i), high = load(row(j + c) + std::min(i + 16, k), k - i - 16);
        for (auto& term : terms) {
          const __m256i bits = take_term(low);
          term[c] = _mm512_inserti64x4(_mm512_castsi256_si512(bits), take_term(high), 1);
        }
      }
      Bf16* step = split_step(out, j, depth, i);
      for (auto& term : terms) {
        transpose(term);
        for (int64_t c = 0; c < 16; ++c) _mm512_storeu_si512(step + c * kPanel * 2, term[c]);
        step += 32 * kPanel;
      }
    }
  }
}

template <class Row>
void pack_split_kn(float* out, Row&& row, int64_t n, int64_t k) {
  const int64_t depth = padded_depth<float>(k);
  for (int64_t i = 0; i < depth; i += 2) {
    for (int64_t j = 0; j < round_up(n, kPanel); j += 16) {
      const int64_t at = std::min(j, n);
      Vec even(0.0f), odd(0.0f);
      if (i < k) even = load(row(i) + at, n - j);
      if (i + 1 < k) odd = load(row(i + 1) + at, n - j);
      Bf16* line = split_step(out, j, depth, i) + i % 32 * kPanel;
      for (int64_t term = 0; term < kSplit; ++term, line += 32 * kPanel) {
        const __m512i a = _mm512_cvtepu16_epi32(take_term(even)), b = _mm512_cvtepu16_epi32(take_term(odd));
        _mm512_storeu_si512(line, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
      }
    }
  }
}

#endif

// Packs B[k][n] = row(n)[k]: a weight [n, k] that multiplies from the right transposed. row(i) points to k elements of
// type float or Bf16. Columns and depth are padded with zeros.
template <class T, class Row>
void pack_nk(T* out, Row&& row, int64_t n, int64_t k) {
  const int64_t depth = padded_depth<T>(k);
#if defined(RMOE_FP32_IN_TILES)
  if constexpr (std::is_same_v<T, float>) return pack_split_nk(out, row, n, k);
#endif
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, Bf16>) {
    for (int64_t j = 0; j < round_up(n, kPanel); j += 16) {
      Bf16* panel = out + j / kPanel * depth * kPanel + j % kPanel * 2;
      for (int64_t i = 0; i < depth; i += 32) {
        __m512i r[16];
        for (int64_t c = 0; c < 16; ++c) {
          if (j + c < n) {
            prefetch_32(row(j + c) + i + kPackAhead);
            r[c] = load_32(row(j + c) + i, k - i);
          } else {
            r[c] = _mm512_setzero_si512();
          }
        }
        transpose(r);
        for (int64_t c = 0; c < 16; ++c) _mm512_storeu_si512(panel + (i / 2 + c) * kPanel * 2, r[c]);
      }
    }
    return;
  }
#endif
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t j = 0; j < round_up(n, kPanel); j += Vec::kLanes) {
      float* panel = out + j / kPanel * depth * kPanel + j % kPanel;
      for (int64_t i = 0; i < depth; i += Vec::kLanes) {
        Vec r[Vec::kLanes];
        for (int64_t c = 0; c < Vec::kLanes; ++c) r[c] = j + c < n ? load(row(j + c) + i, k - i) : Vec(0.0f);
        transpose(r);
        for (int64_t c = 0; c < std::min(Vec::kLanes, depth - i); ++c) store(panel + (i + c) * kPanel, r[c]);
      }
    }
  } else {
    for (int64_t j = 0; j < round_up(n, kPanel); ++j) {
      T* panel = out + j / kPanel * depth * kPanel + j % kPanel * 2;
      for (int64_t i = 0; i < depth; ++i) {
        panel[i / 2 * kPanel * 2 + i % 2] = from_float<T>(i < k && j < n ? to_float(row(j)[i]) : 0.0f);
      }
    }
  }
}

// Packs B[k][n] = row(k)[n]: a weight [k, n], or the rows of a batch where the batch is summed over. row(i) points to n
// elements of type float or Bf16.
template <class T, class Row>
void pack_kn(T* out, Row&& row, int64_t n, int64_t k) {
  const int64_t depth = padded_depth<T>(k), width = round_up(n, kPanel);
#if defined(RMOE_FP32_IN_TILES)
  if constexpr (std::is_same_v<T, float>) return pack_split_kn(out, row, n, k);
#endif
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, Bf16>) {
    for (int64_t i = 0; i < depth; i += 2) {
      Bf16* line = out + i * kPanel;
      if (i >= k) {
        for (int64_t j = 0; j < width; j += kPanel) std::memset(line + j * depth, 0, kPanel * 2 * sizeof(Bf16));
        continue;
      }
      const auto *even = row(i), *odd = row(std::min(i + 1, k - 1));
      const __m512i both = i + 1 < k ? _mm512_set1_epi32(-1) : _mm512_set1_epi32(0xffff);
      const auto *even_ahead = row(std::min(i + kPackRowsAhead, k - 1)),
                 *odd_ahead = row(std::min(i + kPackRowsAhead + 1, k - 1));
      for (int64_t j = 0; j < width; j += 16) {
        const int64_t at = std::min(j, n);
        prefetch(even_ahead + at);
        prefetch(odd_ahead + at);
        const __m512i pairs = _mm512_and_si512(both, load_pairs(even + at, odd + at, n - j));
        _mm512_storeu_si512(line + j / kPanel * kPanel * depth + j % kPanel * 2, pairs);
      }
    }
    return;
  }
#endif
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t i = 0; i < depth; ++i) {
      const auto* source = row(i);
      for (int64_t j = 0; j < width; j += Vec::kLanes) {
        const int64_t at = std::min(j, n);
        store(out + j / kPanel * kPanel * depth + i * kPanel + j % kPanel, load(source + at, n - j));
      }
    }
  } else {
    for (int64_t i = 0; i < depth; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        out[j / kPanel * kPanel * depth + i / 2 * kPanel * 2 + j % kPanel * 2 + i % 2] =
            from_float<T>(i < k && j < n ? to_float(row(i)[j]) : 0.0f);
      }
    }
  }
}

// A[m][k] = row(k)[m] for the product that sums over a batch: out [m][padded depth], zeros behind k.
template <class T, class Row>
void transpose_rows(T* out, Row&& row, int64_t m, int64_t k) {
  const int64_t depth = padded_depth<T>(k);
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, Bf16>) {
    constexpr int64_t kAhead = 64;
    for (int64_t i = 0; i < depth; i += 32) {
      for (int64_t j = 0; j < m; j += 16) {
        __m512i r[16];
        for (int64_t c = 0; c < 16; ++c) {
          const int64_t at = i + 2 * c;
          if (at + 1 < k) {
            // More rows than the hardware fetches ahead of.
            if (j % 32 == 0) {
              prefetch(row(at) + j + kAhead);
              prefetch(row(at + 1) + j + kAhead);
            }
            r[c] = load_pairs(row(at) + j, row(at + 1) + j, m - j);
          } else if (at < k) {
            r[c] = _mm512_and_si512(_mm512_set1_epi32(0xffff), load_pairs(row(at) + j, row(at) + j, m - j));
          } else {
            r[c] = _mm512_setzero_si512();
          }
        }
        transpose(r);
        for (int64_t c = 0; c < std::min<int64_t>(16, m - j); ++c) _mm512_storeu_si512(out + (j + c) * depth + i, r[c]);
      }
    }
    return;
  }
#endif
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t i = 0; i < depth; i += 16) {
      for (int64_t j = 0; j < m; j += 16) {
        __m512i r[16];
        for (int64_t c = 0; c < 16; ++c) {
          r[c] = i + c < k ? _mm512_castps_si512(load(row(i + c) + j, m - j).v) : _mm512_setzero_si512();
        }
        transpose(r);
        for (int64_t c = 0; c < std::min<int64_t>(16, m - j); ++c) {
          store(out + (j + c) * depth + i, _mm512_castsi512_ps(r[c]), depth - i);
        }
      }
    }
    return;
  }
#endif
  constexpr int64_t kTile = 16;  // columns of a row are read by whole cache lines
  for (int64_t i = 0; i < depth; i += kTile) {
    for (int64_t j = 0; j < m; j += kTile) {
      for (int64_t ii = i; ii < std::min(i + kTile, depth); ++ii) {
        for (int64_t jj = j; jj < std::min(j + kTile, m); ++jj) {
          out[jj * depth + ii] = from_float<T>(ii < k ? to_float(row(ii)[jj]) : 0.0f);
        }
      }
    }
  }
}

namespace gemm {

#if defined(__AVX512F__)
constexpr int64_t kRows = 12;  // with two vectors of columns: 24 sums, 2 of B and a broadcast fit 32 registers
#else
constexpr int64_t kRows = 6;  // two vectors of 8 columns: 12 sums of 16 registers
#endif
constexpr int64_t kVecs = 2;

// Rows of a tile, at most kRows, for m of them: tiles of even height, since a low one waits for its own sums.
inline int64_t even_rows(int64_t m) {
  const int64_t tiles = std::max<int64_t>(1, (m + kRows - 1) / kRows);
  return std::max<int64_t>(1, (m + tiles - 1) / tiles);
}

// R rows by kVecs vectors of C. b is the packed panel, from its first used column on. a_step: from one k to the next.
template <int64_t R, int64_t V>
inline void fp32_tile(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t k, bool accumulate,
                      int64_t a_step = 1) {
  Vec sums[R][V];
#pragma GCC unroll 12
  for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < V; ++v) sums[r][v] = Vec(0.0f);
  }
  for (int64_t i = 0; i < k; ++i) {
    Vec columns[V];
#pragma GCC unroll 2
    for (int64_t v = 0; v < V; ++v) columns[v] = load(b + i * kPanel + v * Vec::kLanes);
#pragma GCC unroll 12
    for (int64_t r = 0; r < R; ++r) {
      const Vec factor(a[r * lda + i * a_step]);
#pragma GCC unroll 2
      for (int64_t v = 0; v < V; ++v) sums[r][v] = fma(factor, columns[v], sums[r][v]);
    }
  }
#pragma GCC unroll 12
  for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < V; ++v) {
      // C last: sums of sums, which round less than one long sum.
      float* at = c + r * ldc + v * Vec::kLanes;
      store(at, accumulate ? load(at) + sums[r][v] : sums[r][v]);
    }
  }
}

#if defined(__AVX512BF16__)
template <int64_t R, int64_t V>
inline void dot_tile(float* c, int64_t ldc, const Bf16* a, int64_t lda, const Bf16* b, int64_t k, bool accumulate) {
  __m512 sums[R][V];
#pragma GCC unroll 12
  for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < V; ++v) sums[r][v] = _mm512_setzero_ps();
  }
  for (int64_t i = 0; i < k; i += 2) {
    __m512bh columns[V];
#pragma GCC unroll 2
    for (int64_t v = 0; v < V; ++v) {
      columns[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + i * kPanel + v * 32));
    }
#pragma GCC unroll 12
    for (int64_t r = 0; r < R; ++r) {
      int pair;
      std::memcpy(&pair, a + r * lda + i, sizeof pair);
      const auto factor = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 2
      for (int64_t v = 0; v < V; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], factor, columns[v]);
    }
  }
#pragma GCC unroll 12
  for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < V; ++v) {
      float* at = c + r * ldc + v * 16;
      _mm512_storeu_ps(at, accumulate ? _mm512_add_ps(_mm512_loadu_ps(at), sums[r][v]) : sums[r][v]);
    }
  }
}
#endif

// Calls the tile for `rows` rows: R at compile time for every count.
template <int64_t V, int64_t R, class T>
void tile_rows(int64_t rows, float* c, int64_t ldc, const T* a, int64_t lda, const T* b, int64_t k, bool accumulate,
               [[maybe_unused]] int64_t a_step = 1) {
  if constexpr (R > 1) {
    if (rows < R) return tile_rows<V, R - 1>(rows, c, ldc, a, lda, b, k, accumulate, a_step);
  }
  if constexpr (std::is_same_v<T, float>) {
    fp32_tile<R, V>(c, ldc, a, lda, b, k, accumulate, a_step);
  } else {
#if defined(__AVX512BF16__)
    dot_tile<R, V>(c, ldc, a, lda, b, k, accumulate);
#endif
  }
}

#if defined(__AMX_BF16__)

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Sets the thread's tiles up for blocks of `rows` <= 32 rows of C and 32 columns: tiles 0..3 are C, 4 and 5 A, 6 and 7
// B.
inline void shape_tiles(int64_t rows) {
  const auto upper = static_cast<uint8_t>(std::min<int64_t>(rows, 16)), lower = static_cast<uint8_t>(rows - upper);
  TileShapes shapes;
  const auto set = [&](int tile, uint8_t count) {
    shapes.bytes[tile] = count > 0 ? 64 : 0;
    shapes.rows[tile] = count;
  };
  for (int tile : {0, 1, 4}) set(tile, upper);
  for (int tile : {2, 3, 5}) set(tile, lower);
  for (int tile : {6, 7}) set(tile, 16);
  // Of the intrinsic's argument GCC believes that 8 bytes are read, and leaves the stores of the others out.
  asm volatile("ldtilecfg %0" ::"m"(shapes));
}

// What was stored before is in memory when tiles are loaded: their intrinsics do not tell GCC that they read any.
inline void see_memory() { asm volatile("" ::: "memory"); }

template <bool kTwo>  // whether there are rows 16 and up
inline void amx_tile(float* c, int64_t ldc, const Bf16* a, int64_t lda, const Bf16* b, int64_t k, bool accumulate) {
  const int64_t c_bytes = ldc * 4, a_bytes = lda * 2;
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
  // B streams by, so that the rows of A keep their place in the first-level cache.
  for (int64_t i = 0; i < k; i += 32) {
    _tile_stream_loadd(6, b + i * kPanel, kBBytes);
    _tile_loadd(4, a + i, a_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_stream_loadd(7, b + i * kPanel + 32, kBBytes);
    _tile_dpbf16ps(1, 4, 7);
    if (kTwo) {
      _tile_loadd(5, a + 16 * lda + i, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  if (kTwo) _tile_stored(2, c + 16 * ldc, c_bytes);
  if (kTwo) _tile_stored(3, c + 16 * ldc + 16, c_bytes);
}

inline void amx_rows(int64_t rows, float* c, int64_t ldc, const Bf16* a, int64_t lda, const Bf16* b, int64_t n,
                     int64_t k, bool accumulate, int64_t panel_depth) {
  shape_tiles(rows);
  for (int64_t j = 0; j < n; j += kPanel) {
    if (rows > 16) {
      amx_tile<true>(c + j, ldc, a, lda, b + j * panel_depth, k, accumulate);
    } else {
      amx_tile<false>(c + j, ldc, a, lda, b + j * panel_depth, k, accumulate);
    }
  }
}

// Of a product by tiles: what it reads and writes.
template <class T>
void tell_product(float* c, int64_t ldc, const T* a, int64_t lda, const T* b, int64_t m, int64_t n, int64_t depth,
                  int64_t panel_depth) {
  for (int64_t i = 0; i < m; ++i) {
    tell_read(a + i * lda, depth);
    tell_write(c + i * ldc, round_up(n, kPanel));
  }
  for (int64_t j = 0; j < n; j += kPanel) tell_read(b + packed_size<T>(panel_depth, j), packed_size<T>(depth, kPanel));
}

inline bool use_amx() { return cpu_isa() >= Isa::kAmx; }

#endif

#if defined(RMOE_FP32_IN_TILES)

constexpr int64_t kSplitStretch = 128;  // of the depth: so much of 32 rows of A, split, stays in the first-level cache

// Rows [0, rows) of a, columns [0, depth): row i of out holds the terms of each step of 32 columns one after another.
inline void split_rows(Bf16* out, const float* a, int64_t lda, int64_t rows, int64_t depth) {
  for (int64_t i = 0; i < rows; ++i) {
    Bf16* to = out + i * kSplitStretch * kSplit;
    for (int64_t d = 0; d < depth; d += 32) {
      Vec low = load(a + i * lda + d), high = load(a + i * lda + d + 16);
      for (int64_t term = 0; term < kSplit; ++term, to += 32) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), take_term(low));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 16), take_term(high));
      }
    }
  }
}

// The sums [32, 32] over `depth` columns of split rows and a packed panel.
template <bool kTwo>
inline void split_tile(float* c, int64_t ldc, const Bf16* a, const Bf16* b, int64_t depth) {
  constexpr int64_t kABytes = kSplitStretch * kSplit * 2, kBBytes = kPanel * 4;
  const int64_t c_bytes = ldc * 4;
  see_memory();
  _tile_zero(0);
  _tile_zero(1);
  if (kTwo) _tile_zero(2);
  if (kTwo) _tile_zero(3);
  for (int64_t i = 0; i < depth; i += 32, a += 32 * kSplit, b += 32 * kPanel * kSplit) {
#pragma GCC unroll 3
    for (int64_t s = 0; s < kSplit; ++s) {
      _tile_loadd(4, a + s * 32, kABytes);
      if (kTwo) _tile_loadd(5, a + s * 32 + 16 * kSplitStretch * kSplit, kABytes);
#pragma GCC unroll 3
      for (int64_t t = 0; t < kSplit - s; ++t) {
        const Bf16* columns = b + t * 32 * kPanel;
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

inline void multiply_split(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t m, int64_t n,
                           int64_t depth, bool accumulate, int64_t panel_depth) {
  alignas(64) Bf16 split[32 * kSplitStretch * kSplit];
  alignas(64) float sums[32 * kPanel];
  for (int64_t d = 0; d < depth; d += kSplitStretch) {
    const int64_t count = std::min(kSplitStretch, depth - d);
    for (int64_t i = 0; i < m; i += 32) {
      const int64_t rows = std::min<int64_t>(32, m - i);
      if (i == 0 || rows < 32) shape_tiles(rows);
      const auto tile = rows > 16 ? &split_tile<true> : &split_tile<false>;
      split_rows(split, a + i * lda + d, lda, rows, count);
      for (int64_t j = 0; j < n; j += kPanel) {
        const Bf16* panel = reinterpret_cast<const Bf16*>(b) + kSplit * (j * panel_depth + d * kPanel);
        float* block = c + i * ldc + j;
        if (!accumulate && d == 0) {
          tile(block, ldc, split, panel, count);
          continue;
        }
        // Sums of sums: a long chain of additions would lose digits.
        tile(sums, kPanel, split, panel, count);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t x = 0; x < kPanel; x += Vec::kLanes) {
            store(block + r * ldc + x, load(block + r * ldc + x) + load(sums + r * kPanel + x));
          }
        }
      }
    }
  }
  if (m > 0) _tile_release();
}

#endif

}  // namespace gemm

// C (+)= A B. c [m, ldc]: whole panels of columns are written, ldc >= round_up(n, kPanel). a [m, lda]: lda at least
// padded_depth(k). b: packed [k, n]. A panel of B stays in the first-level cache while the rows pass, so m is best a
// few hundred at most and k below a few thousand. panel_depth: the padded depth that b was packed with, where this
// product sums over a stretch of it only: b then points to the stretch in the first panel, packed_size<T>(its begin,
// kPanel) elements on.
template <class T>
void multiply(float* c, int64_t ldc, const T* a, int64_t lda, const T* b, int64_t m, int64_t n, int64_t k,
              bool accumulate = false, int64_t panel_depth = 0) {
  const int64_t depth = padded_depth<T>(k);
  if (panel_depth == 0) panel_depth = depth;
  if (depth == 0 && !accumulate) {
    for (int64_t i = 0; i < m; ++i) std::fill(c + i * ldc, c + i * ldc + round_up(n, kPanel), 0.0f);
  }
#if defined(RMOE_FP32_IN_TILES)
  if constexpr (std::is_same_v<T, float>) {
    gemm::tell_product(c, ldc, a, lda, b, m, n, depth, panel_depth);
    return gemm::multiply_split(c, ldc, a, lda, b, m, n, depth, accumulate, panel_depth);
  }
#elif defined(__AMX_BF16__)
  if constexpr (std::is_same_v<T, Bf16>) {
    if (gemm::use_amx()) {
      gemm::tell_product(c, ldc, a, lda, b, m, n, depth, panel_depth);
      const int64_t whole = m / 32 * 32;
      if (whole > 0) gemm::shape_tiles(32);
      // The rows of A stay in the first-level cache while B streams by: its panels are contiguous.
      constexpr int64_t kStretch = 512;
      for (int64_t i = 0; i < whole; i += 32) {
        for (int64_t d = 0; d < depth; d += kStretch) {
          const int64_t count = std::min(kStretch, depth - d);
          for (int64_t j = 0; j < n; j += kPanel) {
            gemm::amx_tile<true>(c + i * ldc + j, ldc, a + i * lda + d, lda, b + j * panel_depth + d * kPanel, count,
                                 accumulate || d > 0);
          }
        }
      }
      if (whole < m) {
        gemm::amx_rows(m - whole, c + whole * ldc, ldc, a + whole * lda, lda, b, n, depth, accumulate, panel_depth);
      }
      _tile_release();
      return;
    }
  }
#endif
  constexpr int64_t kStep = gemm::kVecs * Vec::kLanes;
  constexpr int64_t kPair = std::is_same_v<T, Bf16> ? 2 : 1;
  const int64_t end = round_up(k, kPair);  // the zeros behind are the tiles'
  // Sums of sums: a long chain of additions would lose more digits than a library's product does.
  constexpr int64_t kChain = 256;
  const int64_t tile_height = gemm::even_rows(m);
  for (int64_t j = 0; j < n; j += kStep) {
    const T* panel = b + j / kPanel * kPanel * panel_depth + j % kPanel * kPair;
    for (int64_t i = 0; i < m; i += tile_height) {
      const int64_t rows = std::min(tile_height, m - i);
      for (int64_t d = 0; d < end; d += kChain) {
        const auto tile =
            n - j > Vec::kLanes ? &gemm::tile_rows<2, gemm::kRows, T> : &gemm::tile_rows<1, gemm::kRows, T>;
        tile(rows, c + i * ldc + j, ldc, a + i * lda + d, lda, panel + d * kPanel, std::min(kChain, end - d),
             accumulate || d > 0, 1);
      }
    }
  }
}

// C (+)= A B as above, in fp32, with A[i][k] at a[i * lda + k * a_step]: a_step = 1 or, for a transposed A, lda = 1. A
// long depth is summed in pieces, whose sums are added.
inline void multiply_strided(float* c, int64_t ldc, const float* a, int64_t lda, int64_t a_step, const float* b,
                             int64_t m, int64_t n, int64_t k, bool accumulate) {
  constexpr int64_t kPiece = 128;
  const int64_t tile_height = gemm::even_rows(m);
  for (int64_t j = 0; j < n; j += gemm::kVecs * Vec::kLanes) {
    const float* panel = b + j / kPanel * kPanel * k + j % kPanel;
    for (int64_t i = 0; i < m; i += tile_height) {
      const int64_t rows = std::min(tile_height, m - i);
      float* block = c + i * ldc + j;
      for (int64_t at = 0; at < std::max<int64_t>(k, 1); at += kPiece) {
        const float *rows_of_a = a + i * lda + at * a_step, *rows_of_b = panel + at * kPanel;
        const int64_t depth = std::min(kPiece, k - at);
        const bool add = accumulate || at > 0;
        if (n - j > Vec::kLanes) {
          gemm::tile_rows<2, gemm::kRows>(rows, block, ldc, rows_of_a, lda, rows_of_b, depth, add, a_step);
        } else {
          gemm::tile_rows<1, gemm::kRows>(rows, block, ldc, rows_of_a, lda, rows_of_b, depth, add, a_step);
        }
      }
    }
  }
}

// out[r][j - begin] = <a_r, w_j> for R rows of a [R, k] and rows [begin, end) of w, read in place once and rounded to T
// as packing would; out [R, ldo]. For so few rows that reading the weights is the work: they are read in order, one row
// after the other, which memory delivers more than twice as fast as several rows in turn.
template <int64_t R, class T, class W>
void few_dots(float* out, int64_t ldo, const T* a, const W* w, int64_t begin, int64_t end, int64_t k) {
  constexpr int64_t kStep = std::is_same_v<T, float> ? Vec::kLanes : 32;
  constexpr int64_t kChains = 2;                // independent sums hide the latency
  constexpr int64_t kAhead = 2048 / sizeof(W);  // the hardware's own look ahead stops at every page
  for (int64_t j = begin; j < end; ++j) {
    const W* row = w + j * k;
    Vec sums[kChains][R];
    for (auto& chain : sums) std::fill(chain, chain + R, Vec(0.0f));
    const auto add = [&](Vec(&chain)[R], int64_t i, int64_t n) {
      for (size_t byte = 0; byte < kStep * sizeof(W); byte += 64) prefetch(row + i + kAhead + byte / sizeof(W));
      if constexpr (std::is_same_v<T, float>) {
        const Vec values = load(row + i, n);
        for (int64_t r = 0; r < R; ++r) chain[r] = fma(values, load(a + r * k + i, n), chain[r]);
      } else {
#if defined(__AVX512BF16__)
        const auto values = reinterpret_cast<__m512bh>(load_32(row + i, n));
        for (int64_t r = 0; r < R; ++r) {
          chain[r].v = _mm512_dpbf16_ps(chain[r].v, values, reinterpret_cast<__m512bh>(load_32(a + r * k + i, n)));
        }
#endif
      }
    };
    int64_t i = 0;
    for (; i + kChains * kStep <= k; i += kChains * kStep) {
      for (int64_t chain = 0; chain < kChains; ++chain) add(sums[chain], i + chain * kStep, kStep);
    }
    for (; i < k; i += kStep) add(sums[0], i, std::min(kStep, k - i));
    for (int64_t r = 0; r < R; ++r) out[r * ldo + j - begin] = sum(sums[0][r] + sums[1][r]);
  }
}

}  // namespace RMOE_ISA
}  // namespace rmoe::kernels
