// Attention over a fixed span before each token, in tiles of 64 queries, keys and offsets: four warps of 16 rows each.
// A query of a tile and a key of another are an offset apart that changes along the diagonal, so that two tiles of
// offsets meet each pair of tiles: their products with the queries pass through shared memory, where every element
// finds its own.
#include "rmoe/kernels/cuda/kernels.h"
#include "rmoe/kernels/cuda/tensor_core.h"

namespace rmoe::kernels::cuda {
namespace {

constexpr int kTile = 64, kRows = 16, kThreadsOfTile = kTile / kRows * kWarp;
constexpr int kPadding = 8;  // elements between rows, so that the lanes' reads fall into different banks
constexpr int kAcross = kTile + kPadding;
constexpr int kOffsets = 2 * kTile, kOffsetStride = kOffsets + 4;
constexpr int kColumns = kTile / 8;

__host__ __device__ constexpr int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }

// Arrays in shared memory, one after the other.
template <int kSteps>
struct Shared {
  static constexpr int kWidth = 16 * kSteps, kStride = kWidth + kPadding;
  static constexpr int kRowTile = kTile * kStride, kColumnTile = kWidth * kAcross;  // elements of bf16

  unsigned char* next;
  template <class T>
  __device__ T* take(int count) {
    T* array = reinterpret_cast<T*>(next);
    next += count * sizeof(T);
    return array;
  }
};

// Rows first ... first + count - 1 of a head, channels up to kWidth: as rows of `tile` or, where `across` is given, as
// columns of that one too. What lies outside of [0, rows) and of the C channels is 0.
template <int kSteps>
__device__ void load(const Bf16* head, int64_t stride, int64_t rows, int C, int64_t first, int count, Bf16* tile,
                     Bf16* across) {
  using S = Shared<kSteps>;
  constexpr int kPairs = S::kWidth / 2;
  const bool aligned = C % 2 == 0 && stride % 2 == 0 && reinterpret_cast<uintptr_t>(head) % sizeof(uint32_t) == 0;
  for (int i = static_cast<int>(threadIdx.x); i < count * kPairs; i += kThreadsOfTile) {
    const int r = i / kPairs, c = i % kPairs * 2;
    const int64_t row = first + r;
    const Bf16* at = head + row * stride + c;
    uint32_t pair = 0;
    if (row >= 0 && row < rows && c < C) {
      pair = aligned ? pair_at(at) : at[0].bits | (c + 1 < C ? uint32_t{at[1].bits} << 16 : 0);
    }
    if (tile) *reinterpret_cast<uint32_t*>(tile + r * S::kStride + c) = pair;
    if (across) {
      across[c * kAcross + r] = {static_cast<uint16_t>(pair)};
      across[(c + 1) * kAcross + r] = {static_cast<uint16_t>(pair >> 16)};
    }
  }
}

template <class T>
__device__ T* rows_of(const HeadRows<T>& rows, int64_t head, int64_t H) {
  return rows.data + head / H * rows.sequence + head % H * rows.head;
}

// As dropout counts weight l of query m.
__device__ inline uint64_t element(const SpanAttentionCall& a, int64_t head, int64_t m, int64_t l) {
  return static_cast<uint64_t>((head * a.M + m) * a.S + l);
}

// A warp's 16 rows of the products of queries and offsets, [16, 128]: column l % 128 is offset l, of the last two
// tiles.
__device__ inline void keep_offsets(float* ring, int tile_of_offsets, Result<kColumns>& products) {
  products.for_each(
      [&](Place at, float value) { ring[at.row * kOffsetStride + (tile_of_offsets % 2) * kTile + at.column] = value; });
}

template <int kSteps>
__global__ void __launch_bounds__(kThreadsOfTile)
    forward_kernel(SpanAttentionCall a, DropStream drop, HeadRows<Bf16> out, float* lse) {
  using S = Shared<kSteps>;
  RMOE_DYNAMIC_SHARED(memory);
  S shared{memory};
  Bf16 *keys = shared.template take<Bf16>(S::kRowTile), *offsets = shared.template take<Bf16>(S::kRowTile);
  Bf16* values = shared.template take<Bf16>(S::kColumnTile);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  float* ring = shared.template take<float>(kTile * kOffsetStride) + warp * kRows * kOffsetStride;
  const int64_t query_tiles = tiles_of(a.M), head = blockIdx.x / query_tiles;
  const int64_t m0 = blockIdx.x % query_tiles * kTile, row0 = m0 + warp * kRows;
  const int C = static_cast<int>(a.C), span = static_cast<int>(a.S);
  const float scale = rsqrtf(static_cast<float>(C));
  const Bf16 *k = rows_of(a.k, head, a.H) + m0 * a.k.position, *v = rows_of(a.v, head, a.H) + m0 * a.v.position;
  const int64_t key_rows = a.S + a.M - m0;

  load<kSteps>(rows_of(a.q, head, a.H), a.q.position, a.M, C, m0, kTile, keys, nullptr);
  __syncthreads();
  Left q[kSteps];
  RMOE_UNROLL
  for (int step = 0; step < kSteps; ++step) q[step] = Left::of(keys, S::kStride, warp * kRows, 16 * step);
  const auto queries = [&](int step) { return q[step]; };

  const Lane lane = Lane::own();
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  Result<2 * kSteps> o;
  const int64_t in_tile = a.M - m0 < kTile ? a.M - m0 : kTile;
  const int tiles = static_cast<int>(tiles_of(in_tile + a.S - 1));
  for (int tile = 0; tile < tiles; ++tile) {
    __syncthreads();  // the last ones are read
    load<kSteps>(k, a.k.position, key_rows, C, int64_t{tile} * kTile, kTile, keys, nullptr);
    load<kSteps>(v, a.v.position, key_rows, C, int64_t{tile} * kTile, kTile, nullptr, values);
    load<kSteps>(a.key_pe, C, a.S, C, int64_t{tile} * kTile, kTile, offsets, nullptr);
    __syncthreads();
    Result<kColumns> scores;
    scores.template add<kSteps>(queries, offsets, S::kStride);
    keep_offsets(ring, tile, scores);
    __syncwarp();
    scores = {};
    scores.template add<kSteps>(queries, keys, S::kStride);

    const auto offset_of = [&](Place at) { return tile * kTile + at.column - (warp * kRows + at.row); };
    float best[2] = {largest[0], largest[1]};
    scores.for_each([&](Place at, float& s) {
      const int l = offset_of(at);
      s = l >= 0 && l < span ? (s + ring[at.row * kOffsetStride + l % kOffsets]) * scale : -INFINITY;
      best[at.half] = fmaxf(best[at.half], s);
    });
    for (int i = 0; i < 2; ++i) {
      for (int apart = 1; apart < 4; apart *= 2) best[i] = fmaxf(best[i], __shfl_xor_sync(0xffffffffu, best[i], apart));
      const float shrink = expf(largest[i] - best[i]);
      largest[i] = best[i];
      sum[i] *= shrink;
      for (auto& of_channels : o.values) of_channels[2 * i] *= shrink, of_channels[2 * i + 1] *= shrink;
    }
    scores.for_each([&](Place at, float& s) {
      const float weight = expf(s - largest[at.half]);
      sum[at.half] += weight;
      const int l = offset_of(at);
      s = l >= 0 && l < span ? weight * drop.factor(element(a, head, row0 + at.row, l)) : 0;
    });
    o.template add<kTile / 16>([&](int step) { return scores.left(step); }, values, kAcross);
  }
  for (int i = 0; i < 2; ++i) {
    for (int apart = 1; apart < 4; apart *= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], apart);
    const int64_t m = row0 + lane.g + 8 * i;
    if (lane.t == 0 && m < a.M) lse[head * a.M + m] = largest[i] + logf(sum[i]);
  }
  Bf16* out_rows = rows_of(out, head, a.H);
  o.for_each([&](Place at, float value) {
    const int64_t m = row0 + at.row;
    if (m < a.M && at.column < C) out_rows[m * out.position + at.column] = from_float<Bf16>(value / sum[at.half]);
  });
}

// The weights of a warp's rows, from their scores, and what the scores' gradient is.
struct Backward {
  float scale;
  DropStream drop;

  struct Weight {
    float kept, d_score;  // the weight after dropout; the gradient of the product of query and key
  };
  __device__ Weight of(float product, float d_kept, float lse, float inner, uint64_t element) const {
    const float weight = expf(product * scale - lse), factor = drop.factor(element);
    return {weight * factor, weight * (d_kept * factor - inner) * scale};
  }
};

// Queries and, by offset, the scores' gradients: dq = ds k + ds' key_pe, where ds' is ds along the offsets.
template <int kSteps>
__global__ void __launch_bounds__(kThreadsOfTile) queries_kernel(SpanAttentionGradients g, DropStream drop) {
  using S = Shared<kSteps>;
  const SpanAttentionCall& a = g.call;
  RMOE_DYNAMIC_SHARED(memory);
  S shared{memory};
  Bf16 *keys = shared.template take<Bf16>(S::kRowTile), *values = shared.template take<Bf16>(S::kRowTile);
  Bf16 *offsets = shared.template take<Bf16>(S::kRowTile), *keys_across = shared.template take<Bf16>(S::kColumnTile);
  Bf16* offsets_across = shared.template take<Bf16>(S::kColumnTile);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  float* ring = shared.template take<float>(kTile * kOffsetStride) + warp * kRows * kOffsetStride;
  // Stride: 16 bytes more than the offsets, as the other tiles of bf16 have.
  constexpr int kGradientStride = kOffsets + kPadding;
  Bf16* d_ring = shared.template take<Bf16>(kTile * kGradientStride) + warp * kRows * kGradientStride;
  const int64_t query_tiles = tiles_of(a.M), of_call = blockIdx.x / query_tiles, head = g.first_head + of_call;
  const int64_t m0 = blockIdx.x % query_tiles * kTile, row0 = m0 + warp * kRows;
  const int C = static_cast<int>(a.C), span = static_cast<int>(a.S);
  const Backward backward{rsqrtf(static_cast<float>(C)), drop};
  const Bf16 *k = rows_of(a.k, head, a.H) + m0 * a.k.position, *v = rows_of(a.v, head, a.H) + m0 * a.v.position;
  const int64_t key_rows = a.S + a.M - m0;

  load<kSteps>(rows_of(a.q, head, a.H), a.q.position, a.M, C, m0, kTile, keys, nullptr);
  load<kSteps>(rows_of(g.grad, head, a.H), g.grad.position, a.M, C, m0, kTile, values, nullptr);
  __syncthreads();
  Left q[kSteps], grad[kSteps];
  RMOE_UNROLL
  for (int step = 0; step < kSteps; ++step) {
    q[step] = Left::of(keys, S::kStride, warp * kRows, 16 * step);
    grad[step] = Left::of(values, S::kStride, warp * kRows, 16 * step);
  }
  const auto queries = [&](int step) { return q[step]; };
  const int lane_id = static_cast<int>(threadIdx.x) % kWarp;
  for (int i = lane_id; i < kRows * kGradientStride; i += kWarp) d_ring[i] = Bf16{0};

  const Lane lane = Lane::own();
  float lse[2], inner[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t m = row0 + lane.g + 8 * i, there = head * a.M + (m < a.M ? m : a.M - 1);
    lse[i] = g.lse[there], inner[i] = g.inner[there];
  }
  Result<2 * kSteps> dq;
  const int64_t in_tile = a.M - m0 < kTile ? a.M - m0 : kTile;
  const int tiles = static_cast<int>(tiles_of(in_tile + a.S - 1));
  for (int tile = 0; tile <= tiles; ++tile) {
    __syncthreads();  // the last ones are read
    if (tile < tiles) {
      load<kSteps>(k, a.k.position, key_rows, C, int64_t{tile} * kTile, kTile, keys, keys_across);
      load<kSteps>(v, a.v.position, key_rows, C, int64_t{tile} * kTile, kTile, values, nullptr);
      load<kSteps>(a.key_pe, C, a.S, C, int64_t{tile} * kTile, kTile, offsets, nullptr);
    }
    if (tile > 0) load<kSteps>(a.key_pe, C, a.S, C, int64_t{tile - 1} * kTile, kTile, nullptr, offsets_across);
    __syncthreads();
    if (tile < tiles) {
      Result<kColumns> scores;
      scores.template add<kSteps>(queries, offsets, S::kStride);
      keep_offsets(ring, tile, scores);
      __syncwarp();
      scores = {};
      scores.template add<kSteps>(queries, keys, S::kStride);
      Result<kColumns> d;
      d.template add<kSteps>([&](int step) { return grad[step]; }, values, S::kStride);
      // From here on d is the scores' gradient.
      d.for_each_with(scores, [&](Place at, float& d_kept, float product) {
        const int64_t m = row0 + at.row;
        const int l = tile * kTile + at.column - (warp * kRows + at.row);
        const int column = l & (kOffsets - 1);
        if (l < 0 || l >= span || m >= a.M) {
          d_kept = 0;
        } else {
          product += ring[at.row * kOffsetStride + column];
          d_kept = backward.of(product, d_kept, lse[at.half], inner[at.half], element(a, head, m, l)).d_score;
        }
        if (l >= 0) d_ring[at.row * kGradientStride + column] = from_float<Bf16>(d_kept);
      });
      dq.template add<kTile / 16>([&](int step) { return d.left(step); }, keys_across, kAcross);
    }
    __syncwarp();
    if (tile == 0) continue;
    // The offsets of the tile before have met all their keys.
    const int begin = (tile - 1) * kTile, half = (tile - 1) % 2 * kTile;
    dq.template add<kTile / 16>([&](int step) { return Left::of(d_ring, kGradientStride, 0, half + 16 * step); },
                                offsets_across, kAcross);
    for (int i = lane_id; i < kRows * kTile; i += kWarp) {
      const int r = i / kTile, l = i % kTile;
      if (row0 + r < a.M && begin + l < span)
        g.d_scores[(of_call * a.M + row0 + r) * a.S + begin + l] = d_ring[r * kGradientStride + half + l];
    }
    __syncwarp();
  }
  Bf16* rows = rows_of(g.dq, head, a.H);
  dq.for_each([&](Place at, float value) {
    const int64_t m = row0 + at.row;
    if (m < a.M && at.column < C) rows[m * g.dq.position + at.column] = from_float<Bf16>(value);
  });
}

// Keys and values: a warp has 16 keys, and sees the queries of a tile as columns.
template <int kSteps>
__global__ void __launch_bounds__(kThreadsOfTile) keys_kernel(SpanAttentionGradients g, DropStream drop) {
  using S = Shared<kSteps>;
  const SpanAttentionCall& a = g.call;
  RMOE_DYNAMIC_SHARED(memory);
  S shared{memory};
  Bf16 *keys = shared.template take<Bf16>(S::kRowTile), *values = shared.template take<Bf16>(S::kRowTile);
  Bf16 *queries = shared.template take<Bf16>(S::kRowTile), *grads = shared.template take<Bf16>(S::kRowTile);
  Bf16 *queries_across = shared.template take<Bf16>(S::kColumnTile),
       *grads_across = shared.template take<Bf16>(S::kColumnTile);
  Bf16* offsets = shared.template take<Bf16>(2 * S::kRowTile);
  float* positions = shared.template take<float>(kTile * kOffsetStride);
  float *lse = shared.template take<float>(kTile), *inner = shared.template take<float>(kTile);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t key_rows = a.S + a.M, key_tiles = tiles_of(key_rows), head = g.first_head + blockIdx.x / key_tiles;
  const int64_t j0 = blockIdx.x % key_tiles * kTile;
  const int C = static_cast<int>(a.C);
  const Backward backward{rsqrtf(static_cast<float>(C)), drop};
  load<kSteps>(rows_of(a.k, head, a.H), a.k.position, key_rows, C, j0, kTile, keys, nullptr);
  load<kSteps>(rows_of(a.v, head, a.H), a.v.position, key_rows, C, j0, kTile, values, nullptr);

  Result<2 * kSteps> dk, dv;
  // The queries that see a key of this tile.
  const int64_t first = j0 < a.S ? 0 : (j0 - a.S + 1) / kTile * kTile;
  const int64_t end = j0 + kTile < a.M ? j0 + kTile : a.M;
  for (int64_t m0 = first; m0 < end; m0 += kTile) {
    const int64_t l0 = j0 - m0 - (kTile - 1);  // the smallest offset between the tiles
    __syncthreads();                           // the last ones are read
    load<kSteps>(rows_of(a.q, head, a.H), a.q.position, a.M, C, m0, kTile, queries, queries_across);
    load<kSteps>(rows_of(g.grad, head, a.H), g.grad.position, a.M, C, m0, kTile, grads, grads_across);
    load<kSteps>(a.key_pe, C, a.S, C, l0, kOffsets, offsets, nullptr);
    for (int r = static_cast<int>(threadIdx.x); r < kTile; r += kThreadsOfTile) {
      const int64_t there = head * a.M + (m0 + r < a.M ? m0 + r : a.M - 1);
      lse[r] = g.lse[there], inner[r] = g.inner[there];
    }
    __syncthreads();
    for (int half = 0; half < 2; ++half) {
      Result<kColumns> products;
      products.template add<kSteps>([&](int step) { return Left::of(queries, S::kStride, warp * kRows, 16 * step); },
                                    offsets, S::kStride, half * kTile);
      products.for_each([&](Place at, float value) {
        positions[(warp * kRows + at.row) * kOffsetStride + half * kTile + at.column] = value;
      });
    }
    __syncthreads();
    Result<kColumns> weights, d;
    weights.template add<kSteps>([&](int step) { return Left::of(keys, S::kStride, warp * kRows, 16 * step); }, queries,
                                 S::kStride);
    d.template add<kSteps>([&](int step) { return Left::of(values, S::kStride, warp * kRows, 16 * step); }, grads,
                           S::kStride);
    // From here on they are the weights after dropout and the scores' gradient.
    weights.for_each_with(d, [&](Place at, float& product, float& d_kept) {
      const int m = at.column, column = warp * kRows + at.row - m + kTile - 1;
      const int64_t l = l0 + column;
      if (l < 0 || l >= a.S || m0 + m >= a.M) {
        product = d_kept = 0;
        return;
      }
      product += positions[m * kOffsetStride + column];
      const auto [kept, d_score] = backward.of(product, d_kept, lse[m], inner[m], element(a, head, m0 + m, l));
      product = kept, d_kept = d_score;
    });
    dv.template add<kTile / 16>([&](int step) { return weights.left(step); }, grads_across, kAcross);
    dk.template add<kTile / 16>([&](int step) { return d.left(step); }, queries_across, kAcross);
  }
  const auto write = [&](Result<2 * kSteps>& result, const HeadRows<Bf16>& to) {
    Bf16* rows = rows_of(to, head, a.H);
    result.for_each([&](Place at, float value) {
      const int64_t j = j0 + warp * kRows + at.row;
      if (j < key_rows && at.column < C) rows[j * to.position + at.column] = from_float<Bf16>(value);
    });
  };
  write(dk, g.dk);
  write(dv, g.dv);
}

// f(the number of 16 channels that there is code for) for C channels.
template <class F>
void with_steps(int64_t C, F&& f) {
  // Wider ones want more shared memory than a device of compute capability 8.0 has.
  static_assert(kSpanMostChannels == 96);
  if (C <= 16) return f.template operator()<1>();
  if (C <= 32) return f.template operator()<2>();
  if (C <= 48) return f.template operator()<3>();
  if (C <= 64) return f.template operator()<4>();
  f.template operator()<6>();
}

}  // namespace

void span_attention(const SpanAttentionCall& a, HeadRows<Bf16> out, float* lse, Stream stream) {
  with_steps(a.C, [&]<int kSteps>() {
    using S = Shared<kSteps>;
    constexpr int kBytes = 2 * (2 * S::kRowTile + S::kColumnTile) + 4 * kTile * kOffsetStride;
    RMOE_LAUNCH_SHARED(forward_kernel<kSteps>, a.B * a.H * tiles_of(a.M), kThreadsOfTile, kBytes, stream, a,
                       DropStream::of(a.dropout), out, lse);
  });
}

void span_attention_backward(const SpanAttentionGradients& g, Stream stream) {
  const SpanAttentionCall& a = g.call;
  const DropStream drop = DropStream::of(a.dropout);
  with_steps(a.C, [&]<int kSteps>() {
    using S = Shared<kSteps>;
    constexpr int kBytesForQueries =
        2 * (3 * S::kRowTile + 2 * S::kColumnTile) + 4 * kTile * kOffsetStride + 2 * kTile * (kOffsets + kPadding);
    RMOE_LAUNCH_SHARED(queries_kernel<kSteps>, g.heads * tiles_of(a.M), kThreadsOfTile, kBytesForQueries, stream, g,
                       drop);
    constexpr int kBytesForKeys = 2 * (6 * S::kRowTile + 2 * S::kColumnTile) + 4 * (kTile * kOffsetStride + 2 * kTile);
    RMOE_LAUNCH_SHARED(keys_kernel<kSteps>, g.heads * tiles_of(a.S + a.M), kThreadsOfTile, kBytesForKeys, stream, g,
                       drop);
  });
}

}  // namespace rmoe::kernels::cuda
