// Attention by tiles: what the kernels for a fixed span and for causal attention share. Included by kernel files only.
//
// A block of queries looks at a band of keys, which begins at a multiple of kPanel. A kind of attention says by a Sight
// what row r of a block sees of the band's columns and what happens to its scores there:
//   struct Sight {
//     struct Row {
//       int64_t begin, end;                    // columns that it sees; begin < end, begin <= r
//       Vec score(Vec product, int64_t c);     // of columns [c, c + Vec::kLanes), of which it sees at least one
//       auto kept(int64_t c);                  // which of their weights dropout keeps: Kept or All
//     };
//     Row row(int64_t r);                      // begin and end rise with r
//   };
#pragma once

#include <limits>

#include "rmoe/kernels/cpu/attention.h"
#include "rmoe/kernels/cpu/dropout.h"
#include "rmoe/kernels/cpu/per_isa/gemm.h"

namespace rmoe::kernels {
namespace RMOE_ISA {
namespace attention {

using T = RMOE_TYPE;

constexpr bool kNarrow = std::is_same_v<T, Bf16>;
constexpr int64_t kQueries = kNarrow ? 64 : 32;  // most rows of a block; a multiple of kPanel
constexpr int64_t kGroup = 32;      // rows whose scores are made at once: with kKeys, they stay in the L1 cache
constexpr int64_t kKeys = 128;      // columns of them
constexpr int64_t kStretch = 768;   // columns whose weights backward holds at once: those of a block stay in L2
constexpr int64_t kFewQueries = 4;  // up to so many, keys and values are read in place

// Rows of a block. The band of fewer has fewer columns that only some of them see; AMX wants sums over more of them.
inline int64_t block_of_queries() {
#if defined(__AMX_BF16__)
  if (kNarrow && gemm::use_amx()) return kQueries;
#endif
  return 32;
}

// The softmax is computed with powers of e in fp32 and, which takes fewer steps and loses more of a large score's
// digits, powers of 2 in bf16: scores and log-sum-exps are in units of this.
constexpr float kUnit = kNarrow ? 1.44269504f : 1;

#if defined(__AVX512BF16__)
// 2^x within 3e-6 of its value; nan for nan.
inline Vec power(Vec x) {
  const Vec r = _mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
  // With the smallest largest relative error on [0, 1].
  Vec p = fma(Vec(0.013534168f), r, Vec(0.0520114611f));
  p = fma(p, r, Vec(0.241442756f));
  p = fma(p, r, Vec(0.693003835f));
  p = fma(p, r, Vec(1.00000259f));
  return _mm512_scalef_ps(p.v, x.v);  // p 2^floor(x)
}
#else
inline Vec power(Vec x) { return exp(x); }
#endif

// power(score * factor - shift). In fp32 the product is rounded first, as it was for a shift that is a largest score or
// a log-sum-exp: the roundings cancel where one key has most of the weight.
inline Vec weight_of(Vec score, Vec factor, Vec shift) {
  if constexpr (kNarrow) return power(fma(score, factor, Vec(0.0f) - shift));
  Vec product = score * factor;
  asm("" : "+v"(product.v));  // no contraction to a multiply-add
  return power(product - shift);
}

// Lanes that dropout keeps.
struct All {};
inline Vec apply(All, Vec x) { return x; }
#if defined(__AVX512F__)
struct Kept {
  __mmask16 lanes;
};
inline Vec apply(Kept kept, Vec x) { return _mm512_maskz_mov_ps(kept.lanes, x.v); }
#else
struct Kept {
  __m256 lanes;
};
inline Vec apply(Kept kept, Vec x) { return _mm256_and_ps(kept.lanes, x.v); }
#endif

// The elements [first, first + n) of a dropout stream, n at most 2^32.
class KeptLanes {
 public:
  KeptLanes(uint64_t key, uint64_t first, double probability)
      : stream_(key, static_cast<uint32_t>(first >> 32), probability),
        carried_(key, static_cast<uint32_t>(first >> 32) + 1, probability),
        first_(static_cast<uint32_t>(first)) {}

  // Of elements first + i + lane.
  Kept operator()(int64_t i) const {
#if defined(__AVX512F__)
    constexpr UInts kLane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
    constexpr UInts kLane = {0, 1, 2, 3, 4, 5, 6, 7};
#endif
    const uint32_t lowest = first_ + static_cast<uint32_t>(i);
    const UInts index = kLane + lowest;
    const UInts drawn = stream_.draw(index);
    // Behind an index of 32 ones the next stream begins.
    if (lowest >= first_ && lowest <= UINT32_MAX - static_cast<uint32_t>(Vec::kLanes)) [[likely]]
      return at_least(drawn);
    return at_least(index < first_ ? carried_.draw(index) : drawn);
  }

 private:
  using UInts [[gnu::vector_size(Vec::kLanes * 4)]] = uint32_t;

  Kept at_least(UInts drawn) const {
    const auto threshold = static_cast<int>(stream_.threshold());
#if defined(__AVX512F__)
    return {_mm512_cmpge_epu32_mask(reinterpret_cast<__m512i>(drawn), _mm512_set1_epi32(threshold))};
#else
    const auto bits = reinterpret_cast<__m256i>(drawn);
    const __m256i larger = _mm256_max_epu32(bits, _mm256_set1_epi32(threshold));
    return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(larger, bits))};
#endif
  }

  DropoutStream stream_, carried_;
  uint32_t first_;
};

// The distance between rows of n floats that a product writes whole panels of: not a power of two, whose rows would all
// lie in the same sets of the cache.
inline int64_t stride_of(int64_t n) { return round_up(n, kPanel) + 16; }

// Zeros outside of lanes [begin, end).
inline Vec between(Vec x, int64_t begin, int64_t end) { return first(Vec(0.0f), begin, first(x, end, Vec(0.0f))); }

enum Slot { kOfThread, kOfAll };

// Of scores.
inline float scale_of(int64_t C) { return static_cast<float>(1 / std::sqrt(static_cast<double>(C))); }

// out[c], out[c + half] = the pair (x[c], x[c + half]) turned by the angle of cos[c] and sin[c], or backwards.
template <bool kInverse, class Out, class In>
void turn(Out* out, const In* x, const float* cos, const float* sin, int64_t half, Vec factor = Vec(1.0f)) {
  for_each_stretch(half, [&](int64_t c, int64_t n) {
    const Vec a = load(x + c, n) * factor, b = load(x + half + c, n) * factor;
    const Vec cosine = load(cos + c, n), s = load(sin + c, n), sine = kInverse ? Vec(0.0f) - s : s;
    store(out + c, a * cosine - b * sine, n);
    store(out + half + c, b * cosine + a * sine, n);
  });
}

// out[r] = row(r) for r < rows as a product reads them from the left: [rows, padded_depth(C)], zeros behind C.
template <class Row>
void gather(T* out, Row&& row, int64_t rows, int64_t C) {
  const int64_t stride = padded_depth<T>(C);
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(out + r * stride, row(r), static_cast<size_t>(C) * sizeof(T));
    std::memset(out + r * stride + C, 0, static_cast<size_t>(stride - C) * sizeof(T));
  }
}

// The band that a block looks at, packed from its first column on; forward needs the first two.
struct Band {
  const T* keys_nk;    // B of queries times keys
  const T* values_kn;  // B of weights times values
  const T* values_nk;
  const T* keys_kn;
  int64_t depth;    // padded number of keys that the *_kn were packed with
  int64_t columns;  // that any query of the block sees
  int64_t C;
};

// Columns [at, at + n) of a band as B of a product; at is a multiple of kPanel.
inline const T* columns_of(const T* packed_nk, int64_t at, int64_t C) { return packed_nk + at * padded_depth<T>(C); }
inline const T* rows_of(const T* packed_kn, int64_t at) { return packed_kn + packed_size<T>(at, kPanel); }

struct ForwardBuffers {
  ForwardBuffers(Carver& carver, int64_t C) {
    carver.take(q, kQueries * padded_depth<T>(C));
    carver.take(scores, kQueries * kKeys);
    carver.take(weights, kQueries * kKeys);
    carver.take(out, kQueries * round_up(C, kPanel));
    carver.take(shift, kQueries);
    carver.take(sums, kQueries * Vec::kLanes);
  }
  T* q = nullptr;           // [kQueries, padded_depth(C)]
  float* scores = nullptr;  // [kQueries, kKeys]
  T* weights = nullptr;     // the same
  float* out = nullptr;     // [kQueries, round_up(C, kPanel)]: sums of weighted values
  float* shift = nullptr;   // [kQueries]: what the weights are relative to
  float* sums = nullptr;    // [kQueries, lanes]: of the weights so far
};

// f(c, whole) for the vectors of columns that hold some of [begin, end); whole, a type, says that they hold nothing
// else.
template <class F>
[[gnu::always_inline]] inline void for_each_seen(int64_t begin, int64_t end, F&& f) {
  int64_t c = begin / Vec::kLanes * Vec::kLanes;
  if (c < begin && c < end) f(c, std::false_type{}), c += Vec::kLanes;
  for (; c + Vec::kLanes <= end; c += Vec::kLanes) f(c, std::true_type{});
  if (c < end) f(c, std::false_type{});
}

// f(c) for the vectors of columns [0, round_up(n, kPanel)) that hold none of [begin, end).
template <class F>
inline void for_each_unseen(int64_t begin, int64_t end, int64_t n, F&& f) {
  for (int64_t c = 0; c < begin / Vec::kLanes * Vec::kLanes; c += Vec::kLanes) f(c);
  for (int64_t c = round_up(std::max(begin / Vec::kLanes * Vec::kLanes, end), Vec::kLanes); c < round_up(n, kPanel);
       c += Vec::kLanes)
    f(c);
}

// One row of the scores of columns [at, at + n) to weights, relative to `shift`, a score of the row; what was summed
// before is scaled where that rises. In fp32 it is the largest score so far. In bf16, where weights lose nothing by
// being large, it is the largest of the first few scores, until others are so far above that sums could overflow.
template <class Row>
void weigh(const Row& row, const float* scores, T* weights, int64_t at, int64_t n, float factor, bool first_columns,
           float& shift, float* sums, float* out, int64_t C) {
  const int64_t begin = std::clamp<int64_t>(row.begin - at, 0, n), end = std::clamp<int64_t>(row.end - at, 0, n);
  constexpr float kLowest = -0.5f * std::numeric_limits<float>::max();  // finite: a score of -infinity weighs nothing
  Vec sum_before = first_columns ? Vec(0.0f) : load(sums);
  if (first_columns) shift = kLowest;

  int64_t looked_at = kNarrow ? std::min(end, round_up(begin + 1, Vec::kLanes)) : end;
  bool raise = first_columns || !kNarrow;
  Vec sum;  // of these columns: a long chain of additions loses digits
  for (;;) {
    if (raise) {
      Vec most(kLowest);
      for_each_seen(begin, looked_at, [&](int64_t c, auto whole) {
        Vec score = row.score(load(scores + c), at + c);
        if (!whole) score = first(Vec(kLowest), begin - c, first(score, looked_at - c, Vec(kLowest)));
        most = max(score, most);
      });
      const float before = shift;
      shift = std::max(before, max(most));
      if (!first_columns && shift > before) {
        const Vec shrink = power(Vec((before - shift) * factor));
        sum_before = sum_before * shrink;
        for (int64_t c = 0; c < C; c += Vec::kLanes) store(out + c, load(out + c) * shrink);
      }
    }
    const Vec scale(factor), scaled_shift(shift * factor);
    sum = Vec(0.0f);
    for_each_seen(begin, end, [&](int64_t c, auto whole) {
      Vec weight = weight_of(row.score(load(scores + c), at + c), scale, scaled_shift);
      if (!whole) weight = between(weight, begin - c, end - c);
      sum = sum + weight;
      store(weights + c, apply(row.kept(at + c), weight));
    });
    if (!kNarrow || (raise && looked_at == end) || !(max(sum) > 0x1p40f)) break;
    looked_at = end;
    raise = true;
  }
  for_each_unseen(begin, end, n, [&](int64_t c) { store(weights + c, Vec(0.0f)); });
  store(sums, sum_before + sum);
}

// The block of queries w.q [rows, C] to w.out [rows, C], the weighted values, and lse [rows]. factor: kUnit times
// the scale of the scores. share: of the weights that dropout keeps.
template <class Sight>
void attend(const ForwardBuffers& w, const Band& band, int64_t rows, float factor, double share, const Sight& sight,
            float* lse) {
  const int64_t ldq = padded_depth<T>(band.C), ldo = round_up(band.C, kPanel);
  for (int64_t at = 0; at < band.columns; at += kKeys) {
    const int64_t n = std::min(kKeys, band.columns - at);
    multiply(w.scores, kKeys, w.q, ldq, columns_of(band.keys_nk, at, band.C), rows, n, band.C);
    for (int64_t r = 0; r < rows; ++r) {
      weigh(sight.row(r), w.scores + r * kKeys, w.weights + r * kKeys, at, n, factor, at == 0, w.shift[r],
            w.sums + r * Vec::kLanes, w.out + r * ldo, band.C);
    }
    multiply(w.out, ldo, w.weights, kKeys, rows_of(band.values_kn, at), rows, band.C, n, at > 0, band.depth);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float total = sum(load(w.sums + r * Vec::kLanes));
    lse[r] = w.shift[r] * factor / kUnit + std::log(total);
    const Vec divisor(static_cast<float>(1 / (static_cast<double>(total) * share)));
    for (int64_t c = 0; c < band.C; c += Vec::kLanes) store(w.out + r * ldo + c, load(w.out + r * ldo + c) * divisor);
  }
}

// Zeros on both sides of the gradients of the scores, so that a product can read each row from its own first key on.
constexpr int64_t kMargin = kQueries + kPanel;
constexpr int64_t kStretchRow = kMargin + kStretch + kMargin;

struct BackwardBuffers {
  BackwardBuffers(Carver& carver, int64_t C) {
    const int64_t left = kQueries * padded_depth<T>(C), right = C * kQueries;
    carver.take(q, left);
    carver.take(dout, left);
    carver.take(q_t, right);
    carver.take(dout_t, right);
    carver.take(scores, kGroup * kKeys);
    carver.take(dweights, kGroup * kKeys);
    carver.take(weights, kQueries * kStretch);
    carver.take(dscores, kQueries * kStretchRow);
    carver.take(packed, kQueries * (kStretch + 2 * kMargin));
    carver.take(dq, kQueries * round_up(C, kPanel));
    carver.take(lse, kQueries);
    carver.take(inner, kQueries);
    carver.take(rows_of_keys, kPanel * C);
  }
  T *q = nullptr, *dout = nullptr;               // [kQueries, padded_depth(C)]
  T *q_t = nullptr, *dout_t = nullptr;           // [C, padded_depth(rows)]
  float *scores = nullptr, *dweights = nullptr;  // [kGroup, kKeys]
  T* weights = nullptr;                          // [kQueries, kStretch]
  T* dscores = nullptr;                          // [kQueries, kStretchRow], from column kMargin on
  T* packed = nullptr;
  float* dq = nullptr;                     // [kQueries, round_up(C, kPanel)]
  float *lse = nullptr, *inner = nullptr;  // [kQueries]: log-sum-exp in units of kUnit; the kept share of out . dout
  float* rows_of_keys = nullptr;           // [kPanel, C]
};

// One row of columns [at, at + n): the weights, and the gradients of the scores without the factors that all share.
template <class Row>
void differentiate(const Row& row, const float* scores, const float* dweights, T* weights, T* dscores, int64_t at,
                   int64_t n, float factor, float lse, float inner) {
  const int64_t begin = std::clamp<int64_t>(row.begin - at, 0, n), end = std::clamp<int64_t>(row.end - at, 0, n);
  const Vec scale(factor), shift(lse), mean(inner);
  for_each_seen(begin, end, [&](int64_t c, auto whole) {
    Vec weight = weight_of(row.score(load(scores + c), at + c), scale, shift);
    const auto kept = row.kept(at + c);
    if (!whole) weight = between(weight, begin - c, end - c);
    store(weights + c, apply(kept, weight));
    store(dscores + c, weight * (apply(kept, load(dweights + c)) - mean));
  });
  for_each_unseen(begin, end, n, [&](int64_t c) { store(weights + c, Vec(0.0f)), store(dscores + c, Vec(0.0f)); });
}

// Sums over the blocks of one head's queries, by column of the packed keys; ld: padded number of keys.
struct KeySums {
  float *dk_t, *dv_t;  // [C, ld], from the band's first column on
  int64_t ld;
};

// One block: w.q, w.dout, w.lse and w.inner -> w.dq, and adds to the sums; without the factors that all share.
// of_stretch(at, n): called when w.dscores holds the gradients of the scores of columns [at, at + n).
template <class Sight, class OfStretch>
void attend_backward(const BackwardBuffers& w, const Band& band, int64_t rows, float factor, const Sight& sight,
                     KeySums sums, OfStretch&& of_stretch) {
  const int64_t C = band.C, ldq = padded_depth<T>(C), ld_t = padded_depth<T>(rows);
  const int64_t stretches = (band.columns + kStretch - 1) / kStretch;
  const int64_t stretch = round_up((band.columns + stretches - 1) / stretches, kPanel);
  transpose_rows(w.q_t, [&](int64_t r) { return w.q + r * ldq; }, C, rows);
  transpose_rows(w.dout_t, [&](int64_t r) { return w.dout + r * ldq; }, C, rows);
  for (int64_t at = 0; at < band.columns; at += stretch) {
    const int64_t n = std::min(stretch, band.columns - at), width = round_up(n, kPanel);
    for (int64_t group = 0; group < rows; group += kGroup) {
      const int64_t count = std::min(kGroup, rows - group);
      const int64_t seen_from = sight.row(group).begin - at, seen_to = sight.row(group + count - 1).end - at;
      for (int64_t c = 0; c < n; c += kKeys) {
        const int64_t m = std::min(kKeys, n - c);
        if (c + m > seen_from && c < seen_to) {
          multiply(w.scores, kKeys, w.q + group * ldq, ldq, columns_of(band.keys_nk, at + c, C), count, m, C);
          multiply(w.dweights, kKeys, w.dout + group * ldq, ldq, columns_of(band.values_nk, at + c, C), count, m, C);
        }
        for (int64_t i = 0; i < count; ++i) {
          const int64_t r = group + i;
          differentiate(sight.row(r), w.scores + i * kKeys, w.dweights + i * kKeys, w.weights + r * kStretch + c,
                        w.dscores + r * kStretchRow + kMargin + c, at + c, m, factor, w.lse[r], w.inner[r]);
        }
      }
    }
    const auto dscores = [&](int64_t r) { return w.dscores + r * kStretchRow + kMargin; };
    for (int64_t r = 0; r < rows; ++r) std::fill_n(dscores(r) + width, kMargin, T{});
    pack_kn(w.packed, [&](int64_t r) { return w.weights + r * kStretch; }, n, rows);
    multiply(sums.dv_t + at, sums.ld, w.dout_t, ld_t, w.packed, C, n, rows, true);
    pack_kn(w.packed, dscores, n, rows);
    multiply(sums.dk_t + at, sums.ld, w.q_t, ld_t, w.packed, C, n, rows, true);
    multiply(w.dq, round_up(C, kPanel), dscores(0), kStretchRow, rows_of(band.keys_kn, at), rows, C, n, at > 0,
             band.depth);
    of_stretch(at, n);
  }
}

// f(j, row [C]): every key's row of sums [C, ld].
template <class F>
void for_each_key(const BackwardBuffers& w, const float* sums, int64_t ld, int64_t keys, int64_t C, F&& f) {
  for (int64_t j = 0; j < keys; j += kPanel) {
    const int64_t count = std::min(kPanel, keys - j);
    transpose_rows(w.rows_of_keys, [&](int64_t c) { return sums + c * ld + j; }, count, C);
    for (int64_t i = 0; i < count; ++i) f(j + i, w.rows_of_keys + i * C);
  }
}

// out . dout of one row.
inline float dot(const T* a, const T* b, int64_t C) {
  Vec total(0.0f);
  for_each_stretch(C, [&](int64_t c, int64_t n) { total = fma(load(a + c, n), load(b + c, n), total); });
  return sum(total);
}

template <class Out, class In>
void store_row(Out* out, const In* row, int64_t C, float factor = 1) {
  for_each_stretch(C, [&](int64_t c, int64_t n) { store(out + c, load(row + c, n) * Vec(factor), n); });
}

// One query q [C] over n keys and values read in place: out [C] and the log-sum-exp. scores [n] holds what is added to
// the products (all zeros if nothing) and is overwritten. drop(l): what weight l is multiplied by after the softmax.
template <class Drop>
float attend_one(T* out, float* scores, const float* q, const T* keys, int64_t key_stride, const T* values,
                 int64_t value_stride, int64_t n, int64_t C, float scale, Drop&& drop) {
  constexpr int64_t kAtOnce = 4;  // independent sums hide the latency
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t j = 0; j < n; j += kAtOnce) {
    const int64_t count = std::min(kAtOnce, n - j);
    Vec sums[kAtOnce] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
    for_each_stretch(C, [&](int64_t c, int64_t lanes) {
      const Vec part = load(q + c, lanes);
      for (int64_t i = 0; i < kAtOnce; ++i) {
        sums[i] = fma(part, load(keys + (j + std::min(i, count - 1)) * key_stride + c, lanes), sums[i]);
      }
    });
    for (int64_t i = 0; i < count; ++i) {
      scores[j + i] = (scores[j + i] + sum(sums[i])) * scale;
      largest = std::max(largest, scores[j + i]);
    }
  }
  Vec sums(0.0f);
  for_each_stretch(n, [&](int64_t j, int64_t lanes) {
    const Vec weight = first(exp(load(scores + j, lanes) - Vec(largest)), lanes, Vec(0.0f));
    sums = sums + weight;
    store(scores + j, weight, lanes);
  });
  const float total = sum(sums);
  drop(scores);
  constexpr int64_t kVectors = 4;
  for (int64_t c = 0; c < C; c += kVectors * Vec::kLanes) {
    Vec totals[kVectors] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
    const int64_t left = C - c;
    for (int64_t j = 0; j < n; ++j) {
      const T* row = values + j * value_stride + c;
      const Vec weight(scores[j]);
      if (left >= kVectors * Vec::kLanes) {
        for (int64_t i = 0; i < kVectors; ++i) totals[i] = fma(weight, load(row + i * Vec::kLanes), totals[i]);
      } else {
        for (int64_t i = 0; i * Vec::kLanes < left; ++i) {
          totals[i] = fma(weight, load(row + i * Vec::kLanes, left - i * Vec::kLanes), totals[i]);
        }
      }
    }
    for (int64_t i = 0; i < kVectors && i * Vec::kLanes < left; ++i) {
      store(out + c + i * Vec::kLanes, totals[i] * Vec(1 / total), left - i * Vec::kLanes);
    }
  }
  return largest + std::log(total);
}

// Work for more than one thread: below, starting them takes longer.
inline bool worth_threads(int64_t multiplications) { return multiplications > 1 << 17; }

}  // namespace attention
}  // namespace RMOE_ISA
}  // namespace rmoe::kernels
