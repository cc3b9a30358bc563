// Causal attention by tiles (attention.h), with rotary positions and grouped queries: see kernels/cpu/attention.h.
#include <omp.h>

#include "rmoe/kernels/cpu/per_isa/attention.h"

namespace rmoe::kernels {
namespace RMOE_ISA {
namespace {

using namespace attention;

// Column c is key c: the block's first query sees `seen` of them, itself included, the next one more.
struct Causal {
  struct Row {
    int64_t begin, end;
    Vec score(Vec product, int64_t) const { return product; }
    All kept(int64_t) const { return {}; }
  };
  Row row(int64_t r) const { return {0, seen + r}; }
  int64_t seen;
};

// out[i] = x(i), turned to its position first + i where there is a rotation, for i < rows: [rows, padded_depth(C)].
template <class Row>
void gather_turned(T* out, const CausalAttention<T>& a, Row&& row, int64_t first, int64_t rows) {
  if (!a.cos) return gather(out, row, rows, a.C);
  const int64_t stride = padded_depth<T>(a.C), half = a.C / 2;
  for (int64_t i = 0; i < rows; ++i) {
    turn<false>(out + i * stride, row(i), a.cos + (first + i) * half, a.sin + (first + i) * half, half);
    std::memset(out + i * stride + a.C, 0, static_cast<size_t>(stride - a.C) * sizeof(T));
  }
}

// out = factor * the gradient `row` of a turned row, turned back.
void store_turned(T* out, const float* row, const CausalAttention<T>& a, int64_t position, float factor) {
  if (!a.cos) return store_row(out, row, a.C, factor);
  const int64_t half = a.C / 2;
  turn<true>(out, row, a.cos + position * half, a.sin + position * half, half, Vec(factor));
}

struct HeadForward {
  HeadForward(Carver& carver, int64_t C, int64_t keys) : w(carver, C) {
    carver.take(keys_nk, packed_size<T>(C, keys));
    carver.take(values_kn, packed_size<T>(keys, C));
    carver.take(turned, keys * padded_depth<T>(C));
  }
  ForwardBuffers w;
  T *keys_nk = nullptr, *values_kn = nullptr;
  T* turned = nullptr;  // [keys, padded_depth(C)]
};

struct HeadBackward {
  HeadBackward(Carver& carver, int64_t C, int64_t keys) : w(carver, C) {
    carver.take(keys_nk, packed_size<T>(C, keys));
    carver.take(keys_kn, packed_size<T>(keys, C));
    carver.take(values_nk, packed_size<T>(C, keys));
    carver.take(turned, keys * padded_depth<T>(C));
    carver.take(dk_t, C * stride_of(keys));
    carver.take(dv_t, C * stride_of(keys));
  }
  BackwardBuffers w;
  T *keys_nk = nullptr, *keys_kn = nullptr, *values_nk = nullptr, *turned = nullptr;
  float *dk_t = nullptr, *dv_t = nullptr;
};

struct FewQueries {
  FewQueries(Carver& carver, int64_t C, int64_t keys) {
    carver.take(q, C);
    carver.take(scores, keys);
    carver.take(turned, keys * padded_depth<T>(C));
  }
  float *q = nullptr, *scores = nullptr;
  T* turned = nullptr;  // [keys, padded_depth(C)]
};

void few_queries(const CausalAttention<T>& a, HeadRows<T> out, float* lse) {
  const int64_t heads = a.B * a.H, past = a.Sk - a.Sq, half = a.C / 2;
#pragma omp parallel for schedule(static) if (worth_threads(heads * a.Sq * a.Sk * a.C))
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t b = head / a.H, h = head % a.H, kv = h / (a.H / a.Hkv);
    const auto w = carve<FewQueries>(kOfThread, a.C, a.Sk);
    if (a.cos) gather_turned(w.turned, a, [&](int64_t j) { return a.k(b, kv, j); }, 0, a.Sk);
    const T* keys = a.cos ? w.turned : a.k(b, kv, 0);
    const int64_t key_stride = a.cos ? padded_depth<T>(a.C) : a.k.position;
    for (int64_t m = 0; m < a.Sq; ++m) {
      if (a.cos) {
        turn<false>(w.q, a.q(b, h, m), a.cos + m * half, a.sin + m * half, half);
      } else {
        store_row(w.q, a.q(b, h, m), a.C);
      }
      std::fill_n(w.scores, a.Sk, 0.0f);
      lse[head * a.Sq + m] = attend_one(out(b, h, m), w.scores, w.q, keys, key_stride, a.v(b, kv, 0), a.v.position,
                                        past + m + 1, a.C, scale_of(a.C), [](float*) {});
    }
  }
}

void forward(const CausalAttention<T>& a, HeadRows<T> out, float* lse) {
  if (a.Sq <= kFewQueries) return few_queries(a, out, lse);
  const int64_t groups = a.B * a.Hkv, group = a.H / a.Hkv, past = a.Sk - a.Sq;
  const int64_t queries = block_of_queries(), blocks = (a.Sq + queries - 1) / queries;
  const int64_t items = group * blocks;  // of a key-value head
  // Several pieces of a key-value head's work where there are fewer of them than threads; each packs the keys.
  const int64_t pieces = std::clamp<int64_t>(2 * omp_get_max_threads() / groups, 1, items);
  const float factor = scale_of(a.C) * kUnit;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int64_t kv_head = 0; kv_head < groups; ++kv_head) {
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t b = kv_head / a.Hkv, kv = kv_head % a.Hkv, ldo = round_up(a.C, kPanel);
      const auto buffers = carve<HeadForward>(kOfThread, a.C, a.Sk);
      if (a.cos) {
        gather_turned(buffers.turned, a, [&](int64_t j) { return a.k(b, kv, j); }, 0, a.Sk);
        pack_nk(buffers.keys_nk, [&](int64_t j) { return buffers.turned + j * padded_depth<T>(a.C); }, a.Sk, a.C);
      } else {
        pack_nk(buffers.keys_nk, [&](int64_t j) { return a.k(b, kv, j); }, a.Sk, a.C);
      }
      pack_kn(buffers.values_kn, [&](int64_t j) { return a.v(b, kv, j); }, a.C, a.Sk);
      // Long and short blocks mixed: pieces of equal work.
      for (int64_t item = piece; item < items; item += pieces) {
        const int64_t h = kv * group + item / blocks, m = item % blocks * queries;
        const int64_t rows = std::min(queries, a.Sq - m);
        gather_turned(buffers.w.q, a, [&](int64_t r) { return a.q(b, h, m + r); }, m, rows);
        const Band band = {buffers.keys_nk,       buffers.values_kn, nullptr, nullptr,
                           padded_depth<T>(a.Sk), past + m + rows,   a.C};
        attend(buffers.w, band, rows, factor, 1, Causal{past + m + 1}, lse + (b * a.H + h) * a.Sq + m);
        for (int64_t r = 0; r < rows; ++r) store_row(out(b, h, m + r), buffers.w.out + r * ldo, a.C);
      }
    }
  }
}

void backward(const CausalAttention<T>& a, HeadRows<const T> grad, HeadRows<const T> out, const float* lse,
              HeadRows<T> dq, HeadRows<T> dk, HeadRows<T> dv) {
  const int64_t groups = a.B * a.Hkv, group = a.H / a.Hkv, past = a.Sk - a.Sq;
  const int64_t ldo = round_up(a.C, kPanel), ld_keys = stride_of(a.Sk), queries = block_of_queries();
  const float scale = scale_of(a.C), factor = scale * kUnit;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t kv_head = 0; kv_head < groups; ++kv_head) {
    const int64_t b = kv_head / a.Hkv, kv = kv_head % a.Hkv, ldk = padded_depth<T>(a.C);
    const auto buffers = carve<HeadBackward>(kOfThread, a.C, a.Sk);
    const auto& w = buffers.w;
    gather_turned(buffers.turned, a, [&](int64_t j) { return a.k(b, kv, j); }, 0, a.Sk);
    pack_nk(buffers.keys_nk, [&](int64_t j) { return buffers.turned + j * ldk; }, a.Sk, a.C);
    pack_kn(buffers.keys_kn, [&](int64_t j) { return buffers.turned + j * ldk; }, a.C, a.Sk);
    pack_nk(buffers.values_nk, [&](int64_t j) { return a.v(b, kv, j); }, a.Sk, a.C);
    std::fill_n(buffers.dk_t, a.C * ld_keys, 0.0f);
    std::fill_n(buffers.dv_t, a.C * ld_keys, 0.0f);
    for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
      for (int64_t m = 0; m < a.Sq; m += queries) {
        const int64_t rows = std::min(queries, a.Sq - m);
        gather_turned(w.q, a, [&](int64_t r) { return a.q(b, h, m + r); }, m, rows);
        gather(w.dout, [&](int64_t r) { return grad(b, h, m + r); }, rows, a.C);
        for (int64_t r = 0; r < rows; ++r) {
          w.lse[r] = lse[(b * a.H + h) * a.Sq + m + r] * kUnit;
          w.inner[r] = dot(out(b, h, m + r), grad(b, h, m + r), a.C);
        }
        const Band band = {buffers.keys_nk, nullptr, buffers.values_nk, buffers.keys_kn, padded_depth<T>(a.Sk),
                           past + m + rows, a.C};
        attend_backward(w, band, rows, factor, Causal{past + m + 1}, {buffers.dk_t, buffers.dv_t, ld_keys},
                        [](int64_t, int64_t) {});
        for (int64_t r = 0; r < rows; ++r) store_turned(dq(b, h, m + r), w.dq + r * ldo, a, m + r, scale);
      }
    }
    for_each_key(w, buffers.dk_t, ld_keys, a.Sk, a.C,
                 [&](int64_t j, const float* row) { store_turned(dk(b, kv, j), row, a, j, scale); });
    for_each_key(w, buffers.dv_t, ld_keys, a.Sk, a.C,
                 [&](int64_t j, const float* row) { store_row(dv(b, kv, j), row, a.C); });
  }
}

void rotate(HeadRows<T> out, HeadRows<const T> x, const float* cos, const float* sin, int64_t B, int64_t S, int64_t H,
            int64_t C, bool inverse) {
  const int64_t half = C / 2;
#pragma omp parallel for collapse(2) schedule(static) if (worth_threads(B * S * H * C * 8))
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t i = 0; i < S; ++i) {
      for (int64_t h = 0; h < H; ++h) {
        const auto by = inverse ? &turn<true, T, T> : &turn<false, T, T>;
        by(out(b, h, i), x(b, h, i), cos + i * half, sin + i * half, half, Vec(1.0f));
      }
    }
  }
}

}  // namespace

extern const CausalAttentionKernels<T> causal_attention;
const CausalAttentionKernels<T> causal_attention = {&forward, &backward, &rotate};

}  // namespace RMOE_ISA
}  // namespace rmoe::kernels
