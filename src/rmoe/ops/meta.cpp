// What the ops give, as shapes, dtypes and strides alone: the kernels of meta tensors and, through them, of the fake
// tensors that torch.compile and torch.export trace with. Sizes may be symbolic, and nothing is read. All results are
// contiguous, but for those of span_attention, which lie in the memory order [B, S, H, C].
#include "rmoe/ops/affine.h"
#include "rmoe/ops/checks.h"

namespace rmoe {
namespace {

using OptionalTensor = std::optional<Tensor>;
using SymShape = std::vector<c10::SymInt>;

Tensor empty(const SymShape& shape, const Tensor& like) { return at::empty_symint(shape, like.options()); }
Tensor empty(const SymShape& shape, const Tensor& like, at::ScalarType type) {
  return at::empty_symint(shape, like.options().dtype(type));
}
// Contiguous, whatever the strides of t.
Tensor like(const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); }
Tensor like_if(bool wanted, const Tensor& t) { return wanted ? like(t) : Tensor(); }
Tensor like_if(const OptionalTensor& t) { return t ? like(*t) : Tensor(); }
// What is absent is an empty tensor in these ops, undefined in others.
Tensor like_or_none(const OptionalTensor& t, const Tensor& of) { return t ? like(*t) : empty({0}, of); }
at::ScalarType precise(const Tensor& t) { return at_least_fp32(t.scalar_type()); }
Tensor by_heads(const Tensor& t) {
  return empty({t.sym_size(0), t.sym_size(2), t.sym_size(1), t.sym_size(3)}, t).transpose(1, 2);
}

Tensor linear(const Tensor& x, const Tensor& w, const OptionalTensor& b) {
  check::linear(x, w, b);
  SymShape shape = x.sym_sizes().vec();
  shape.back() = w.sym_size(0);
  return empty(shape, x);
}
std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor&, const Tensor& x, const Tensor& w,
                                                   const OptionalTensor& b, std::array<bool, 3> needed) {
  return {like_if(needed[0], x), like_if(needed[1], w), needed[2] ? like_if(b) : Tensor()};
}

std::tuple<Tensor, Tensor> recurrent_stage(std::string_view cell, const Tensor& x, const OptionalTensor& h,
                                           const OptionalTensor& c, const OptionalTensor& projection,
                                           const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                                           const Tensor& b_hh) {
  check::recurrent_stage(cell, x, h, c, projection, w_ih, w_hh, b_ih, b_hh);
  const SymShape state = {x.sym_size(0), w_hh.sym_size(1)};
  return {empty(state, x, precise(x)), empty(cell == "lstm" ? state : SymShape{0}, x, precise(x))};
}
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> recurrent_stage_backward(
    const OptionalTensor&, const OptionalTensor&, std::string_view, const Tensor& x, const OptionalTensor& h,
    const OptionalTensor& c, const OptionalTensor& projection, const Tensor& w_ih, const Tensor& w_hh,
    const Tensor& b_ih, const Tensor& b_hh) {
  const Tensor wide = empty({0}, x, precise(x));
  return {like(x),
          like_or_none(h, wide),
          like_or_none(c, wide),
          like_or_none(projection, wide),
          like(w_ih),
          like(w_hh),
          like(b_ih),
          like(b_hh)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gate(const Tensor& feature, const Tensor& weight,
                                                        const OptionalTensor& bias, int64_t top_k, bool) {
  check::gate(feature, weight, bias, top_k);
  const auto T = feature.sym_size(0), N = weight.sym_size(0);
  const auto type = precise(feature);
  return {empty({T, top_k}, feature, at::kLong), empty({T, top_k}, feature, type), empty({T, N}, feature, type),
          empty({T, N}, feature, type), empty({N}, feature, at::kLong)};
}
std::tuple<Tensor, Tensor, Tensor> gate_backward(const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                                 const Tensor& feature, const Tensor& weight,
                                                 const OptionalTensor& bias, const Tensor&, const Tensor&,
                                                 const Tensor& probs, bool) {
  return {like(feature), like(weight), like_or_none(bias, probs)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> added_gate(const Tensor& feature, const Tensor& weight,
                                                              const OptionalTensor& bias, const Tensor& added,
                                                              int64_t top_k, bool renormalize) {
  check::added_gate(feature, weight, bias, added, top_k);
  return gate(feature, weight, bias, top_k, renormalize);
}
std::tuple<Tensor, Tensor, Tensor, Tensor> added_gate_backward(const OptionalTensor&, const OptionalTensor&,
                                                               const OptionalTensor&, const Tensor& feature,
                                                               const Tensor& weight, const OptionalTensor& bias,
                                                               const Tensor& added, const Tensor&, const Tensor&,
                                                               const Tensor& probs, bool) {
  return {like(feature), like(weight), like_or_none(bias, probs), like(added)};
}

std::tuple<Tensor, Tensor> experts(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& w1,
                                   const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                                   const OptionalTensor& w3, double p, int64_t, bool keep) {
  check::experts(x, ids, weights, w1, b1, w2, b2, w3, p);
  const SymShape before = {ids.sym_size(0) * ids.sym_size(1), w1.sym_size(1) * (w3 ? 2 : 1)};
  return {like(x), empty(keep ? before : SymShape{0}, x)};
}
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> experts_backward(
    const Tensor&, const Tensor&, const Tensor& x, const Tensor&, const Tensor& weights, const Tensor& w1,
    const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2, const OptionalTensor& w3, double, int64_t,
    std::array<bool, 3> needed) {
  const auto parameter = [&](const OptionalTensor& t) { return needed[2] ? like_if(t) : Tensor(); };
  return {
      like_if(needed[0], x), like_if(needed[1], weights), parameter(w1), parameter(b1), parameter(w2), parameter(b2),
      parameter(w3)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm(const Tensor& x, const OptionalTensor& branch, const Tensor& weight,
                                                const OptionalTensor& bias, double, double p, int64_t) {
  check::norm(x, branch, weight, bias, p);
  SymShape rows = x.sym_sizes().vec();
  rows.pop_back();
  return {branch ? like(x) : empty({0}, x), like(x), empty(bias ? rows : SymShape{0}, x, precise(x)),
          empty(rows, x, precise(x))};
}
std::tuple<Tensor, Tensor, Tensor, Tensor> norm_backward(const Tensor&, const OptionalTensor&, const Tensor& sum,
                                                         const Tensor& weight, const OptionalTensor& bias,
                                                         const Tensor&, const Tensor& rstd, double p, int64_t) {
  return {like(sum), p > 0 ? like(sum) : empty({0}, sum), like(weight), like_or_none(bias, rstd)};
}

Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, bool) {
  check::rotate(x, cos, sin);
  return like(x);
}
std::tuple<Tensor, Tensor> causal_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const OptionalTensor& cos, const OptionalTensor& sin) {
  check::causal_attention(q, k, v, cos, sin);
  return {like(q), empty({q.sym_size(0), q.sym_size(2), q.sym_size(1)}, q, precise(q))};
}
std::tuple<Tensor, Tensor, Tensor> causal_attention_backward(const Tensor&, const Tensor& q, const Tensor& k,
                                                             const Tensor& v, const OptionalTensor&,
                                                             const OptionalTensor&, const Tensor&, const Tensor&) {
  return {like(q), like(k), like(v)};
}

std::tuple<Tensor, Tensor> span_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_pe,
                                          double p, int64_t) {
  check::span_attention(q, k, v, key_pe, p);
  return {by_heads(q), empty({q.sym_size(0), q.sym_size(1), q.sym_size(2)}, q, precise(q))};
}
std::tuple<Tensor, Tensor, Tensor, Tensor> span_attention_backward(const Tensor&, const Tensor& q, const Tensor& k,
                                                                   const Tensor& v, const Tensor& key_pe, const Tensor&,
                                                                   const Tensor&, double, int64_t) {
  return {by_heads(q), by_heads(k), by_heads(v), like(key_pe)};
}

std::tuple<Tensor, Tensor> linear_cross_entropy(const Tensor& x, const Tensor& w, const OptionalTensor& b,
                                                const Tensor& targets, int64_t, double, double) {
  check::linear_cross_entropy(x, w, b, targets);
  return {empty({}, x, precise(x)), empty({x.sym_size(0)}, x, precise(x))};
}
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_gradients(const Tensor& x, const Tensor& w,
                                                                                  const OptionalTensor& b,
                                                                                  const Tensor& targets, int64_t i,
                                                                                  double z, double scale) {
  auto [loss, losses] = linear_cross_entropy(x, w, b, targets, i, z, scale);
  return {loss, losses, like(x), like(w), b ? like(*b) : empty({0}, x)};
}

}  // namespace

TORCH_LIBRARY_IMPL(rmoe, Meta, m) {
  m.impl("linear", &linear);
  m.impl("linear_backward", &linear_backward);
  m.impl("recurrent_stage", &recurrent_stage);
  m.impl("recurrent_stage_backward", &recurrent_stage_backward);
  m.impl("gate", &gate);
  m.impl("gate_backward", &gate_backward);
  m.impl("added_gate", &added_gate);
  m.impl("added_gate_backward", &added_gate_backward);
  m.impl("experts", &experts);
  m.impl("experts_backward", &experts_backward);
  m.impl("norm", &norm);
  m.impl("norm_backward", &norm_backward);
  m.impl("rotate", &rotate);
  m.impl("causal_attention", &causal_attention);
  m.impl("causal_attention_backward", &causal_attention_backward);
  m.impl("span_attention", &span_attention);
  m.impl("span_attention_backward", &span_attention_backward);
  m.impl("linear_cross_entropy", &linear_cross_entropy);
  m.impl("linear_cross_entropy_gradients", &linear_cross_entropy_gradients);
}

}  // namespace rmoe
