// An expert's weights are packed once for each task, a group of columns just before it is used. Forward gathers the
// rows of x while it copies them to where a product reads them; W1 and W3 stand side by side, so that an activation
// finds both pre-activations in one block of C. Backward multiplies the unweighted dy, so that the gradients of the
// routing weights come from the same product. Rows are independent of each other; what sums over them does so in
// stretches counted from the expert's first row. So nothing depends on how the rows are shared between threads.
#include "rmoe/kernels/cpu/experts.h"

#include <omp.h>

#include "rmoe/kernels/cpu/dropout.h"
#include "rmoe/kernels/cpu/per_isa/gemm.h"

namespace rmoe::kernels {
namespace RMOE_ISA {
namespace {

using T = RMOE_TYPE;

// In tiles fp32 takes its time, and B may come from the third-level cache as long as many rows use it.
constexpr bool kInTiles = kFp32InTiles && std::is_same_v<T, float>;

constexpr int64_t kChunk = kInTiles ? 512 : 128;  // rows of a product at once: with a group, C stays in the caches
constexpr int64_t kGroup = 512;                   // most columns at once
constexpr int64_t kGroupBytes = 1280 << 10;       // of a group of B, packed, which then stays in the second-level cache
constexpr int64_t kGathered = 640;                // rows of x at once in forward
constexpr int64_t kSummed = 992;   // rows that a weight gradient sums at once; off the powers of two, whose rows would
                                   // all lie in the same sets of the cache
constexpr int64_t kFewRows = 8;    // up to so many, weights are read in place: packing them would be the work
constexpr int64_t kFewPiece = 64;  // of their rows at once

enum Slot { kBlockOfC, kRowsOfA, kPackedIn, kPackedOut, kInner, kTransposed, kPackedRows, kBefore, kSharedInner };

// The distance between rows of a matrix [.., k] that a product reads from the left: at least its padded depth.
int64_t stride_of(int64_t k) {
  const int64_t depth = padded_depth<T>(k), line = 64 / static_cast<int64_t>(sizeof(T));
  return depth % (16 * line) == 0 ? depth + line : depth;
}

// out[i] = row(i) for i < rows, [rows, stride_of(k)] with zeros behind k.
template <class Row>
void gather(T* out, Row&& row, int64_t rows, int64_t k) {
  const int64_t stride = stride_of(k);
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(out + i * stride, row(i), static_cast<size_t>(k) * sizeof(T));
    std::memset(out + i * stride + k, 0, static_cast<size_t>(stride - k) * sizeof(T));
  }
}

// Columns of a B of depth k in a group: whole panels of W1 beside as many of W3.
int64_t group_of(int64_t k) {
  if constexpr (kInTiles) return kGroup;
  const int64_t bytes = packed_size<T>(k, 2 * kPanel) * static_cast<int64_t>(sizeof(T));
  return 2 * kPanel * std::clamp<int64_t>(kGroupBytes / std::max<int64_t>(bytes, 1), 1, kGroup / (2 * kPanel));
}

// f(j, n): groups of columns [j, j + n) of `count`.
template <class F>
void for_each_group(int64_t count, int64_t group, F&& f) {
  for (int64_t j = 0; j < count; j += group) f(j, std::min(group, count - j));
}

// f(i, c_i) for every row i of a [rows, lda] times the packed [k, n].
template <class F>
void product(const T* a, int64_t lda, const T* packed, int64_t rows, int64_t n, int64_t k, F&& f) {
  const int64_t ldc = round_up(n, kPanel);
  float* c = scratch<float>(kBlockOfC, kChunk * ldc);
  for_each_group(rows, kChunk, [&](int64_t i, int64_t count) {
    multiply(c, ldc, a + i * lda, lda, packed, count, n, k);
    for (int64_t r = 0; r < count; ++r) f(i + r, c + r * ldc);
  });
}

// Of elements [first, first + n) of the stream: what each is multiplied by, 0 or 1 / (1 - p).
void draw_factors(float* factors, int64_t n, const ExpertWeights<T>& experts, int64_t first) {
  const auto scale = static_cast<float>(1 / (1 - experts.dropout));
  while (n > 0) {
    const auto upper = static_cast<uint32_t>(static_cast<uint64_t>(first) >> 32), lower = static_cast<uint32_t>(first);
    const int64_t count = std::min<int64_t>(n, (int64_t{1} << 32) - lower);
    const DropoutStream stream(experts.dropout_key, upper, experts.dropout);
    for (int64_t i = 0; i < count; ++i) factors[i] = stream.keep(lower + static_cast<uint32_t>(i)) ? scale : 0.0f;
    factors += count, first += count, n -= count;
  }
}
// A dropped infinity is a zero.
inline Vec masked(Vec x, Vec factor) { return where_greater(factor, Vec(0.0f), x * factor, Vec(0.0f)); }

// The inner activations of columns [f, f + n) of one row, from products without bias: `gate` with W1, `up` with W3 or
// null.
void activate(const ExpertWeights<T>& e, int64_t expert, int64_t row, int64_t f, int64_t n, const float* gate,
              const float* up, T* inner, T* before) {
  float factors[kGroup];
  if (e.dropout > 0) draw_factors(factors, n, e, row * e.F + f);
  const float* bias = e.b1 ? e.b1 + expert * e.F + f : nullptr;
  for_each_stretch(n, [&](int64_t i, int64_t count) {
    Vec g = load(gate + i, count);
    if (bias) g = g + load(bias + i, count);
    if (before) store(before + f + i, g, count);
    Vec value;
    if (up) {
      const Vec u = load(up + i, count);
      if (before) store(before + e.F + f + i, u, count);
      value = g * sigmoid(g) * u;
    } else {
      value = max(Vec(0.0f), g);
    }
    if (e.dropout > 0) value = masked(value, load(factors + i, count));
    store(inner + i, value, count);
  });
}

// Columns [d, d + n) of one row's weighted answer, from the product without bias.
void answer(const ExpertWeights<T>& e, int64_t expert, int64_t d, int64_t n, const float* c, float weight, T* out) {
  const float* bias = e.b2 ? e.b2 + expert * e.D + d : nullptr;
  for_each_stretch(n, [&](int64_t i, int64_t count) {
    Vec value = load(c + i, count);
    if (bias) value = value + load(bias + i, count);
    store(out + i, value * Vec(weight), count);
  });
}

// Matrices of one expert, W float or T.
template <class W>
struct Matrices {
  const W *w1, *w2, *w3;
};
template <class F>
void with_matrices(const ExpertWeights<T>& e, int64_t expert, F&& f) {
  const int64_t at = expert * e.D * e.F;
  if (e.w1.master) {
    f(Matrices<float>{e.w1.master + at, e.w2.master + at, e.gated() ? e.w3.master + at : nullptr});
  } else {
    f(Matrices<T>{e.w1.narrow + at, e.w2.narrow + at, e.gated() ? e.w3.narrow + at : nullptr});
  }
}

const T* token_of(const T* x, const RoutedRows& routed, int64_t row, int64_t D) {
  return x + routed.slots_M[row] / routed.top_k * D;
}

// Columns of W1 in a group, beside as many of W3 where there is one.
int64_t inner_group(const ExpertWeights<T>& e) { return e.gated() ? group_of(e.D) / 2 : group_of(e.D); }

void forward_block(const ExpertsForward<T>& p, const RowBlock& block) {
  const ExpertWeights<T>& e = p.experts;
  const int64_t D = e.D, F = e.F, inner_stride = stride_of(F), sides = e.gated() ? 2 : 1;
  T* packed_in = scratch<T>(kPackedIn, sides * packed_size<T>(D, F + kPanel));
  T* packed_out = scratch<T>(kPackedOut, packed_size<T>(F, D));
  const int64_t most = std::min(kGathered, block.end - block.begin);
  // A group that is used once need not outlive the next: the same memory is still in the cache.
  const bool once = block.end - block.begin <= kGathered;
  T* a = scratch<T>(kRowsOfA, most * stride_of(D));
  T* inner = scratch<T>(kInner, most * inner_stride);
  with_matrices(e, block.expert, [&](const auto& w) {
    for (int64_t begin = block.begin; begin < block.end; begin += kGathered) {
      const int64_t rows = std::min(kGathered, block.end - begin);
      gather(a, [&](int64_t i) { return token_of(p.x, p.routed, begin + i, D); }, rows, D);
      for_each_group(F, inner_group(e), [&](int64_t f, int64_t n) {
        T* packed = packed_in + (once ? 0 : sides * packed_size<T>(D, f));
        const int64_t side = round_up(n, kPanel);
        if (begin == block.begin) {
          pack_nk(packed, [&](int64_t i) { return w.w1 + (f + i) * D; }, n, D);
          if (w.w3) pack_nk(packed + packed_size<T>(D, side), [&](int64_t i) { return w.w3 + (f + i) * D; }, n, D);
        }
        product(a, stride_of(D), packed, rows, w.w3 ? side + n : n, D, [&](int64_t i, const float* c) {
          activate(e, block.expert, begin + i, f, n, c, w.w3 ? c + side : nullptr, inner + i * inner_stride + f,
                   p.before ? p.before + (begin + i) * e.P() : nullptr);
        });
      });
      for (int64_t i = 0; i < rows && inner_stride > F; ++i) {
        std::memset(inner + i * inner_stride + F, 0, static_cast<size_t>(inner_stride - F) * sizeof(T));
      }
      for_each_group(D, group_of(F), [&](int64_t d, int64_t n) {
        T* packed = packed_out + (once ? 0 : packed_size<T>(F, d));
        if (begin == block.begin) pack_nk(packed, [&](int64_t i) { return w.w2 + (d + i) * F; }, n, F);
        product(inner, inner_stride, packed, rows, n, F, [&](int64_t i, const float* c) {
          answer(e, block.expert, d, n, c, p.weights[p.routed.slots_M[begin + i]], p.outputs + (begin + i) * D + d);
        });
      });
    }
  });
}

// For at most kFewRows rows; out [rows, kFewPiece].
template <class W>
void few_rows(float* out, const T* a, int64_t rows, const W* w, int64_t begin, int64_t end, int64_t k) {
  for (int64_t r = 0; r < rows; r += 4) {
    float* out_r = out + r * kFewPiece;
    const T* a_r = a + r * k;
    if (rows - r == 1) few_dots<1>(out_r, kFewPiece, a_r, w, begin, end, k);
    if (rows - r == 2) few_dots<2>(out_r, kFewPiece, a_r, w, begin, end, k);
    if (rows - r == 3) few_dots<3>(out_r, kFewPiece, a_r, w, begin, end, k);
    if (rows - r >= 4) few_dots<4>(out_r, kFewPiece, a_r, w, begin, end, k);
  }
}

// Inner activations [f, f + n) of a block of few rows: inner [rows, F].
void few_inner(const ExpertsForward<T>& p, const RowBlock& block, T* inner, int64_t f, int64_t n) {
  const ExpertWeights<T>& e = p.experts;
  const int64_t rows = block.end - block.begin;
  T* x = scratch<T>(kRowsOfA, kFewRows * e.D);
  float *gate = scratch<float>(kBlockOfC, 2 * kFewRows * kFewPiece), *up = gate + kFewRows * kFewPiece;
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(x + i * e.D, token_of(p.x, p.routed, block.begin + i, e.D), static_cast<size_t>(e.D) * sizeof(T));
  }
  with_matrices(e, block.expert, [&](const auto& w) {
    few_rows(gate, x, rows, w.w1, f, f + n, e.D);
    if (w.w3) few_rows(up, x, rows, w.w3, f, f + n, e.D);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = block.begin + i;
      activate(e, block.expert, row, f, n, gate + i * kFewPiece, w.w3 ? up + i * kFewPiece : nullptr,
               inner + i * e.F + f, p.before ? p.before + row * e.P() : nullptr);
    }
  });
}

// Columns [d, d + n) of their answers.
void few_answers(const ExpertsForward<T>& p, const RowBlock& block, const T* inner, int64_t d, int64_t n) {
  const ExpertWeights<T>& e = p.experts;
  const int64_t rows = block.end - block.begin;
  float* c = scratch<float>(kBlockOfC, kFewRows * kFewPiece);
  with_matrices(e, block.expert, [&](const auto& w) {
    few_rows(c, inner, rows, w.w2, d, d + n, e.F);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = block.begin + i;
      answer(e, block.expert, d, n, c + i * kFewPiece, p.weights[p.routed.slots_M[row]], p.outputs + row * e.D + d);
    }
  });
}

// out_t = the sum of its slots' rows.
void combine(T* out, const T* rows_MD, const RoutedRows& routed, int64_t t, int64_t D) {
  const int64_t* slots = routed.rows_TK + t * routed.top_k;
  for_each_stretch(D, [&](int64_t d, int64_t n) {
    Vec total(0.0f);
    for (int64_t k = 0; k < routed.top_k; ++k) {
      if (slots[k] >= 0) total = total + load(rows_MD + slots[k] * D + d, n);
    }
    store(out + t * D + d, total, n);
  });
}

// Few rows for every expert, as in decoding: the threads share each expert.
void forward_few(const ExpertsForward<T>& p) {
  const int64_t D = p.experts.D, F = p.experts.F;
  const int64_t inner_pieces = (F + kFewPiece - 1) / kFewPiece, outer_pieces = (D + kFewPiece - 1) / kFewPiece;
  T* inner = scratch<T>(kSharedInner, p.routed.rows * F);
#pragma omp parallel if (p.block_count * D * F > 32768)
  {
#pragma omp for collapse(2) schedule(static)
    for (int64_t b = 0; b < p.block_count; ++b) {
      for (int64_t piece = 0; piece < inner_pieces; ++piece) {
        const int64_t f = piece * kFewPiece;
        few_inner(p, p.blocks[b], inner + p.blocks[b].begin * F, f, std::min(kFewPiece, F - f));
      }
    }
#pragma omp for collapse(2) schedule(static)
    for (int64_t b = 0; b < p.block_count; ++b) {
      for (int64_t piece = 0; piece < outer_pieces; ++piece) {
        const int64_t d = piece * kFewPiece;
        few_answers(p, p.blocks[b], inner + p.blocks[b].begin * F, d, std::min(kFewPiece, D - d));
      }
    }
#pragma omp for schedule(static)
    for (int64_t t = 0; t < p.routed.tokens; ++t) combine(p.y, p.outputs, p.routed, t, D);
  }
}

void forward(const ExpertsForward<T>& p) {
  const int64_t D = p.experts.D, F = p.experts.F;
  const auto few = [](const RowBlock& block) { return block.end - block.begin <= kFewRows; };
  if (p.block_count == 0 || few(p.blocks[0])) return forward_few(p);  // the longest comes first
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t b = 0; b < p.block_count; ++b) {
      if (!few(p.blocks[b])) {
        forward_block(p, p.blocks[b]);
        continue;
      }
      T* inner = scratch<T>(kInner, kFewRows * F);
      for_each_group(F, kFewPiece, [&](int64_t f, int64_t n) { few_inner(p, p.blocks[b], inner, f, n); });
      for_each_group(D, kFewPiece, [&](int64_t d, int64_t n) { few_answers(p, p.blocks[b], inner, d, n); });
    }
#pragma omp for schedule(static)
    for (int64_t t = 0; t < p.routed.tokens; ++t) combine(p.y, p.outputs, p.routed, t, D);
  }
}

// Backward

// The gradients of the pre-activations of columns [f, f + n) of one row, weighted, and the weighted inner activations,
// from c = W2^T dy. Returns <c, inner>.
float activate_backward(const ExpertsBackward<T>& p, int64_t row, int64_t f, int64_t n, const float* c, float weight,
                        T* d_before, T* inner) {
  const ExpertWeights<T>& e = p.experts;
  const bool gated = e.gated();
  float factors[kGroup];
  if (e.dropout > 0) draw_factors(factors, n, e, row * e.F + f);
  const T* before = p.before + row * e.P() + f;
  Vec total(0.0f);
  for_each_stretch(n, [&](int64_t i, int64_t count) {
    const Vec g = load(before + i, count), d = load(c + i, count);
    // Where dropout kept the element, its factor.
    const Vec factor = e.dropout > 0 ? load(factors + i, count) : Vec(1.0f);
    const Vec d_value = e.dropout > 0 ? masked(d, factor) : d;
    Vec value, d_g;
    if (gated) {
      const Vec u = load(before + e.F + i, count), s = sigmoid(g), silu = g * s;
      value = silu * u;
      d_g = d_value * u * fma(silu, Vec(1.0f) - s, s);
      store(d_before + e.F + i, d_value * silu * Vec(weight), count);
    } else {
      value = max(Vec(0.0f), g);
      d_g = where_greater(g, Vec(0.0f), d_value, Vec(0.0f));
    }
    if (e.dropout > 0) value = masked(value, factor);
    total = fma(d, value, total);
    store(d_before + i, d_g * Vec(weight), count);
    store(inner + i, value * Vec(weight), count);
  });
  return sum(total);
}

float dot(const T* a, const float* b, int64_t n) {
  Vec total(0.0f);
  for_each_stretch(n, [&](int64_t i, int64_t count) { total = fma(load(a + i, count), load(b + i, count), total); });
  return sum(total);
}

// Rows [begin, end) of one expert: d_before [rows, stride_of(P)], inner [rows, F] (weighted), the gradients of the
// routing weights and of the gathered inputs. `pack`: the expert's weights are not yet in this thread's packs.
void backward_rows(const ExpertsBackward<T>& p, int64_t expert, int64_t begin, int64_t end, bool pack, T* d_before,
                   T* inner) {
  const ExpertWeights<T>& e = p.experts;
  const int64_t D = e.D, F = e.F, P = e.P(), stride = stride_of(P), rows = end - begin, at = expert * D * F;
  T* a = scratch<T>(kRowsOfA, rows * stride_of(D));
  T* packed_out = scratch<T>(kPackedOut, packed_size<T>(D, F));
  gather(a, [&](int64_t i) { return token_of(p.dy, p.routed, begin + i, D); }, rows, D);
  for (int64_t i = 0; i < rows; ++i) {
    p.d_weights[p.routed.slots_M[begin + i]] = e.b2 ? dot(a + i * stride_of(D), e.b2 + expert * D, D) : 0.0f;
  }
  for_each_group(F, group_of(D), [&](int64_t f, int64_t n) {
    T* packed = packed_out + packed_size<T>(D, f);
    if (pack) pack_kn(packed, [&](int64_t i) { return e.w2.master + at + i * F + f; }, n, D);
    product(a, stride_of(D), packed, rows, n, D, [&](int64_t i, const float* c) {
      const int64_t slot = p.routed.slots_M[begin + i];
      p.d_weights[slot] +=
          activate_backward(p, begin + i, f, n, c, p.weights[slot], d_before + i * stride + f, inner + i * F + f);
    });
  });
  for (int64_t i = 0; i < rows && stride > P; ++i) {
    std::memset(d_before + i * stride + P, 0, static_cast<size_t>(stride - P) * sizeof(T));
  }
  if (!p.dx) return;
  T* packed_in = scratch<T>(kPackedIn, packed_size<T>(P, D));
  for_each_group(D, group_of(P), [&](int64_t d, int64_t n) {
    T* packed = packed_in + packed_size<T>(P, d);
    const auto row = [&](int64_t i) { return (i < F ? e.w1.master + i * D : e.w3.master + (i - F) * D) + at + d; };
    if (pack) pack_kn(packed, row, n, P);
    product(d_before, stride, packed, rows, n, P, [&](int64_t i, const float* c) {
      T* out = p.d_inputs + (begin + i) * D + d;
      for_each_stretch(n, [&](int64_t j, int64_t count) { store(out + j, load(c + j, count), count); });
    });
  });
}

// Rows [i, i + m) of a weight's gradient, d(i) [n] (+)= sum over r < rows of left(r)[i] * right(r): the rows of an
// expert, or kSummed of them.
template <class Left, class Right, class Out>
void sum_outer(Left&& left, Right&& right, int64_t i, int64_t m, int64_t n, int64_t rows, bool add, Out&& d) {
  const int64_t depth = padded_depth<T>(rows);
  T* a = scratch<T>(kTransposed, m * depth);
  T* b = scratch<T>(kPackedRows, packed_size<T>(rows, n));
  transpose_rows(a, [&](int64_t r) { return left(r) + i; }, m, rows);
  pack_kn(b, right, n, rows);
  for_each_group(n, group_of(rows), [&](int64_t j, int64_t count) {
    product(a, depth, b + packed_size<T>(rows, j), m, count, rows,
            [&](int64_t r, const float* c) { write_gradient(d(i + r) + j, c, count, add); });
  });
}

// d [n] (+)= sum of weight(r) * row(r).
template <class Row, class Factor>
void sum_rows(float* d, Row&& row, Factor&& weight, int64_t n, int64_t rows, bool add) {
  for_each_stretch(n, [&](int64_t i, int64_t count) {
    // Sums of sums: one long chain would lose digits.
    constexpr int64_t kChain = 32;
    Vec total(0.0f);
    for (int64_t begin = 0; begin < rows; begin += kChain) {
      Vec part(0.0f);
      for (int64_t r = begin; r < std::min(rows, begin + kChain); ++r) {
        part = fma(load(row(r) + i, count), Vec(weight(r)), part);
      }
      total = total + part;
    }
    store(d + i, add ? load(d + i, count) + total : total, count);
  });
}

// Rows [i, i + m) of the gradients of W1 and W3 (one below the other, [P, D]) and of b1, from rows [begin, end).
void in_gradients(const ExpertsBackward<T>& p, int64_t expert, int64_t begin, int64_t end, const T* d_before, int64_t i,
                  int64_t m, bool add) {
  const ExpertWeights<T>& e = p.experts;
  const int64_t D = e.D, F = e.F, stride = stride_of(e.P());
  const auto left = [&](int64_t r) { return d_before + r * stride; };
  sum_outer(
      left, [&](int64_t r) { return token_of(p.x, p.routed, begin + r, D); }, i, m, D, end - begin, add,
      [&](int64_t f) { return f < F ? p.d_w1 + (expert * F + f) * D : p.d_w3 + (expert * F + f - F) * D; });
  if (p.d_b1 && i < F) {
    sum_rows(
        p.d_b1 + expert * F + i, [&](int64_t r) { return left(r) + i; }, [](int64_t) { return 1.0f; },
        std::min(m, F - i), end - begin, add);
  }
}

// Rows [i, i + m) of the gradients of W2 [D, F] and b2.
void out_gradients(const ExpertsBackward<T>& p, int64_t expert, int64_t begin, int64_t end, const T* inner, int64_t i,
                   int64_t m, bool add) {
  const int64_t D = p.experts.D, F = p.experts.F;
  const auto left = [&](int64_t r) { return token_of(p.dy, p.routed, begin + r, D); };
  sum_outer(
      left, [&](int64_t r) { return inner + r * F; }, i, m, F, end - begin, add,
      [&](int64_t d) { return p.d_w2 + (expert * D + d) * F; });
  if (p.d_b2) {
    sum_rows(
        p.d_b2 + expert * D + i, [&](int64_t r) { return left(r) + i; },
        [&](int64_t r) { return p.weights[p.routed.slots_M[begin + r]]; }, m, end - begin, add);
  }
}

// The gradients of an expert that no row reached.
void clear_gradients(const ExpertsBackward<T>& p, int64_t expert) {
  const int64_t D = p.experts.D, F = p.experts.F;
  const auto clear = [&](float* d, int64_t n) {
    if (d) std::memset(d + expert * n, 0, static_cast<size_t>(n) * sizeof(float));
  };
  for (float* d : {p.d_w1, p.d_w2, p.d_w3}) clear(d, D * F);
  clear(p.d_b1, F);
  clear(p.d_b2, D);
}

// f(begin, end) on stretches of rows that a weight gradient sums at once.
template <class F>
void for_each_sum(int64_t begin, int64_t end, F&& f) {
  for (int64_t i = begin; i < end; i += kSummed) f(i, std::min(end, i + kSummed));
}

void backward_expert(const ExpertsBackward<T>& p, const RowBlock& block) {
  const ExpertWeights<T>& e = p.experts;
  const int64_t most = std::min(kSummed, block.end - block.begin);
  T* d_before = scratch<T>(kBefore, most * stride_of(e.P()));
  T* inner = scratch<T>(kInner, most * e.F);
  if (most == 0 && p.d_w1) clear_gradients(p, block.expert);
  for_each_sum(block.begin, block.end, [&](int64_t begin, int64_t end) {
    const bool first = begin == block.begin;
    backward_rows(p, block.expert, begin, end, first, d_before, inner);
    if (!p.d_w1) return;
    in_gradients(p, block.expert, begin, end, d_before, 0, e.P(), !first);
    out_gradients(p, block.expert, begin, end, inner, 0, e.D, !first);
  });
}

int64_t before_stride(int64_t P) { return stride_of(P); }

void backward(const ExpertsBackward<T>& p) {
  const ExpertWeights<T>& e = p.experts;
  const int64_t slots = p.routed.tokens * p.routed.top_k, stride = stride_of(e.P());
  const int64_t tasks = p.split_block_count + p.whole_count;
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; ++task) {
      if (task >= p.split_block_count) {
        backward_expert(p, p.whole[task - p.split_block_count]);
        continue;
      }
      const RowBlock& block = p.split_blocks[task];
      const SplitExpert* of = p.split;
      while (of->expert != block.expert) ++of;
      for_each_sum(block.begin, block.end, [&](int64_t begin, int64_t end) {
        const int64_t at = of->offset + begin - of->begin;
        backward_rows(p, block.expert, begin, end, begin == block.begin, p.d_before + at * stride, p.inner + at * e.F);
      });
    }
    if (p.split_count > 0 && p.d_w1) {
      // As many pieces as threads of each matrix: every piece packs the other factor again.
      const int64_t threads = omp_get_num_threads();
#pragma omp for collapse(2) schedule(dynamic, 1)
      for (int64_t s = 0; s < p.split_count; ++s) {
        for (int64_t piece = 0; piece < 2 * threads; ++piece) {
          const SplitExpert& split = p.split[s];
          const int64_t height = piece < threads ? e.P() : e.D;
          const int64_t m = round_up((height + threads - 1) / threads, kPanel), i = piece % threads * m;
          if (i >= height) continue;
          for_each_sum(split.begin, split.end, [&](int64_t begin, int64_t end) {
            const int64_t at = split.offset + begin - split.begin, count = std::min(m, height - i);
            const bool add = begin > split.begin;
            if (piece < threads) {
              in_gradients(p, split.expert, begin, end, p.d_before + at * stride, i, count, add);
            } else {
              out_gradients(p, split.expert, begin, end, p.inner + at * e.F, i, count, add);
            }
          });
        }
      }
    }
    stream_fence();
#pragma omp for schedule(static) nowait
    for (int64_t slot = 0; slot < slots; ++slot) {
      if (p.routed.rows_TK[slot] < 0) p.d_weights[slot] = 0;
    }
    if (p.dx) {
#pragma omp for schedule(static)
      for (int64_t t = 0; t < p.routed.tokens; ++t) combine(p.dx, p.d_inputs, p.routed, t, e.D);
    }
  }
}

}  // namespace

extern const ExpertsKernels<T> experts;
const ExpertsKernels<T> experts = {&before_stride, &forward, &backward};

}  // namespace RMOE_ISA
}  // namespace rmoe::kernels
