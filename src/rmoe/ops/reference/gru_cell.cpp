#include "rmoe/ops/reference/gru_cell.h"

namespace rmoe::reference {
namespace {

struct Gates {
  Tensor r, z, n;   // [T, P]
  Tensor hidden_n;  // U_n h + b: what the reset gate multiplies
};

Gates gates_of(const Tensor& x_TP, const std::optional<Tensor>& state_TP, const Tensor& w_ih, const Tensor& w_hh,
               const Tensor& b_ih, const Tensor& b_hh) {
  const auto in = at::linear(x_TP, w_ih, b_ih).chunk(3, 1);
  const Tensor hidden = state_TP ? at::linear(*state_TP, w_hh, b_hh) : b_hh.expand({x_TP.size(0), b_hh.size(0)});
  const auto h = hidden.chunk(3, 1);
  Gates g;
  g.r = (in[0] + h[0]).sigmoid_();
  g.z = (in[1] + h[1]).sigmoid_();
  g.hidden_n = h[2];
  g.n = at::addcmul(in[2], g.r, g.hidden_n).tanh_();
  return g;
}

}  // namespace

Tensor gru_cell(const Tensor& x_TP, const std::optional<Tensor>& state_TP, const Tensor& w_ih, const Tensor& w_hh,
                const Tensor& b_ih, const Tensor& b_hh) {
  const Gates g = gates_of(x_TP, state_TP, w_ih, w_hh, b_ih, b_hh);
  if (!state_TP) return g.n - g.z * g.n;
  return at::lerp(g.n, *state_TP, g.z);  // (1 - z) n + z h
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gru_cell_backward(const Tensor& grad_TP, const Tensor& x_TP,
                                                                             const std::optional<Tensor>& state_TP,
                                                                             const Tensor& w_ih, const Tensor& w_hh,
                                                                             const Tensor& b_ih, const Tensor& b_hh) {
  const Gates g = gates_of(x_TP, state_TP, w_ih, w_hh, b_ih, b_hh);
  const Tensor d_n = grad_TP * (1 - g.z) * (1 - g.n * g.n);  // before the tanh
  const Tensor d_z = grad_TP * (state_TP ? *state_TP - g.n : -g.n) * g.z * (1 - g.z);
  const Tensor d_r = d_n * g.hidden_n * g.r * (1 - g.r);
  const Tensor d_in = at::cat({d_r, d_z, d_n}, 1);
  const Tensor d_hidden = at::cat({d_r, d_z, d_n * g.r}, 1);

  const Tensor d_state = at::addmm(grad_TP * g.z, d_hidden, w_hh);
  const Tensor d_w_hh = state_TP ? d_hidden.t().mm(*state_TP) : at::zeros(w_hh.sizes(), w_hh.options());
  return {d_in.mm(w_ih), d_state, d_in.t().mm(x_TP), d_w_hh, d_in.sum(0), d_hidden.sum(0)};
}

}  // namespace rmoe::reference
