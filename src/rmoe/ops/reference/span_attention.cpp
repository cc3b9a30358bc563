#include "rmoe/ops/reference/span_attention.h"

#include <algorithm>
#include <cmath>

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

}  // namespace

std::tuple<Tensor, Tensor> span_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_pe,
                                          double dropout_p, int64_t dropout_key) {
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
