// What surrounds the matrix products of the recurrent cells: an element of the state per thread.
#include "rmoe/kernels/cuda/kernels.h"

namespace rmoe::kernels::cuda {
namespace {

struct Gru {
  float r, z, n, hidden_n, h;
  __device__ Gru(const CellStep& p, int64_t i) {
    const int64_t t = i / p.P, j = i % p.P;
    const float* in = p.in + t * 3 * p.P + j;
    const float* hidden = p.hidden + (p.h ? t * 3 * p.P : 0) + j;
    r = sigmoid(in[0] + hidden[0]);
    z = sigmoid(in[p.P] + hidden[p.P]);
    hidden_n = hidden[2 * p.P];
    n = tanhf(in[2 * p.P] + r * hidden_n);
    h = p.h ? p.h[i] : 0;
  }
};

struct Lstm {
  float i, f, g, o, before, c;
  __device__ Lstm(const CellStep& p, int64_t at) {
    const float* in = p.in + at / p.P * 4 * p.P + at % p.P;
    i = sigmoid(in[0]), f = sigmoid(in[p.P]), g = tanhf(in[2 * p.P]), o = sigmoid(in[3 * p.P]);
    before = p.c ? p.c[at] : 0;
    c = i * g + f * before;
  }
};

__global__ void cell_kernel(CellStep p) {
  RMOE_FOR_EACH(at, p.T * p.P) {
    if (p.cell == Cell::kRnn) {
      p.new_h[at] = tanhf(p.in[at]);
    } else if (p.cell == Cell::kGru) {
      const Gru v(p, at);
      p.new_h[at] = v.n + v.z * (v.h - v.n);
    } else {
      const Lstm v(p, at);
      p.new_h[at] = v.o * tanhf(v.c);
      p.new_c[at] = v.c;
    }
  }
}

__global__ void cell_backward_kernel(CellGradients g) {
  const CellStep& p = g.step;
  RMOE_FOR_EACH(at, p.T * p.P) {
    const int64_t t = at / p.P, j = at % p.P;
    const float grad = g.grad_h ? g.grad_h[at] : 0;
    if (p.cell == Cell::kRnn) {
      const float after = tanhf(p.in[at]);
      g.d_gates[at] = grad * (1 - after * after);
    } else if (p.cell == Cell::kGru) {
      const Gru v(p, at);
      const float d_n = grad * (1 - v.z) * (1 - v.n * v.n), d_z = grad * (v.h - v.n) * v.z * (1 - v.z);
      const float d_r = d_n * v.hidden_n * v.r * (1 - v.r);
      float *gates = g.d_gates + t * 3 * p.P + j, *hidden = g.d_hidden + t * 3 * p.P + j;
      gates[0] = hidden[0] = d_r;
      gates[p.P] = hidden[p.P] = d_z;
      gates[2 * p.P] = d_n;
      hidden[2 * p.P] = d_n * v.r;
      if (g.d_h) g.d_h[at] = grad * v.z;
    } else {
      const Lstm v(p, at);
      const float bent = tanhf(v.c);
      const float d_cell = grad * v.o * (1 - bent * bent) + (g.grad_c ? g.grad_c[at] : 0);
      float* gates = g.d_gates + t * 4 * p.P + j;
      gates[0] = d_cell * v.g * v.i * (1 - v.i);
      gates[p.P] = d_cell * v.before * v.f * (1 - v.f);
      gates[2 * p.P] = d_cell * v.i * (1 - v.g * v.g);
      gates[3 * p.P] = grad * bent * v.o * (1 - v.o);
      if (g.d_c) g.d_c[at] = d_cell * v.f;
    }
  }
}

}  // namespace

void cell(const CellStep& p, Stream stream) {
  if (p.T * p.P > 0) RMOE_LAUNCH(cell_kernel, blocks_for(p.T * p.P), kThreads, stream, p);
}

void cell_backward(const CellGradients& p, Stream stream) {
  const int64_t n = p.step.T * p.step.P;
  if (n > 0) RMOE_LAUNCH(cell_backward_kernel, blocks_for(n), kThreads, stream, p);
}

}  // namespace rmoe::kernels::cuda
