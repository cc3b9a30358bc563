#include "rmoe/ops/span_attention.h"

#include "rmoe/base/error.h"
#include "rmoe/ops/checks.h"
#include "rmoe/ops/reference/span_attention.h"

namespace rmoe {
namespace {

using Forward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, double, int64_t);
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                            const Tensor&, const Tensor&, const Tensor&, double,
                                                            int64_t);

class SpanAttention : public torch::autograd::Function<SpanAttention> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const Tensor& q, const Tensor& k,
                                                const Tensor& v, const Tensor& key_pe, double p, int64_t key) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::span_attention", "").typed<Forward>();
    auto [out, lse] = op.call(q, k, v, key_pe, p, key);
    ctx->save_for_backward({q, k, v, key_pe, out, lse});
    ctx->saved_data["p"] = p;
    ctx->saved_data["key"] = key;
    ctx->mark_non_differentiable({lse});
    return {out, lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto s = ctx->get_saved_variables();
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::span_attention_backward", "").typed<Backward>();
    auto [dq, dk, dv, dkey_pe] = op.call(grads[0], s[0], s[1], s[2], s[3], s[4], s[5], ctx->saved_data["p"].toDouble(),
                                         ctx->saved_data["key"].toInt());
    return {dq, dk, dv, dkey_pe, Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> span_attention_autograd(const Tensor& q, const Tensor& k, const Tensor& v,
                                                   const Tensor& key_pe, double p, int64_t key) {
  check::span_attention(q, k, v, key_pe, p);
  const auto out = SpanAttention::apply(q, k, v, key_pe, p, key);
  return {out[0], out[1]};
}

}  // namespace

void check::span_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_pe, double p) {
  if (!checkable("span_attention", q, k, v, key_pe)) return;
  floating("span_attention", "q", q);
  RMOE_CHECK(q.dim() == 4, "span_attention: q must be [B, H, M, C], got ", q.sizes());
  RMOE_CHECK(key_pe.dim() == 2 && key_pe.size(0) == q.size(3), "span_attention: key_pe must be [", q.size(3),
             ", S], got ", key_pe.sizes());
  const std::vector<int64_t> expected = {q.size(0), q.size(1), key_pe.size(1) + q.size(2), q.size(3)};
  RMOE_CHECK(k.sizes() == expected, "span_attention: k must be ", at::IntArrayRef(expected), ", got ", k.sizes());
  RMOE_CHECK(v.sizes() == expected, "span_attention: v must be ", at::IntArrayRef(expected), ", got ", v.sizes());
  RMOE_CHECK(p >= 0 && p < 1, "span_attention: dropout must be in [0, 1), got ", p);
}

TORCH_LIBRARY_FRAGMENT(rmoe, m) {
  m.def(
      "span_attention(Tensor q, Tensor k, Tensor v, Tensor key_pe, float dropout_p, int dropout_key)"
      " -> (Tensor, Tensor)");
  m.def(
      "span_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor key_pe, Tensor out, Tensor lse,"
      " float dropout_p, int dropout_key) -> (Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(rmoe, CompositeExplicitAutograd, m) {
  m.impl("span_attention", &reference::span_attention);
  m.impl("span_attention_backward", &reference::span_attention_backward);
}
TORCH_LIBRARY_IMPL(rmoe, Autograd, m) { m.impl("span_attention", &span_attention_autograd); }

Tensor span_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_pe, double dropout_p,
                      DropoutKey key) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::span_attention", "").typed<Forward>();
  return std::get<0>(op.call(q, k, v, key_pe, dropout_p, static_cast<int64_t>(key.value)));
}

}  // namespace rmoe
