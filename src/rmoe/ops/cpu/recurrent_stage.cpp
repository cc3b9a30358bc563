// recurrent_stage by the CPU kernels; where there are none, by the reference.
#include "rmoe/kernels/cpu/recurrent_stage.h"

#include "rmoe/ops/checks.h"
#include "rmoe/ops/cpu/fp32.h"
#include "rmoe/ops/reference/recurrent_stage.h"

namespace rmoe::cpu {
namespace {

using kernels::Bf16;
using reference::OptionalTensor;

kernels::Cell cell_of(std::string_view name) {
  return name == "rnn" ? kernels::Cell::kRnn : name == "gru" ? kernels::Cell::kGru : kernels::Cell::kLstm;
}

// What the kernels read: the tensors live as long as this does.
struct Arguments {
  Arguments(std::string_view cell, const Tensor& x_, const OptionalTensor& h_, const OptionalTensor& c_,
            const OptionalTensor& projection_, const Tensor& w_ih_, const Tensor& w_hh_, const Tensor& b_ih_,
            const Tensor& b_hh_)
      : x(x_.contiguous()), h(h_), c(c_), projection(projection_), w_ih(w_ih_), w_hh(w_hh_), b_ih(b_ih_), b_hh(b_hh_) {
    stage.cell = cell_of(cell);
    stage.T = x.size(0), stage.D = x.size(1), stage.P = w_hh_.size(1);
    stage.x = data_if<float>(x), stage.narrow_x = data_if<Bf16>(x);
    stage.state = h, stage.cell_state = c, stage.projection = projection;
    stage.w_ih = w_ih, stage.w_hh = w_hh, stage.b_ih = b_ih, stage.b_hh = b_hh;
  }
  Tensor x;
  Fp32 h, c, projection, w_ih, w_hh, b_ih, b_hh;
  kernels::RecurrentStage stage;

  bool has_work() const { return stage.T > 0; }
};

template <class F>
bool with_stage_kernels(const Tensor& x, F&& f) {
  return with_fp32_products(x, &kernels::recurrent_stage_kernels<float>, &kernels::recurrent_stage_kernels<Bf16>, f);
}

std::tuple<Tensor, Tensor> recurrent_stage(std::string_view cell, const Tensor& x, const OptionalTensor& h,
                                           const OptionalTensor& c, const OptionalTensor& projection,
                                           const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                                           const Tensor& b_hh) {
  check::recurrent_stage(cell, x, h, c, projection, w_ih, w_hh, b_ih, b_hh);
  Tensor h_after, c_after;
  const bool done = with_stage_kernels(x, [&](const auto& table) {
    const Arguments a(cell, x, h, c, projection, w_ih, w_hh, b_ih, b_hh);
    const auto options = x.options().dtype(at::kFloat);
    h_after = at::empty({a.stage.T, a.stage.P}, options);
    c_after = cell == "lstm" ? at::empty_like(h_after) : at::empty({0}, options);
    if (a.has_work()) table.forward(a.stage, h_after.mutable_data_ptr<float>(), c_after.mutable_data_ptr<float>());
  });
  if (done) return {h_after, c_after};
  return reference::recurrent_stage(cell, x, h, c, projection, w_ih, w_hh, b_ih, b_hh);
}

reference::RecurrentGradients recurrent_stage_backward(const OptionalTensor& grad_h, const OptionalTensor& grad_c,
                                                       std::string_view cell, const Tensor& x, const OptionalTensor& h,
                                                       const OptionalTensor& c, const OptionalTensor& projection,
                                                       const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                                                       const Tensor& b_hh) {
  check::recurrent_stage(cell, x, h, c, projection, w_ih, w_hh, b_ih, b_hh);
  for (const OptionalTensor* grad : {&grad_h, &grad_c}) {
    if (*grad) check::shape("recurrent_stage_backward", "grad", **grad, {x.size(0), w_hh.size(1)});
  }
  reference::RecurrentGradients result;
  const bool done = with_stage_kernels(x, [&](const auto& table) {
    const Arguments a(cell, x, h, c, projection, w_ih, w_hh, b_ih, b_hh);
    const Fp32 g_h(grad_h), g_c(grad_c);
    const auto options = x.options().dtype(at::kFloat);
    const auto like = [&](bool present, const auto& t) {
      return present ? at::empty(t->sizes(), options) : at::empty({0}, options);
    };
    const auto fp32 = [&](const Tensor& t) { return at::empty(t.sizes(), options); };
    Tensor d_x = at::empty_like(a.x), d_h = like(h.has_value(), h), d_c = like(c.has_value(), c),
           d_projection = like(projection.has_value(), projection), d_w_ih = fp32(w_ih), d_w_hh = fp32(w_hh),
           d_b_ih = fp32(b_ih), d_b_hh = fp32(b_hh);
    const kernels::RecurrentStageGradients g{
        .state = g_h,
        .cell_state = g_c,
        .d_x = mutable_data_if<float>(d_x),
        .d_narrow_x = mutable_data_if<Bf16>(d_x),
        .d_projection = projection ? d_projection.mutable_data_ptr<float>() : nullptr,
        .d_state = h ? d_h.mutable_data_ptr<float>() : nullptr,
        .d_cell_state = c ? d_c.mutable_data_ptr<float>() : nullptr,
        .d_w_ih = d_w_ih.mutable_data_ptr<float>(),
        .d_w_hh = d_w_hh.mutable_data_ptr<float>(),
        .d_b_ih = d_b_ih.mutable_data_ptr<float>(),
        .d_b_hh = d_b_hh.mutable_data_ptr<float>()};
    table.backward(a.stage, g);
    const auto as = [](const Tensor& d, const Tensor& of) { return d.to(of.scalar_type()); };
    result = {d_x,
              h ? as(d_h, *h) : d_h,
              c ? as(d_c, *c) : d_c,
              projection ? as(d_projection, *projection) : d_projection,
              as(d_w_ih, w_ih),
              as(d_w_hh, w_hh),
              as(d_b_ih, b_ih),
              as(d_b_hh, b_hh)};
  });
  if (done) return result;
  return reference::recurrent_stage_backward(grad_h, grad_c, cell, x, h, c, projection, w_ih, w_hh, b_ih, b_hh);
}

}  // namespace

TORCH_LIBRARY_IMPL(rmoe, CPU, m) {
  m.impl("recurrent_stage", &recurrent_stage);
  m.impl("recurrent_stage_backward", &recurrent_stage_backward);
}

}  // namespace rmoe::cpu
