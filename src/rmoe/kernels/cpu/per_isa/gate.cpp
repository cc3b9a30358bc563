// The linear head and what follows it, over tiles of tokens (kernels/cpu/gate.h).
#include "rmoe/kernels/cpu/gate.h"

#include "rmoe/kernels/cpu/per_isa/fp32_product.h"

namespace rmoe::kernels {
namespace RMOE_ISA {
namespace {

using T = RMOE_TYPE;

constexpr int64_t kTile = 128;

enum Slot { kWeight, kPartials, kTileMemory, kPackBuffer, kLogits };

Left<T> rows_of_feature(T* memory, const Gate& g, int64_t t, int64_t rows) {
  return g.feature ? left(memory, g.feature + t * g.R, g.R, rows, g.R)
                   : left(memory, g.narrow_feature + t * g.R, g.R, rows, g.R);
}

// p = softmax(z) over n elements.
void softmax(float* p, const float* z, int64_t n) {
  const Vec none(-INFINITY);
  Vec top = none;
  for_each_stretch(n, [&](int64_t i, int64_t count) { top = max(top, first(load(z + i, count), count, none)); });
  const Vec most(max(top));
  Vec total(0.0f);
  for_each_stretch(n, [&](int64_t i, int64_t count) {
    const Vec e = first(exp(load(z + i, count) - most), count, Vec(0.0f));
    store(p + i, e, count);
    total = total + e;
  });
  const Vec share(1.0f / sum(total));
  for_each_stretch(n, [&](int64_t i, int64_t count) { store(p + i, load(p + i, count) * share, count); });
}

// The K largest of p, of equal ones the lower index first; where all are nan, the first K.
void largest(int64_t* ids, const float* p, int64_t n, int64_t K) {
  // Insertion into the K best so far: most elements are below all of them.
  int64_t held = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (held == K && !(p[i] > p[ids[K - 1]])) continue;
    int64_t at = held < K ? held++ : K - 1;
    for (; at > 0 && p[i] > p[ids[at - 1]]; --at) ids[at] = ids[at - 1];
    ids[at] = i;
  }
}

void choose(const Gate& g, const GateOutput& out, int64_t t, int64_t* counts) {
  const float *logits = out.logits + t * g.N, *probs = out.probs + t * g.N;
  int64_t* ids = out.ids + t * g.K;
  float* weights = out.weights + t * g.K;
  largest(ids, probs, g.N, g.K);
  for (int64_t k = 0; k < g.K; ++k) {
    weights[k] = g.renormalize ? logits[ids[k]] : probs[ids[k]];
    ++counts[ids[k]];
  }
  if (g.renormalize) softmax(weights, weights, g.K);
}

void forward_few(const Gate& g, const GateOutput& out) {
  float* feature = scratch<float>(kTileMemory, g.R);
  for (int64_t t = 0; t < g.T; ++t) {
    for_each_stretch(g.R, [&](int64_t i, int64_t n) {
      store(feature + i, g.feature ? load(g.feature + t * g.R + i, n) : load(g.narrow_feature + t * g.R + i, n), n);
    });
    float* logits = out.logits + t * g.N;
    for (int64_t n = 0; n < g.N; ++n) {
      logits[n] = dot(feature, g.weight + n * g.R, g.R) + (g.bias ? g.bias[n] : 0.0f);
      if (g.added) logits[n] += g.added[t * g.N + n];
    }
    softmax(out.probs + t * g.N, logits, g.N);
    choose(g, out, t, out.counts);
  }
}

void forward(const Gate& g, const GateOutput& out) {
  std::fill(out.counts, out.counts + g.N, 0);
  constexpr int64_t kFew = 8;
  if (g.T <= kFew) return forward_few(g, out);
  const int64_t tiles = (g.T + kTile - 1) / kTile, ld = round_up(g.N, kPanel);
  T* packed = scratch<T>(kWeight, right_size<T>(g.R, g.N));
  // Of each tile, so that the threads do not share them.
  auto* counts = scratch<int64_t>(kPartials, tiles * g.N);
  std::fill(counts, counts + tiles * g.N, 0);
#pragma omp parallel
  {
    T* buffer = scratch<T>(kPackBuffer, pack_buffer_size<T>(g.R));
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < ld / kPanel; ++panel) {
      pack_panel_nk(packed, buffer, [&](int64_t n) { return g.weight + n * g.R; }, g.N, g.R, panel);
    }
    T* memory = scratch<T>(kTileMemory, left_size<T>(kTile, g.R));
    float* c = scratch<float>(kLogits, kTile * ld);
#pragma omp for schedule(dynamic, 1)
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t t = tile * kTile, rows = std::min(kTile, g.T - t);
      product(c, ld, rows_of_feature(memory, g, t, rows), right<T>(packed, g.R, g.N), rows, g.N, g.R);
      for (int64_t i = 0; i < rows; ++i) {
        float* logits = out.logits + (t + i) * g.N;
        for_each_stretch(g.N, [&](int64_t n, int64_t count) {
          const Vec bias = g.bias ? load(g.bias + n, count) : Vec(0.0f);
          const Vec sum = load(c + i * ld + n) + bias;
          store(logits + n, g.added ? sum + load(g.added + (t + i) * g.N + n, count) : sum, count);
        });
        softmax(out.probs + (t + i) * g.N, logits, g.N);
        choose(g, out, t + i, counts + tile * g.N);
      }
    }
  }
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t n = 0; n < g.N; ++n) out.counts[n] += counts[tile * g.N + n];
  }
}

// The gradient of one token's logits, d [N].
void differentiate(float* d, const Gate& g, const GateGradients& in, int64_t t) {
  const float *probs = in.probs + t * g.N, *weights = in.weights + t * g.K;
  const int64_t* ids = in.ids + t * g.K;
  const float* g_weights = in.g_weights ? in.g_weights + t * g.K : nullptr;
  for_each_stretch(g.N, [&](int64_t n, int64_t count) {
    store(d + n, in.g_probs ? load(in.g_probs + t * g.N + n, count) : Vec(0.0f));
  });
  const bool of_probs = in.g_probs || (g_weights && !g.renormalize);
  if (g_weights && !g.renormalize) {
    for (int64_t k = 0; k < g.K; ++k) d[ids[k]] += g_weights[k];
  }
  if (of_probs) {
    Vec total(0.0f);
    for_each_stretch(g.N, [&](int64_t n, int64_t count) { total = fma(load(probs + n, count), load(d + n), total); });
    const Vec mean(sum(total));
    for_each_stretch(g.N,
                     [&](int64_t n, int64_t count) { store(d + n, load(probs + n, count) * (load(d + n) - mean)); });
  }
  if (in.g_logits) {
    for_each_stretch(
        g.N, [&](int64_t n, int64_t count) { store(d + n, load(d + n) + load(in.g_logits + t * g.N + n, count)); });
  }
  if (g_weights && g.renormalize) {
    float mean = 0;
    for (int64_t k = 0; k < g.K; ++k) mean += weights[k] * g_weights[k];
    for (int64_t k = 0; k < g.K; ++k) d[ids[k]] += weights[k] * (g_weights[k] - mean);
  }
}

void backward(const Gate& g, const GateGradients& in) {
  const int64_t Q = round_up(g.N, kPanel), ld = Q + kPanel / 2, feature_ld = round_up(g.R, kPanel);
  const int64_t stride = Q * feature_ld + Q;  // of a chunk's sums: of the weight, then of the bias
  const Chunks chunks(g.T, stride);
  float* partials = scratch<float>(kPartials, std::max<int64_t>(chunks.count, 1) * stride);
  T* packed = scratch<T>(kWeight, right_size<T>(g.N, g.R));
  struct Memory {
    Memory(Carver& carver, int64_t R, int64_t N, int64_t d_ld, int64_t x_ld)
        : x(carver.take<T>(left_size<T>(kTile, R))),
          d_left(carver.take<T>(left_size<T>(kTile, N))),
          transposed(carver.take<T>(left_size<T>(N, kTile))),
          x_packed(carver.take<T>(right_size<T>(kTile, R))),
          d(carver.take<float>(kTile * d_ld)),
          d_x(carver.take<float>(kTile * x_ld)) {}
    T *x, *d_left, *transposed, *x_packed;
    float *d, *d_x;
  };
#pragma omp parallel
  {
    T* buffer = scratch<T>(kPackBuffer, pack_buffer_size<T>(g.N));
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < feature_ld / kPanel; ++panel) {
      pack_panel_kn(packed, buffer, [&](int64_t n) { return g.weight + n * g.R; }, g.R, g.N, panel);
    }
    const auto m = carve<Memory>(kTileMemory, g.R, g.N, ld, feature_ld);
#pragma omp for schedule(dynamic, 1)
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
      float *d_weight = partials + chunk * stride, *d_bias = d_weight + Q * feature_ld;
      const int64_t begin = chunks.begin(chunk), end = chunks.begin(chunk + 1);
      for (int64_t t = begin; t < end; t += kTile) {
        const int64_t rows = std::min(kTile, end - t);
        for (int64_t i = 0; i < rows; ++i) differentiate(m.d + i * ld, g, in, t + i);
        for (int64_t n = 0; n < g.N; n += Vec::kLanes) {
          // Sums of sums: one long chain would lose digits.
          constexpr int64_t kChain = 16;
          Vec total(0.0f);
          for (int64_t i = 0; i < rows; i += kChain) {
            Vec part(0.0f);
            for (int64_t r = i; r < std::min(rows, i + kChain); ++r) part = part + load(m.d + r * ld + n);
            total = total + part;
          }
          store(d_bias + n, t == begin ? total : load(d_bias + n) + total);
        }
        const Left<T> d = left(m.d_left, m.d, ld, rows, g.N);
        const Precision precision = in.d_narrow_feature ? Precision::kBf16 : Precision::kFp32;
        product(m.d_x, feature_ld, d, right<T>(packed, g.N, g.R), rows, g.R, g.N, false, precision);
        for (int64_t i = 0; i < rows; ++i) {
          for_each_stretch(g.R, [&](int64_t j, int64_t n) {
            const Vec value = load(m.d_x + i * feature_ld + j, n);
            const int64_t at = (t + i) * g.R + j;
            in.d_feature ? store(in.d_feature + at, value, n) : store(in.d_narrow_feature + at, value, n);
          });
        }
        const Right<T> x = right_of_rows(m.x_packed, rows_of_feature(m.x, g, t, rows), g.R, rows);
        product(d_weight, feature_ld, transposed(m.transposed, d, g.N, rows), x, g.N, g.R, rows, t > begin);
      }
    }
#pragma omp for schedule(static) nowait
    for (int64_t n = 0; n < g.N; ++n) {
      add_partials(in.d_weight + n * g.R, partials + n * feature_ld, stride, chunks.count, g.R);
    }
#pragma omp single
    if (in.d_bias) add_partials(in.d_bias, partials + Q * feature_ld, stride, chunks.count, g.N);
  }
}

}  // namespace

extern const GateKernels<T> gate;
const GateKernels<T> gate = {&forward, &backward};

}  // namespace RMOE_ISA
}  // namespace rmoe::kernels
