// Projection, gates and cell over tiles of tokens (kernels/cpu/recurrent_stage.h).
#include "rmoe/kernels/cpu/recurrent_stage.h"

#include "rmoe/kernels/cpu/per_isa/fp32_product.h"

namespace rmoe::kernels {
namespace RMOE_ISA {
namespace {

using T = RMOE_TYPE;
using Stage = RecurrentStage;

constexpr int64_t kTile = 128;   // tokens whose gates stay in the second-level cache with the weights
constexpr int64_t kBlock = 256;  // tokens that a gradient of weights sums at once

enum Slot { kWeights, kPartials, kTileMemory, kPackBuffer };

// A tile's gates lie side by side in blocks of Q columns, P rounded up, so that every block is whole panels:
//   rnn [n]   lstm [i f g o]   gru [n_x r z n_h]
// where n_x is what the gru's candidate reads of the input and n_h what its reset gate multiplies. The input's product
// adds to the first G blocks and the state's to the last G; their gradients lie the same way.
struct Layout {
  explicit Layout(const Stage& s)
      : P(s.P),
        Q(round_up(s.P, kPanel)),
        G(s.gates()),
        I(s.input_width()),
        blocks(s.cell == Cell::kGru ? 4 : G),
        ld(blocks * Q + kPanel / 2),  // rows not a power of two apart, which would share cache lines
        hidden((blocks - G) * Q),
        input_order{0, 1, 2, 3},
        hidden_order{0, 1, 2, 3} {
    if (s.cell == Cell::kGru) input_order[0] = 2, input_order[1] = 0, input_order[2] = 1;
  }
  int64_t P, Q, G, I;
  int64_t blocks, ld;
  int64_t hidden;                           // first column that the state's product adds to
  int64_t input_order[4], hidden_order[4];  // which gate of the weights each block is

  int64_t columns() const { return G * Q; }  // of either product
};

// Row i, in blocks of Q, of a weight [GP, width] whose gates are taken in the given order; zeros between the blocks.
struct WeightRows {
  const float* weight;
  const float* zeros;
  int64_t P, Q, width;
  const int64_t* order;
  const float* operator()(int64_t i) const {
    const int64_t block = i / Q, p = i % Q;
    return p < P ? weight + (order[block] * P + p) * width : zeros;
  }
};

// All weights, packed for the products of forward and, where wanted, for the gradients of what they multiply.
struct Packed {
  Packed(Carver& carver, const Stage& s, const Layout& l, bool backward) {
    zeros = carver.take<float>(std::max(s.D, s.P) + kPanel);
    const auto take = [&](int64_t k, int64_t n) { return carver.take<T>(right_size<T>(k, n)); };
    if (s.projection) projection = take(s.D, l.Q);
    input = take(l.I, l.columns());
    if (s.state) hidden = take(s.P, l.columns());
    if (!backward) return;
    if (s.projection) projection_back = take(s.P, s.D);
    input_back = take(l.columns(), l.I);
    if (s.state) hidden_back = take(l.columns(), s.P);
  }

  float* zeros;
  T *projection = nullptr, *input = nullptr, *hidden = nullptr;
  T *projection_back = nullptr, *input_back = nullptr, *hidden_back = nullptr;

  // Within a parallel region: the threads share the panels.
  void fill(const Stage& s, const Layout& l) const {
    constexpr int64_t kIdentity[] = {0};
    const WeightRows proj{s.projection, zeros, s.P, l.Q, s.D, kIdentity};
    const WeightRows in{s.w_ih, zeros, s.P, l.Q, l.I, l.input_order};
    const WeightRows hid{s.w_hh, zeros, s.P, l.Q, s.P, l.hidden_order};
    pack_nk_all(projection, proj, l.Q, s.D);
    pack_nk_all(input, in, l.columns(), l.I);
    pack_nk_all(hidden, hid, l.columns(), s.P);
    pack_kn_all(projection_back, proj, s.D, s.P);
    pack_kn_all(input_back, in, l.I, l.columns());
    pack_kn_all(hidden_back, hid, s.P, l.columns());
#pragma omp barrier
  }

 private:
  static void pack_nk_all(T* out, const WeightRows& row, int64_t n, int64_t k) {
    if (!out) return;
    T* buffer = scratch<T>(kPackBuffer, pack_buffer_size<T>(k));
#pragma omp for schedule(static) nowait
    for (int64_t panel = 0; panel < (n + kPanel - 1) / kPanel; ++panel) pack_panel_nk(out, buffer, row, n, k, panel);
  }
  static void pack_kn_all(T* out, const WeightRows& row, int64_t n, int64_t k) {
    if (!out) return;
    T* buffer = scratch<T>(kPackBuffer, pack_buffer_size<T>(k));
#pragma omp for schedule(static) nowait
    for (int64_t panel = 0; panel < (n + kPanel - 1) / kPanel; ++panel) pack_panel_kn(out, buffer, row, n, k, panel);
  }
};

Packed packed_memory(const Stage& s, const Layout& l, bool backward) {
  Packed packed = carve<Packed>(kWeights, s, l, backward);
  std::memset(packed.zeros, 0, static_cast<size_t>(std::max(s.D, s.P) + kPanel) * sizeof(float));
  return packed;
}

// What forward computes of up to `rows` tokens, a tile at a time.
struct Tile {
  Tile(Carver& carver, const Stage& s, const Layout& l, int64_t rows) {
    x_memory = carver.take<T>(left_size<T>(kTile, s.D));
    if (s.projection) {
      u = carver.take<float>(rows * l.Q);
      u_memory = carver.take<T>(left_size<T>(kTile, s.P));
    }
    h_memory = carver.take<T>(left_size<T>(kTile, s.P));
    gates = carver.take<float>(rows * l.ld);
    bias = carver.take<float>(l.ld);
  }

  T *x_memory, *u_memory = nullptr, *h_memory;
  float* u = nullptr;  // [rows, Q]
  float* gates;        // [rows, ld]
  float* bias;         // of the gates

  void start(const Stage& s, const Layout& l) const {
    std::fill(bias, bias + l.ld, 0.0f);
    for (int64_t g = 0; g < l.G; ++g) {
      for (int64_t p = 0; p < l.P; ++p) {
        bias[g * l.Q + p] += s.b_ih[l.input_order[g] * l.P + p];
        bias[l.hidden + g * l.Q + p] += s.b_hh[l.hidden_order[g] * l.P + p];
      }
    }
  }

  static Left<T> rows_of_x(T* memory, const Stage& s, int64_t t, int64_t rows) {
    return s.x ? left(memory, s.x + t * s.D, s.D, rows, s.D) : left(memory, s.narrow_x + t * s.D, s.D, rows, s.D);
  }

  // Rows [i, i + rows) of u and of the gates before the activations, of tokens from t on.
  void fill_gates(const Stage& s, const Layout& l, const Packed& w, int64_t t, int64_t i, int64_t rows) const {
    Left<T> input = rows_of_x(x_memory, s, t, rows);
    if (s.projection) {
      product(u + i * l.Q, l.Q, input, right<T>(w.projection, s.D, l.Q), rows, l.Q, s.D);
      input = left(u_memory, u + i * l.Q, l.Q, rows, s.P);
    }
    float* out = gates + i * l.ld;
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(out + r * l.ld, bias, static_cast<size_t>(l.blocks * l.Q) * sizeof(float));
    }
    product(out, l.ld, input, right<T>(w.input, l.I, l.columns()), rows, l.columns(), l.I, true);
    if (!s.state) return;
    product(out + l.hidden, l.ld, left(h_memory, s.state + t * s.P, s.P, rows, s.P),
            right<T>(w.hidden, s.P, l.columns()), rows, l.columns(), s.P, true);
  }
};

// The cells' equations (torch.nn's). `gates` points to element p of the first block, `at` is the element's index in a
// [T, P] array, n counts the lanes that are there.

struct Gru {
  Vec r, z, n, hidden_n;
  Gru(const float* gates, int64_t Q)
      : r(sigmoid(load(gates + Q))), z(sigmoid(load(gates + 2 * Q))), hidden_n(load(gates + 3 * Q)) {
    n = tanh(fma(r, hidden_n, load(gates)));
  }
};

struct Lstm {
  Vec i, f, g, o;
  Lstm(const float* gates, int64_t Q)
      : i(sigmoid(load(gates))),
        f(sigmoid(load(gates + Q))),
        g(tanh(load(gates + 2 * Q))),
        o(sigmoid(load(gates + 3 * Q))) {}
};

Vec load_or_zero(const float* p, int64_t at, int64_t n) { return p ? load(p + at, n) : Vec(0.0f); }

void advance(const Stage& s, int64_t Q, const float* gates, int64_t at, int64_t n, float* h, float* c) {
  switch (s.cell) {
    case Cell::kRnn:
      store(h + at, tanh(load(gates)), n);
      break;
    case Cell::kGru: {
      const Gru v(gates, Q);
      store(h + at, fma(v.z, load_or_zero(s.state, at, n) - v.n, v.n), n);
      break;
    }
    case Cell::kLstm: {
      const Lstm v(gates, Q);
      const Vec cell = fma(v.f, load_or_zero(s.cell_state, at, n), v.i * v.g);
      store(c + at, cell, n);
      store(h + at, v.o * tanh(cell), n);
      break;
    }
  }
}

// Replaces the gates by the gradients of what they were before the activations; `d_state` gets the part of the state's
// gradient that does not pass through the gates.
void retreat(const Stage& s, const RecurrentStageGradients& g, int64_t Q, float* gates, int64_t at, int64_t n,
             float* d_state) {
  const Vec one(1.0f), d_h = load_or_zero(g.state, at, n);
  switch (s.cell) {
    case Cell::kRnn: {
      const Vec h = tanh(load(gates));
      store(gates, d_h * (one - h * h));
      break;
    }
    case Cell::kGru: {
      const Gru v(gates, Q);
      const Vec d_n = d_h * (one - v.z) * (one - v.n * v.n);
      store(gates, d_n);
      store(gates + Q, d_n * v.hidden_n * v.r * (one - v.r));
      store(gates + 2 * Q, d_h * (load_or_zero(s.state, at, n) - v.n) * v.z * (one - v.z));
      store(gates + 3 * Q, d_n * v.r);
      if (d_state) store(d_state, d_h * v.z);
      break;
    }
    case Cell::kLstm: {
      const Lstm v(gates, Q);
      const Vec before = load_or_zero(s.cell_state, at, n), c = tanh(fma(v.f, before, v.i * v.g));
      const Vec d_c = fma(d_h * v.o, one - c * c, load_or_zero(g.cell_state, at, n));
      store(gates, d_c * v.g * v.i * (one - v.i));
      store(gates + Q, d_c * before * v.f * (one - v.f));
      store(gates + 2 * Q, d_c * v.i * (one - v.g * v.g));
      store(gates + 3 * Q, d_h * c * v.o * (one - v.o));
      if (g.d_cell_state) store(g.d_cell_state + at, d_c * v.f, n);
      break;
    }
  }
}

// Decoding: the weights are read once, as they are.
void forward_few(const Stage& s, const Layout& l, float* h, float* c) {
  struct Memory {
    Memory(Carver& carver, const Stage& stage, const Layout& layout)
        : x(carver.take<float>(stage.T * stage.D)),
          u(carver.take<float>(stage.T * stage.P)),
          gates(carver.take<float>(stage.T * layout.ld)) {}
    float *x, *u, *gates;
  };
  const auto memory = carve<Memory>(kTileMemory, s, l);
  const float* x = s.x;
  if (!x) {
    for_each_stretch(s.T * s.D, [&](int64_t i, int64_t n) { store(memory.x + i, load(s.narrow_x + i, n), n); });
    x = memory.x;
  }
  const float* input = s.projection ? memory.u : x;
  std::fill(memory.gates, memory.gates + s.T * l.ld, 0.0f);
#pragma omp parallel
  {
    if (s.projection) {
#pragma omp for schedule(static)
      for (int64_t p = 0; p < s.P; ++p) {
        for (int64_t t = 0; t < s.T; ++t) memory.u[t * s.P + p] = dot(x + t * s.D, s.projection + p * s.D, s.D);
      }
    }
#pragma omp for schedule(static)
    for (int64_t p = 0; p < s.P; ++p) {
      for (int64_t t = 0; t < s.T; ++t) {
        float* gates = memory.gates + t * l.ld + p;
        for (int64_t b = 0; b < l.G; ++b) {
          const int64_t row = l.input_order[b] * s.P + p;
          gates[b * l.Q] += s.b_ih[row] + dot(input + t * l.I, s.w_ih + row * l.I, l.I);
        }
        for (int64_t b = 0; b < l.G; ++b) {
          const int64_t row = l.hidden_order[b] * s.P + p;
          float* gate = gates + l.hidden + b * l.Q;
          *gate += s.b_hh[row];
          if (s.state) *gate += dot(s.state + t * s.P, s.w_hh + row * s.P, s.P);
        }
      }
    }
  }
  for (int64_t t = 0; t < s.T; ++t) {
    for_each_stretch(s.P,
                     [&](int64_t p, int64_t n) { advance(s, l.Q, memory.gates + t * l.ld + p, t * s.P + p, n, h, c); });
  }
}

void forward(const Stage& s, float* h, float* c) {
  const Layout l(s);
  constexpr int64_t kFew = 8;
  if (s.T <= kFew) return forward_few(s, l, h, c);
  const Packed w = packed_memory(s, l, /*backward=*/false);
#pragma omp parallel
  {
    w.fill(s, l);
    const auto tile = carve<Tile>(kTileMemory, s, l, kTile);
    tile.start(s, l);
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < s.T; t += kTile) {
      const int64_t rows = std::min(kTile, s.T - t);
      tile.fill_gates(s, l, w, t, 0, rows);
      for (int64_t i = 0; i < rows; ++i) {
        for_each_stretch(
            s.P, [&](int64_t p, int64_t n) { advance(s, l.Q, tile.gates + i * l.ld + p, (t + i) * s.P + p, n, h, c); });
      }
    }
  }
}

// A chunk's sums over its tokens, rows and columns as the tiles have them.
struct PartialSums {
  PartialSums(Carver& carver, const Stage& s, const Layout& l)
      : input_ld(round_up(l.I, kPanel)), projection_ld(round_up(s.D, kPanel)) {
    input = carver.take<float>(l.columns() * input_ld);
    if (s.state) hidden = carver.take<float>(l.columns() * l.Q);
    if (s.projection) projection = carver.take<float>(l.Q * projection_ld);
    bias = carver.take<float>(l.ld);
  }
  int64_t input_ld, projection_ld;
  float *input, *hidden = nullptr, *projection = nullptr, *bias;
};

// A block of tokens in three passes over its tiles, each with weights or sums that stay in the second-level cache: the
// gates and their gradients, what these give to x and the state, and the sums over the tokens.
struct Block {
  Block(Carver& carver, const Stage& s, const Layout& l) : tile(carver, s, l, kBlock) {
    const int64_t widest = std::max(l.Q, s.D);
    d_gates_memory = carver.take<T>(left_size<T>(kTile, l.blocks * l.Q));
    d_x = carver.take<float>(kTile * round_up(s.D, kPanel));
    d_state = carver.take<float>(kBlock * l.Q);
    if (s.projection) {
      d_u = carver.take<float>(kBlock * l.Q);
      d_u_memory = carver.take<T>(left_size<T>(kTile, s.P));
    }
    left_memory = carver.take<T>(left_size<T>(kBlock, widest));
    transposed_memory = carver.take<T>(left_size<T>(l.Q, kBlock));
    right_memory = carver.take<T>(right_size<T>(kBlock, widest));
  }
  Tile tile;
  T *d_gates_memory, *d_u_memory = nullptr, *left_memory, *transposed_memory, *right_memory;
  float *d_x, *d_state, *d_u = nullptr;

  void run(const Stage& s, const Layout& l, const Packed& w, const RecurrentStageGradients& g, const PartialSums& sums,
           int64_t t, int64_t rows, bool first) {
    const auto for_each_tile = [&](auto&& f) {
      for (int64_t i = 0; i < rows; i += kTile) f(i, std::min(kTile, rows - i));
    };
    for_each_tile(
        [&](int64_t i, int64_t count) { differentiate_gates(s, l, w, g, sums, t, i, count, first && i == 0); });
    for_each_tile([&](int64_t i, int64_t count) { differentiate_inputs(s, l, w, g, t + i, i, count); });
    add_to_sums(s, l, sums, t, rows, first);
  }

 private:
  void differentiate_gates(const Stage& s, const Layout& l, const Packed& w, const RecurrentStageGradients& g,
                           const PartialSums& sums, int64_t t, int64_t i, int64_t rows, bool first) {
    tile.fill_gates(s, l, w, t + i, i, rows);
    for (int64_t r = i; r < i + rows; ++r) {
      float* gates = tile.gates + r * l.ld;
      for_each_stretch(s.P, [&](int64_t p, int64_t n) {
        retreat(s, g, l.Q, gates + p, (t + r) * s.P + p, n, g.d_state ? d_state + r * l.Q + p : nullptr);
      });
      const bool start = first && r == 0;
      for (int64_t j = 0; j < l.blocks * l.Q; j += Vec::kLanes) {
        store(sums.bias + j, start ? load(gates + j) : load(sums.bias + j) + load(gates + j));
      }
    }
  }

  void differentiate_inputs(const Stage& s, const Layout& l, const Packed& w, const RecurrentStageGradients& g,
                            int64_t t, int64_t i, int64_t rows) {
    const int64_t columns = l.columns(), x_ld = round_up(s.D, kPanel);
    const Left<T> d_gates = left(d_gates_memory, tile.gates + i * l.ld, l.ld, rows, l.blocks * l.Q);
    if (g.d_state) {
      float* d = d_state + i * l.Q;
      product(d, l.Q, d_gates.columns(l.hidden), right<T>(w.hidden_back, columns, s.P), rows, s.P, columns,
              s.cell == Cell::kGru);
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(g.d_state + (t + r) * s.P, d + r * l.Q, static_cast<size_t>(s.P) * sizeof(float));
      }
    }
    const Precision precision = g.d_narrow_x ? Precision::kBf16 : Precision::kFp32;
    if (s.projection) {
      float* d = d_u + i * l.Q;
      product(d, l.Q, d_gates, right<T>(w.input_back, columns, s.P), rows, s.P, columns);
      product(d_x, x_ld, left(d_u_memory, d, l.Q, rows, s.P), right<T>(w.projection_back, s.P, s.D), rows, s.D, s.P,
              false, precision);
    } else {
      product(d_x, x_ld, d_gates, right<T>(w.input_back, columns, s.D), rows, s.D, columns, false, precision);
    }
    for (int64_t r = 0; r < rows; ++r) {
      for_each_stretch(s.D, [&](int64_t j, int64_t n) {
        const Vec value = load(d_x + r * x_ld + j, n);
        const int64_t at = (t + r) * s.D + j;
        g.d_x ? store(g.d_x + at, value, n) : store(g.d_narrow_x + at, value, n);
      });
    }
  }

  void add_to_sums(const Stage& s, const Layout& l, const PartialSums& sums, int64_t t, int64_t rows, bool first) {
    // out [first row.., n] += d^T B, a block of Q columns of d at a time.
    const auto add = [&](float* out, int64_t out_ld, const float* d, int64_t d_ld, int64_t columns, const Right<T>& b,
                         int64_t n) {
      for (int64_t j = 0; j < columns; j += l.Q) {
        const int64_t m = std::min(l.Q, columns - j);
        const Left<T> by_token = left(left_memory, d + j, d_ld, rows, m);
        product(out + j * out_ld, out_ld, transposed(transposed_memory, by_token, m, rows), b, m, n, rows, !first);
      }
    };
    const auto pack = [&](const Left<T>& a, int64_t n) { return right_of_rows(right_memory, a, n, rows); };
    const Right<T> x = pack(tile.rows_of_x(left_memory, s, t, rows), s.D);
    if (s.projection) {
      add(sums.projection, sums.projection_ld, d_u, l.Q, s.P, x, s.D);
      const Right<T> u = pack(left(left_memory, tile.u, l.Q, rows, s.P), s.P);
      add(sums.input, sums.input_ld, tile.gates, l.ld, l.columns(), u, s.P);
    } else {
      add(sums.input, sums.input_ld, tile.gates, l.ld, l.columns(), x, s.D);
    }
    if (!s.state) return;
    const Right<T> h = pack(left(left_memory, s.state + t * s.P, s.P, rows, s.P), s.P);
    add(sums.hidden, l.Q, tile.gates + l.hidden, l.ld, l.columns(), h, s.P);
  }
};

void backward(const Stage& s, const RecurrentStageGradients& g) {
  const Layout l(s);
  Carver size;
  PartialSums(size, s, l);
  const Chunks chunks(s.T, size.used() / 4);
  auto* partial_memory = scratch<std::byte>(kPartials, std::max<int64_t>(chunks.count, 1) * size.used());
  const auto partial = [&](int64_t chunk) {
    Carver carver(partial_memory + chunk * size.used());
    return PartialSums(carver, s, l);
  };
  const Packed w = packed_memory(s, l, /*backward=*/true);
#pragma omp parallel
  {
    w.fill(s, l);
    Block block = carve<Block>(kTileMemory, s, l);
    block.tile.start(s, l);
#pragma omp for schedule(dynamic, 1)
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
      const PartialSums sums = partial(chunk);
      const int64_t begin = chunks.begin(chunk), end = chunks.begin(chunk + 1);
      for (int64_t t = begin; t < end; t += kBlock) {
        block.run(s, l, w, g, sums, t, std::min(kBlock, end - t), t == begin);
      }
    }
    const PartialSums sums = partial(0);
    const int64_t stride = size.used() / 4;
    const auto add = [&](float* out, const float* from, int64_t n) {
      add_partials(out, from, stride, chunks.count, n);
    };
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < l.G * s.P; ++i) {
      const int64_t b = i / s.P, p = i % s.P, row = b * l.Q + p;
      const int64_t in = l.input_order[b] * s.P + p, hid = l.hidden_order[b] * s.P + p;
      add(g.d_w_ih + in * l.I, sums.input + row * sums.input_ld, l.I);
      add(g.d_b_ih + in, sums.bias + row, 1);
      add(g.d_b_hh + hid, sums.bias + l.hidden + row, 1);
      if (s.state) {
        add(g.d_w_hh + hid * s.P, sums.hidden + row * l.Q, s.P);
      } else {
        std::fill(g.d_w_hh + hid * s.P, g.d_w_hh + (hid + 1) * s.P, 0.0f);
      }
    }
    if (s.projection) {
#pragma omp for schedule(static)
      for (int64_t p = 0; p < s.P; ++p) {
        add(g.d_projection + p * s.D, sums.projection + p * sums.projection_ld, s.D);
      }
    }
  }
}

}  // namespace

extern const RecurrentStageKernels<T> recurrent_stage;
const RecurrentStageKernels<T> recurrent_stage = {&forward, &backward};

}  // namespace RMOE_ISA
}  // namespace rmoe::kernels
