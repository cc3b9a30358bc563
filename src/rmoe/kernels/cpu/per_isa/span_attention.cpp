// Attention over a fixed span by tiles (attention.h), with its position scores and dropout: see
// kernels/cpu/attention.h.
#include <omp.h>

#include "rmoe/kernels/cpu/per_isa/attention.h"

namespace rmoe::kernels {
namespace RMOE_ISA {
namespace {

using namespace attention;

// The queries of a block, from `first` on, of one head; column c of their band is key first + c.
template <bool kDropout>
struct Span {
  struct Row {
    int64_t begin, end;
    const float* position;  // of column c at [c]
    const KeptLanes& lanes;
    int64_t weight;  // of column 0
    Vec score(Vec product, int64_t c) const { return product + load(position + c); }
    auto kept(int64_t c) const {
      if constexpr (kDropout) {
        return lanes(weight + c);
      } else {
        return All{};
      }
    }
  };
  Row row(int64_t r) const { return {r, r + S, position + r * ld - r, lanes, r * S - r}; }
  int64_t S;
  const float* position;  // [rows, ld]: q . key_pe, with readable memory on both sides
  int64_t ld;
  KeptLanes lanes;  // from the block's first weight on
};

// [rows, position_stride(S)] behind a vector's worth of memory that is read but not used.
int64_t position_stride(int64_t S) { return round_up(S, kPanel) + kPanel; }

// key_pe [C, S] as B of the products q key_pe and dscores key_pe^T.
struct PackedPositions {
  PackedPositions(Carver& carver, const SpanAttention<T>* a, bool backward) {
    carver.take(kn, packed_size<T>(a->C, a->S));
    if (backward) carver.take(nk, packed_size<T>(a->S, a->C));
    if (backward) carver.take(dkey_pe, a->B * a->H * a->C * stride_of(a->S));
  }
  void pack(const SpanAttention<T>& a) {
    with_weight(a.key_pe, [&](const auto* key_pe) {
      pack_kn(kn, [&](int64_t c) { return key_pe + c * a.S; }, a.S, a.C);
      if (nk) pack_nk(nk, [&](int64_t c) { return key_pe + c * a.S; }, a.C, a.S);
    });
  }
  T *kn = nullptr, *nk = nullptr;
  float* dkey_pe = nullptr;  // [B H, C, stride_of(S)]: each head's
};

struct HeadForward {
  HeadForward(Carver& carver, const SpanAttention<T>* a, int64_t keys) : w(carver, a->C) {
    carver.take(keys_nk, packed_size<T>(a->C, keys));
    carver.take(values_kn, packed_size<T>(keys, a->C));
    carver.take(position, Vec::kLanes + kQueries * position_stride(a->S));
  }
  ForwardBuffers w;
  T *keys_nk = nullptr, *values_kn = nullptr;
  float* position = nullptr;
};

struct HeadBackward {
  HeadBackward(Carver& carver, const SpanAttention<T>* a, int64_t keys) : w(carver, a->C) {
    carver.take(keys_nk, packed_size<T>(a->C, keys));
    carver.take(keys_kn, packed_size<T>(keys, a->C));
    carver.take(values_nk, packed_size<T>(a->C, keys));
    carver.take(dk_t, a->C * stride_of(keys));
    carver.take(dv_t, a->C * stride_of(keys));
    carver.take(position, Vec::kLanes + kQueries * position_stride(a->S));
  }
  BackwardBuffers w;
  T *keys_nk = nullptr, *keys_kn = nullptr, *values_nk = nullptr;
  float *dk_t = nullptr, *dv_t = nullptr, *position = nullptr;
};

template <bool kDropout>
Span<kDropout> span_of(const SpanAttention<T>& a, int64_t head, int64_t m, const float* position) {
  return {a.S, position + Vec::kLanes, position_stride(a.S),
          KeptLanes(a.dropout_key, static_cast<uint64_t>((head * a.M + m) * a.S), a.dropout)};
}

// f(true or false as a type)
template <class F>
void with_dropout(double p, F&& f) {
  p > 0 ? f(std::true_type{}) : f(std::false_type{});
}

void few_queries(const SpanAttention<T>& a, HeadRows<T> out, float* lse) {
  const int64_t heads = a.B * a.H;
#pragma omp parallel for schedule(static) if (worth_threads(heads * a.M * a.S * a.C))
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t b = head / a.H, h = head % a.H;
    float* scores = scratch<float>(kOfThread, a.S + a.C);
    float* q = scores + a.S;
    for (int64_t m = 0; m < a.M; ++m) {
      store_row(q, a.q(b, h, m), a.C);
      std::fill_n(scores, a.S, 0.0f);
      with_weight(a.key_pe, [&](const auto* key_pe) {
        for (int64_t c = 0; c < a.C; ++c) {
          for_each_stretch(a.S, [&](int64_t l, int64_t n) {
            store(scores + l, fma(Vec(q[c]), load(key_pe + c * a.S + l, n), load(scores + l, n)), n);
          });
        }
      });
      const auto drop = [&](float* weights) {
        if (a.dropout == 0) return;
        const KeptLanes lanes(a.dropout_key, static_cast<uint64_t>((head * a.M + m) * a.S), a.dropout);
        const Vec grown(static_cast<float>(1 / (1 - a.dropout)));
        for_each_stretch(
            a.S, [&](int64_t l, int64_t n) { store(weights + l, apply(lanes(l), load(weights + l, n) * grown), n); });
      };
      lse[head * a.M + m] = attend_one(out(b, h, m), scores, q, a.k(b, h, m), a.k.position, a.v(b, h, m), a.v.position,
                                       a.S, a.C, scale_of(a.C), drop);
    }
  }
}

void forward(const SpanAttention<T>& a, HeadRows<T> out, float* lse) {
  if (a.M <= kFewQueries) return few_queries(a, out, lse);
  const int64_t heads = a.B * a.H, queries = block_of_queries(), blocks = (a.M + queries - 1) / queries;
  // A head's blocks in pieces where there are fewer heads than threads; each piece packs the keys that it sees.
  const int64_t pieces = std::clamp<int64_t>(2 * omp_get_max_threads() / heads, 1, blocks);
  const int64_t per_piece = (blocks + pieces - 1) / pieces * queries;
  const int64_t most_keys = std::min(per_piece, a.M) + a.S;
  auto positions = carve<PackedPositions>(kOfAll, &a, false);
  positions.pack(a);
  const float factor = scale_of(a.C) * kUnit;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t b = head / a.H, h = head % a.H, start = piece * per_piece, stop = std::min(a.M, start + per_piece);
      if (start >= stop) continue;
      const auto buffers = carve<HeadForward>(kOfThread, &a, most_keys);
      const int64_t keys = a.S + stop - start - 1;
      pack_nk(buffers.keys_nk, [&](int64_t j) { return a.k(b, h, start + j); }, keys, a.C);
      pack_kn(buffers.values_kn, [&](int64_t j) { return a.v(b, h, start + j); }, a.C, keys);
      const int64_t ldo = round_up(a.C, kPanel);
      for (int64_t m = start; m < stop; m += queries) {
        const int64_t rows = std::min(queries, stop - m);
        gather(buffers.w.q, [&](int64_t r) { return a.q(b, h, m + r); }, rows, a.C);
        multiply(buffers.position + Vec::kLanes, position_stride(a.S), buffers.w.q, padded_depth<T>(a.C), positions.kn,
                 rows, a.S, a.C);
        const Band band = {columns_of(buffers.keys_nk, m - start, a.C),
                           rows_of(buffers.values_kn, m - start),
                           nullptr,
                           nullptr,
                           padded_depth<T>(keys),
                           a.S + rows - 1,
                           a.C};
        with_dropout(a.dropout, [&](auto dropout) {
          attend(buffers.w, band, rows, factor, 1 - a.dropout, span_of<dropout.value>(a, head, m, buffers.position),
                 lse + head * a.M + m);
        });
        for (int64_t r = 0; r < rows; ++r) store_row(out(b, h, m + r), buffers.w.out + r * ldo, a.C);
      }
    }
  }
}

void backward(const SpanAttention<T>& a, HeadRows<const T> grad, HeadRows<const T> out, const float* lse,
              HeadRows<T> dq, HeadRows<T> dk, HeadRows<T> dv, float* dkey_pe) {
  const int64_t heads = a.B * a.H, keys = a.S + a.M, ld_keys = stride_of(keys), ld_pe = stride_of(a.S),
                queries = block_of_queries();
  const int64_t ldo = round_up(a.C, kPanel);
  auto positions = carve<PackedPositions>(kOfAll, &a, true);
  positions.pack(a);
  const float scale = scale_of(a.C), factor = scale * kUnit;
  const auto share = static_cast<float>(1 - a.dropout), of_scores = scale / share;
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t b = head / a.H, h = head % a.H;
      const auto buffers = carve<HeadBackward>(kOfThread, &a, keys);
      const auto& w = buffers.w;
      pack_nk(buffers.keys_nk, [&](int64_t j) { return a.k(b, h, j); }, keys, a.C);
      pack_kn(buffers.keys_kn, [&](int64_t j) { return a.k(b, h, j); }, a.C, keys);
      pack_nk(buffers.values_nk, [&](int64_t j) { return a.v(b, h, j); }, keys, a.C);
      std::fill_n(buffers.dk_t, a.C * ld_keys, 0.0f);
      std::fill_n(buffers.dv_t, a.C * ld_keys, 0.0f);
      float* dkey_pe_of_head = positions.dkey_pe + head * a.C * ld_pe;
      std::fill_n(dkey_pe_of_head, a.C * ld_pe, 0.0f);
      for (int64_t r = 0; r < kQueries; ++r) std::fill_n(w.dscores + r * kStretchRow, kMargin, T{});
      for (int64_t m = 0; m < a.M; m += queries) {
        const int64_t rows = std::min(queries, a.M - m);
        gather(w.q, [&](int64_t r) { return a.q(b, h, m + r); }, rows, a.C);
        gather(w.dout, [&](int64_t r) { return grad(b, h, m + r); }, rows, a.C);
        for (int64_t r = 0; r < rows; ++r) {
          w.lse[r] = lse[head * a.M + m + r] * kUnit;
          w.inner[r] = share * dot(out(b, h, m + r), grad(b, h, m + r), a.C);
        }
        multiply(buffers.position + Vec::kLanes, position_stride(a.S), w.q, padded_depth<T>(a.C), positions.kn, rows,
                 a.S, a.C);
        const Band band = {columns_of(buffers.keys_nk, m, a.C),
                           nullptr,
                           columns_of(buffers.values_nk, m, a.C),
                           rows_of(buffers.keys_kn, m),
                           padded_depth<T>(keys),
                           a.S + rows - 1,
                           a.C};
        const KeySums sums = {buffers.dk_t + m, buffers.dv_t + m, ld_keys};
        // Row r's gradients by distance: l = c - r, so every row begins one element later.
        const auto of_positions = [&](int64_t at, int64_t n) {
          const int64_t begin = std::max<int64_t>(at - (queries - 1), 0) / kPanel * kPanel, end = std::min(a.S, at + n);
          if (begin >= end) return;
          const T* skewed = w.dscores + kMargin - at + begin;
          multiply(w.dq, ldo, skewed, kStretchRow + 1, rows_of(positions.nk, begin), rows, a.C, end - begin, true,
                   padded_depth<T>(a.S));
          pack_kn(w.packed, [&](int64_t r) { return skewed + r * (kStretchRow + 1); }, end - begin, rows);
          multiply(dkey_pe_of_head + begin, ld_pe, w.q_t, padded_depth<T>(rows), w.packed, a.C, end - begin, rows,
                   true);
        };
        with_dropout(a.dropout, [&](auto dropout) {
          attend_backward(w, band, rows, factor, span_of<dropout.value>(a, head, m, buffers.position), sums,
                          of_positions);
        });
        for (int64_t r = 0; r < rows; ++r) store_row(dq(b, h, m + r), w.dq + r * ldo, a.C, of_scores);
      }
      for_each_key(w, buffers.dk_t, ld_keys, keys, a.C,
                   [&](int64_t j, const float* row) { store_row(dk(b, h, j), row, a.C, of_scores); });
      for_each_key(w, buffers.dv_t, ld_keys, keys, a.C,
                   [&](int64_t j, const float* row) { store_row(dv(b, h, j), row, a.C, 1 / share); });
    }
    // Every head's share, in the order of the heads.
#pragma omp for schedule(static)
    for (int64_t c = 0; c < a.C; ++c) {
      for_each_stretch(a.S, [&](int64_t l, int64_t n) {
        Vec total(0.0f);
        for (int64_t head = 0; head < heads; ++head) {
          total = total + load(positions.dkey_pe + (head * a.C + c) * ld_pe + l, n);
        }
        store(dkey_pe + c * a.S + l, total * Vec(of_scores), n);
      });
    }
  }
}

}  // namespace

extern const SpanAttentionKernels<T> span_attention;
const SpanAttentionKernels<T> span_attention = {&forward, &backward};

}  // namespace RMOE_ISA
}  // namespace rmoe::kernels
