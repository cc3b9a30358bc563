#include "rmoe/ops/reference/span_attention.h"

#include <algorithm>
#include <cmath>

#include "rmoe/ops/cpu/head_rows.h"
#include "rmoe/ops/device_kernels.h"

namespace rmoe::reference {
namespace {

// Scores of all pairs held at a time: the L2 caches' size, not the model's.
constexpr int64_t kPieceElements = int64_t{1} << 21;

// The heads are taken in pieces of G. A [G, M, S+M] matrix of all query-key products has row m's window at columns
// m .. m+S-1; the band is that window as a [G, M, S] view.
struct Pieces {
  int64_t heads, M, S, C, step;
  double scale;

  Pieces(const Tensor& q, const Tensor& key_pe)
      : heads(q.size(0) * q.size(1)),
        M(q.size(2)),
        S(key_pe.size(1)),
        C(q.size(3)),
        step(std::clamp<int64_t>(kPieceElements / std::max<int64_t>(M * (S + M), 1), 1, std::max<int64_t>(heads, 1))),
        scale(1 / std::sqrt(static_cast<double>(C))) {}

  Tensor band(const Tensor& full) const {
    return full.as_strided({full.size(0), M, S}, {M * (S + M), S + M + 1, 1}, full.storage_offset());
  }

  // Scaled scores [G, M, S], in fp32 at least.
  Tensor scores(const Tensor& q, const Tensor& k, const Tensor& key_pe) const {
    const Tensor products = q.bmm(k.transpose(1, 2));
    const Tensor position = q.matmul(key_pe);
    Tensor sum =
        q.scalar_type() == at::kBFloat16 ? band(products).to(at::kFloat).add_(position) : band(products).add(position);
    return sum.mul_(scale);
  }

  template <class F>
  void for_each(F&& f) const {
    for (int64_t begin = 0; begin < heads; begin += step) f(begin, std::min(step, heads - begin));
  }
};

// [B, H, S, C] in the memory order [B, S, H, C], in which joining the heads is a view: that of the CPU's kernels.
Tensor by_heads(const Tensor& flat, const Tensor& like) {
  return flat.view(like.sizes()).transpose(1, 2).contiguous().transpose(1, 2);
}

Tensor flat(const Tensor& t) { return t.reshape({t.size(0) * t.size(1), t.size(2), t.size(3)}); }

// What kernels of another device compute: bf16, not too wide.
struct KernelInputs {
  using T = kernels::Bf16;

  static bool fit(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_pe) {
    return q.scalar_type() == at::kBFloat16 && k.scalar_type() == at::kBFloat16 && v.scalar_type() == at::kBFloat16 &&
           q.size(3) <= kernels::kSpanMostChannels && q.numel() > 0 && key_pe.numel() > 0;
  }
  KernelInputs(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& key_pe, double p, int64_t key)
      : q(cpu::with_rows(q_)),
        k(cpu::with_rows(k_)),
        v(cpu::with_rows(v_)),
        key_pe_SC(key_pe.t().to(at::kBFloat16).contiguous()),
        call{.B = q.size(0),
             .H = q.size(1),
             .M = q.size(2),
             .S = key_pe_SC.size(0),
             .C = q.size(3),
             .q = cpu::read_rows<T>(q, 1),
             .k = cpu::read_rows<T>(k, 1),
             .v = cpu::read_rows<T>(v, 1),
             .key_pe = elements<T>(key_pe_SC),
             .dropout = {static_cast<uint64_t>(key), p}} {}

  Tensor q, k, v, key_pe_SC;
  kernels::SpanAttentionCall call;
};

std::tuple<Tensor, Tensor> by_kernel(const DeviceCall& device, const KernelInputs& in) {
  Tensor out = cpu::empty_by_heads(in.q);
  Tensor lse = at::empty({in.call.B, in.call.H, in.call.M}, in.q.options().dtype(at::kFloat));
  device->span_attention(in.call, cpu::write_rows<KernelInputs::T>(out, 1), elements_to_write<float>(lse),
                         device.stream());
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_by_kernel(const DeviceCall& device, const KernelInputs& in,
                                                              const Tensor& grad, const Tensor& out, const Tensor& lse,
                                                              const Tensor& key_pe) {
  // Gradients of scores, which those of key_pe are a product with, held at a time.
  constexpr int64_t kMostScores = int64_t{1} << 25;
  using T = KernelInputs::T;
  const int64_t heads = in.call.B * in.call.H, M = in.call.M, S = in.call.S;
  const Tensor grads = cpu::with_rows(grad), lses = lse.contiguous();
  const Tensor inner = (grad.to(at::kFloat) * out.to(at::kFloat)).sum(-1).contiguous();
  Tensor dq = cpu::empty_by_heads(in.q), dk = cpu::empty_by_heads(in.k), dv = cpu::empty_by_heads(in.v);
  Tensor dkey_pe = at::zeros(key_pe.sizes(), lse.options());
  const int64_t step = std::clamp<int64_t>(kMostScores / (M * S), 1, heads);
  const Tensor d_scores = at::empty({step, M, S}, in.q.options()), qs = flat(in.q);
  for (int64_t begin = 0; begin < heads; begin += step) {
    const int64_t count = std::min(step, heads - begin);
    device->span_attention_backward({.call = in.call,
                                     .first_head = begin,
                                     .heads = count,
                                     .grad = cpu::read_rows<T>(grads, 1),
                                     .lse = elements<float>(lses),
                                     .inner = elements<float>(inner),
                                     .dq = cpu::write_rows<T>(dq, 1),
                                     .dk = cpu::write_rows<T>(dk, 1),
                                     .dv = cpu::write_rows<T>(dv, 1),
                                     .d_scores = elements_to_write<T>(d_scores)},
                                    device.stream());
    dkey_pe += qs.narrow(0, begin, count).flatten(0, 1).t().mm(d_scores.narrow(0, 0, count).flatten(0, 1));
  }
  return {dq, dk, dv, dkey_pe.to(key_pe.scalar_type())};
}

}  // namespace

std::tuple<Tensor, Tensor> span_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_pe,
                                          double dropout_p, int64_t dropout_key) {
  if (const DeviceCall device(q); device && KernelInputs::fit(q, k, v, key_pe))
    return by_kernel(device, KernelInputs(q, k, v, key_pe, dropout_p, dropout_key));
  const Pieces p(q, key_pe);
  const Tensor qs = flat(q), ks = flat(k), vs = flat(v), positions = key_pe.to(q.scalar_type());
  const auto precise = q.scalar_type() == at::kBFloat16 ? at::kFloat : q.scalar_type();
  Tensor out = at::empty(qs.sizes(), q.options());
  Tensor lse = at::empty({p.heads, p.M}, q.options().dtype(precise));
  Tensor skewed = at::zeros({p.step, p.M, p.S + p.M}, q.options());  // zero outside the band, always
  p.for_each([&](int64_t begin, int64_t count) {
    Tensor weights = p.scores(qs.narrow(0, begin, count), ks.narrow(0, begin, count), positions);
    const Tensor lse_piece = weights.logsumexp(-1);
    lse.narrow(0, begin, count).copy_(lse_piece);
    weights.sub_(lse_piece.unsqueeze(-1)).exp_();
    dropout_(weights, dropout_p, DropoutKey{static_cast<uint64_t>(dropout_key)}, begin * p.M * p.S);
    const Tensor full = skewed.narrow(0, 0, count);
    p.band(full).copy_(weights);
    Tensor out_piece = out.narrow(0, begin, count);
    at::bmm_out(out_piece, full, vs.narrow(0, begin, count));
  });
  return {by_heads(out, q), lse.view({q.size(0), q.size(1), p.M})};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> span_attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                                   const Tensor& v, const Tensor& key_pe,
                                                                   const Tensor& out, const Tensor& lse,
                                                                   double dropout_p, int64_t dropout_key) {
  if (const DeviceCall device(q); device && KernelInputs::fit(q, k, v, key_pe))
    return backward_by_kernel(device, KernelInputs(q, k, v, key_pe, dropout_p, dropout_key), grad, out, lse, key_pe);
  const Pieces p(q, key_pe);
  const DropoutKey key{static_cast<uint64_t>(dropout_key)};
  const Tensor qs = flat(q), ks = flat(k), vs = flat(v), grads = flat(grad), outs = flat(out);
  const Tensor lses = lse.reshape({p.heads, p.M}), positions = key_pe.to(q.scalar_type());
  const auto precise = lse.scalar_type();
  Tensor dq = at::empty(qs.sizes(), qs.options()), dk = at::empty(ks.sizes(), ks.options());
  Tensor dv = at::empty(vs.sizes(), vs.options());
  Tensor dkey_pe = at::zeros(key_pe.sizes(), key_pe.options().dtype(precise));
  Tensor skewed = at::zeros({p.step, p.M, p.S + p.M}, q.options());
  p.for_each([&](int64_t begin, int64_t count) {
    const Tensor q_g = qs.narrow(0, begin, count), k_g = ks.narrow(0, begin, count), v_g = vs.narrow(0, begin, count);
    const Tensor grad_g = grads.narrow(0, begin, count), out_g = outs.narrow(0, begin, count);
    const Tensor full = skewed.narrow(0, 0, count);

    const Tensor weights = p.scores(q_g, k_g, positions).sub_(lses.narrow(0, begin, count).unsqueeze(-1)).exp_();
    Tensor kept = weights;
    if (dropout_p > 0) {
      kept = weights.clone();
      dropout_(kept, dropout_p, key, begin * p.M * p.S);
    }
    p.band(full).copy_(kept);
    Tensor dv_g = dv.narrow(0, begin, count);
    at::bmm_out(dv_g, full.transpose(1, 2), grad_g);

    Tensor d_weights = p.band(grad_g.bmm(v_g.transpose(1, 2))).to(precise).contiguous();
    dropout_(d_weights, dropout_p, key, begin * p.M * p.S);
    // sum_l w_l dw_l is the same with and without dropout: grad . out (the identity of FlashAttention's backward).
    const Tensor inner = (grad_g.to(precise) * out_g.to(precise)).sum(-1, /*keepdim=*/true);
    const Tensor d_scores = d_weights.sub_(inner).mul_(weights).mul_(p.scale).to(q.scalar_type());

    p.band(full).copy_(d_scores);
    Tensor dq_g = dq.narrow(0, begin, count), dk_g = dk.narrow(0, begin, count);
    at::baddbmm_out(dq_g, d_scores.matmul(positions.t()), full, k_g);
    at::bmm_out(dk_g, full.transpose(1, 2), q_g);
    dkey_pe += q_g.reshape({-1, p.C}).t().mm(d_scores.reshape({-1, p.S}));
  });
  return {by_heads(dq, q), by_heads(dk, k), by_heads(dv, v), dkey_pe.to(key_pe.scalar_type())};
}

}  // namespace rmoe::reference
