#include "rmoe/ops/reference/causal_attention.h"

#include <algorithm>
#include <cmath>

#include "rmoe/ops/affine.h"

namespace rmoe::reference {
namespace {

// Heads [G, S, C] of one sequence and the group of query heads of one key-value head: [G, Sq, C] and [1, Sk, C].
class CausalHeads {
 public:
  CausalHeads(const Tensor& q, const Tensor& k)
      : q_(q),
        group_(q.size(2) / std::max<int64_t>(k.size(2), 1)),
        scale_(1 / std::sqrt(static_cast<double>(q.size(3)))) {
    const int64_t Sq = q.size(1), Sk = k.size(1);
    hidden_ = at::ones({Sq, Sk}, q.options().dtype(at::kBool)).triu(Sk - Sq + 1);
  }

  // [group, Sq, C] of query-like tensors, [Sk, C] of key-like ones.
  Tensor queries(const Tensor& t, int64_t b, int64_t kv) const {
    return t.select(0, b).narrow(1, kv * group_, group_).transpose(0, 1);
  }
  static Tensor keys(const Tensor& t, int64_t b, int64_t kv) { return t.select(0, b).select(1, kv); }

  // Scaled scores [group, Sq, Sk], in fp32 at least; minus infinity where a query does not see.
  Tensor scores(const Tensor& q, const Tensor& k) const {
    return at_least_fp32(q.matmul(k.t())).mul(scale_).masked_fill_(hidden_, -INFINITY);
  }
  double scale() const { return scale_; }

  template <class F>
  void for_each(int64_t kv_heads, F&& f) const {
    for (int64_t b = 0; b < q_.size(0); ++b) {
      for (int64_t kv = 0; kv < kv_heads; ++kv) f(b, kv);
    }
  }

 private:
  Tensor q_, hidden_;
  int64_t group_;
  double scale_;
};

}  // namespace

Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backwards) {
  const auto half = x.to(cos.scalar_type()).chunk(2, -1);
  const Tensor c = cos.unsqueeze(1), s = backwards ? -sin.unsqueeze(1) : sin.unsqueeze(1);
  return at::cat({half[0] * c - half[1] * s, half[1] * c + half[0] * s}, -1).to(x.scalar_type()).contiguous();
}

std::tuple<Tensor, Tensor> causal_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const std::optional<Tensor>& cos, const std::optional<Tensor>& sin) {
  const Tensor turned_q = cos ? rotate(q, *cos, *sin, false) : q, turned_k = cos ? rotate(k, *cos, *sin, false) : k;
  const CausalHeads heads(q, k);
  Tensor out = at::empty(q.sizes(), q.options());
  Tensor lse = at::empty({q.size(0), q.size(2), q.size(1)}, q.options().dtype(at_least_fp32(q.scalar_type())));
  heads.for_each(k.size(2), [&](int64_t b, int64_t kv) {
    const Tensor scores = heads.scores(heads.queries(turned_q, b, kv), heads.keys(turned_k, b, kv));
    const Tensor sums = scores.logsumexp(-1);
    const int64_t group = sums.size(0);
    lse.select(0, b).narrow(0, kv * group, group).copy_(sums);
    const Tensor weights = (scores - sums.unsqueeze(-1)).exp_().to(q.scalar_type());
    heads.queries(out, b, kv).copy_(weights.matmul(heads.keys(v, b, kv)));
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> causal_attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                             const Tensor& v, const std::optional<Tensor>& cos,
                                                             const std::optional<Tensor>& sin, const Tensor& out,
                                                             const Tensor& lse) {
  const Tensor turned_q = cos ? rotate(q, *cos, *sin, false) : q, turned_k = cos ? rotate(k, *cos, *sin, false) : k;
  const CausalHeads heads(q, k);
  Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options()), dv = at::empty_like(dk);
  heads.for_each(k.size(2), [&](int64_t b, int64_t kv) {
    const Tensor q_g = heads.queries(turned_q, b, kv), grad_g = heads.queries(grad, b, kv);
    const Tensor k_g = heads.keys(turned_k, b, kv), v_g = heads.keys(v, b, kv);
    const Tensor sums = lse.select(0, b).narrow(0, kv * q_g.size(0), q_g.size(0)).unsqueeze(-1);
    const Tensor weights = (heads.scores(q_g, k_g) - sums).exp_();
    const auto summed = [](const Tensor& a, const Tensor& x) {  // over the group: [Sk, C]
      return a.flatten(0, 1).t().mm(x.reshape({-1, x.size(-1)}));
    };
    heads.keys(dv, b, kv).copy_(summed(weights.to(q.scalar_type()), grad_g));
    const Tensor dweights = at_least_fp32(grad_g.matmul(v_g.t()));
    // sum_j w_j dw_j = grad . out (the identity of FlashAttention's backward).
    const Tensor inner = (at_least_fp32(grad_g) * at_least_fp32(heads.queries(out, b, kv))).sum(-1, /*keepdim=*/true);
    const Tensor dscores = (dweights - inner).mul_(weights).mul_(heads.scale()).to(q.scalar_type());
    heads.queries(dq, b, kv).copy_(dscores.matmul(k_g));
    heads.keys(dk, b, kv).copy_(summed(dscores, q_g));
  });
  if (!cos) return {dq, dk, dv};
  return {rotate(dq, *cos, *sin, true), rotate(dk, *cos, *sin, true), dv};
}

}  // namespace rmoe::reference
