#include "rmoe/ops/reference/recurrent_stage.h"

#include "rmoe/ops/affine.h"
#include "rmoe/ops/device_kernels.h"

namespace rmoe::reference {
namespace {

// All of it in the type that routers compute in.
struct Precise {
  Precise(const Tensor& x_, const OptionalTensor& h_, const OptionalTensor& c_, const OptionalTensor& projection_,
          const Tensor& w_ih_, const Tensor& w_hh_, const Tensor& b_ih_, const Tensor& b_hh_)
      : x(at_least_fp32(x_)),
        w_ih(w_ih_.to(x.scalar_type())),
        w_hh(w_hh_.to(x.scalar_type())),
        b_ih(b_ih_.to(x.scalar_type())),
        b_hh(b_hh_.to(x.scalar_type())) {
    if (h_) h = h_->to(x.scalar_type());
    if (c_) c = c_->to(x.scalar_type());
    if (projection_) projection = projection_->to(x.scalar_type());
    input = projection ? at::linear(x, *projection) : x;
  }
  Tensor x;
  OptionalTensor h, c, projection;
  Tensor w_ih, w_hh, b_ih, b_hh;
  Tensor input;

  Tensor gates() const {
    const Tensor read = at::linear(input, w_ih, b_ih + b_hh);
    return h ? read + at::linear(*h, w_hh) : read;
  }
};

struct GruGates {
  Tensor r, z, n;   // [T, P]
  Tensor hidden_n;  // U_n h + b: what the reset gate multiplies
  explicit GruGates(const Precise& p) {
    const auto in = at::linear(p.input, p.w_ih, p.b_ih).chunk(3, 1);
    const Tensor hidden = p.h ? at::linear(*p.h, p.w_hh, p.b_hh) : p.b_hh.expand({p.x.size(0), p.b_hh.size(0)});
    const auto of_h = hidden.chunk(3, 1);
    r = (in[0] + of_h[0]).sigmoid_();
    z = (in[1] + of_h[1]).sigmoid_();
    hidden_n = of_h[2];
    n = at::addcmul(in[2], r, hidden_n).tanh_();
  }
};

struct LstmGates {
  Tensor i, f, g, o, c;  // c: the new one
  explicit LstmGates(const Precise& p) {
    const auto all = p.gates().chunk(4, 1);
    i = all[0].sigmoid(), f = all[1].sigmoid(), g = all[2].tanh(), o = all[3].sigmoid();
    c = i * g;
    if (p.c) c = at::addcmul(c, f, *p.c);
  }
};

// The cell's step for a device's kernels, from products of the library's. Keeps what it points to.
struct KernelStep {
  KernelStep(std::string_view cell, const Precise& p) {
    const bool gru = cell == "gru";
    in = (gru ? at::linear(p.input, p.w_ih, p.b_ih) : p.gates()).contiguous();
    if (gru) hidden = (p.h ? at::linear(*p.h, p.w_hh, p.b_hh) : p.b_hh).contiguous();
    if (p.h) h = p.h->contiguous();
    if (p.c) c = p.c->contiguous();
    const auto read = [](const Tensor& t) { return t.defined() ? elements<float>(t) : nullptr; };
    step = {.cell = gru             ? kernels::Cell::kGru
                    : cell == "rnn" ? kernels::Cell::kRnn
                                    : kernels::Cell::kLstm,
            .T = in.size(0),
            .P = p.w_hh.size(1),
            .in = read(in),
            .hidden = read(hidden),
            .h = read(h),
            .c = read(c),
            .new_h = nullptr,
            .new_c = nullptr};
  }
  Tensor state() const { return at::empty({step.T, step.P}, in.options()); }

  Tensor in, hidden, h, c;
  kernels::CellStep step;
};

Tensor or_zeros(const OptionalTensor& grad, const Tensor& like) { return grad ? *grad : at::zeros_like(like); }

}  // namespace

std::tuple<Tensor, Tensor> recurrent_stage(std::string_view cell, const Tensor& x, const OptionalTensor& h,
                                           const OptionalTensor& c, const OptionalTensor& projection,
                                           const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                                           const Tensor& b_hh) {
  const Precise p(x, h, c, projection, w_ih, w_hh, b_ih, b_hh);
  const Tensor none = at::empty({0}, p.x.options());
  if (const DeviceCall call(p.x); call && p.x.scalar_type() == at::kFloat) {
    KernelStep k(cell, p);
    const Tensor new_h = k.state(), new_c = cell == "lstm" ? k.state() : none;
    k.step.new_h = elements_to_write<float>(new_h);
    if (cell == "lstm") k.step.new_c = elements_to_write<float>(new_c);
    call->cell(k.step, call.stream());
    return {new_h, new_c};
  }
  if (cell == "gru") {
    const GruGates v(p);
    return {p.h ? at::lerp(v.n, *p.h, v.z) : v.n - v.z * v.n, none};  // (1 - z) n + z h
  }
  if (cell == "rnn") return {p.gates().tanh(), none};
  const LstmGates v(p);
  return {v.o * v.c.tanh(), v.c};
}

RecurrentGradients recurrent_stage_backward(const OptionalTensor& grad_h, const OptionalTensor& grad_c,
                                            std::string_view cell, const Tensor& x, const OptionalTensor& h,
                                            const OptionalTensor& c, const OptionalTensor& projection,
                                            const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                                            const Tensor& b_hh) {
  const Precise p(x, h, c, projection, w_ih, w_hh, b_ih, b_hh);
  // A new one for each result: results of an op share no memory.
  const auto none = [&] { return at::empty({0}, p.x.options()); };
  Tensor d_gates, d_hidden, d_h, d_c;  // d_hidden: of what the state adds to the gates
  if (const DeviceCall call(p.x); call && p.x.scalar_type() == at::kFloat) {
    const KernelStep k(cell, p);
    const bool gru = cell == "gru";
    d_gates = at::empty_like(k.in);
    d_hidden = gru ? at::empty_like(k.in) : d_gates;
    if (gru && p.h) d_h = k.state();
    if (p.c) d_c = k.state();
    const Tensor of_h = grad_h ? grad_h->to(at::kFloat).contiguous() : Tensor();
    const Tensor of_c = grad_c ? grad_c->to(at::kFloat).contiguous() : Tensor();
    const auto write = [](const Tensor& t) { return t.defined() ? elements_to_write<float>(t) : nullptr; };
    call->cell_backward({.step = k.step,
                         .grad_h = of_h.defined() ? elements<float>(of_h) : nullptr,
                         .grad_c = of_c.defined() ? elements<float>(of_c) : nullptr,
                         .d_gates = write(d_gates),
                         .d_hidden = gru ? write(d_hidden) : nullptr,
                         .d_h = write(d_h),
                         .d_c = write(d_c)},
                        call.stream());
    if (p.h) d_h = gru ? at::addmm(d_h, d_hidden, p.w_hh) : d_hidden.mm(p.w_hh);
  } else if (cell == "gru") {
    const GruGates v(p);
    const Tensor grad = or_zeros(grad_h, v.n);
    const Tensor d_n = grad * (1 - v.z) * (1 - v.n * v.n);  // before the tanh
    const Tensor d_z = grad * (p.h ? *p.h - v.n : -v.n) * v.z * (1 - v.z);
    const Tensor d_r = d_n * v.hidden_n * v.r * (1 - v.r);
    d_gates = at::cat({d_r, d_z, d_n}, 1);
    d_hidden = at::cat({d_r, d_z, d_n * v.r}, 1);
    if (p.h) d_h = at::addmm(grad * v.z, d_hidden, p.w_hh);
  } else {
    if (cell == "rnn") {
      const Tensor after = p.gates().tanh();
      d_gates = or_zeros(grad_h, after) * (1 - after * after);
    } else {
      const LstmGates v(p);
      const Tensor grad = or_zeros(grad_h, v.c), bent = v.c.tanh();
      const Tensor d_cell = grad * v.o * (1 - bent * bent) + or_zeros(grad_c, v.c);
      const Tensor d_f = p.c ? d_cell * *p.c * v.f * (1 - v.f) : at::zeros_like(v.c);
      d_gates = at::cat(
          {d_cell * v.g * v.i * (1 - v.i), d_f, d_cell * v.i * (1 - v.g * v.g), grad * bent * v.o * (1 - v.o)}, 1);
      if (p.c) d_c = d_cell * v.f;
    }
    d_hidden = d_gates;
    if (p.h) d_h = d_hidden.mm(p.w_hh);
  }
  const Tensor d_input = d_gates.mm(p.w_ih), d_w_ih = d_gates.t().mm(p.input);
  const Tensor d_w_hh = p.h ? d_hidden.t().mm(*p.h) : at::zeros(p.w_hh.sizes(), p.w_hh.options());
  const Tensor d_b_ih = d_gates.sum(0), d_b_hh = d_hidden.sum(0);
  const Tensor d_x = p.projection ? d_input.mm(*p.projection) : d_input;
  return {d_x.to(x.scalar_type()),
          p.h ? d_h.to(h->scalar_type()) : none(),
          p.c ? d_c.to(c->scalar_type()) : none(),
          p.projection ? d_input.t().mm(p.x).to(projection->scalar_type()) : none(),
          d_w_ih.to(w_ih.scalar_type()),
          d_w_hh.to(w_hh.scalar_type()),
          d_b_ih.to(b_ih.scalar_type()),
          d_b_hh.to(b_hh.scalar_type())};
}

}  // namespace rmoe::reference
