#include "rmoe/ops/causal_attention.h"

#include <numbers>

#include "rmoe/base/error.h"
#include "rmoe/ops/checks.h"
#include "rmoe/ops/optional_tensor.h"
#include "rmoe/ops/reference/causal_attention.h"

namespace rmoe {
namespace {

using Rotate = Tensor(const Tensor&, const Tensor&, const Tensor&, bool);
using Forward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                                           const OptionalTensor&);
using Backward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                    const OptionalTensor&, const OptionalTensor&, const Tensor&,
                                                    const Tensor&);

auto rotate_op() {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::rotate", "").typed<Rotate>();
  return op;
}
auto attention_op() {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::causal_attention", "").typed<Forward>();
  return op;
}

void check_angles(const char* what, const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const std::vector<int64_t> expected = {x.size(1), x.size(3) / 2};
  RMOE_CHECK(x.size(3) % 2 == 0, what, ": rotation needs an even head width, got ", x.size(3));
  RMOE_CHECK(cos.sizes() == expected, what, ": cos must be ", at::IntArrayRef(expected), ", got ", cos.sizes());
  RMOE_CHECK(sin.sizes() == expected, what, ": sin must be ", at::IntArrayRef(expected), ", got ", sin.sizes());
}

class Rotation : public torch::autograd::Function<Rotation> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin,
                        bool backwards) {
    ctx->save_for_backward({cos, sin});
    ctx->saved_data["backwards"] = backwards;
    at::AutoDispatchBelowADInplaceOrView below;
    return rotate_op().call(x, cos, sin, backwards);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    return {rotate_op().call(grads[0], saved[0], saved[1], !ctx->saved_data["backwards"].toBool()), Tensor(), Tensor(),
            Tensor()};
  }
};

Tensor rotate_autograd(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backwards) {
  check::rotate(x, cos, sin);
  return Rotation::apply(x, cos, sin, backwards);
}

class CausalAttention : public torch::autograd::Function<CausalAttention> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const Tensor& q, const Tensor& k,
                                                const Tensor& v, const OptionalTensor& cos, const OptionalTensor& sin) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [out, lse] = attention_op().call(q, k, v, cos, sin);
    ctx->save_for_backward({q, k, v, cos.value_or(Tensor()), sin.value_or(Tensor()), out, lse});
    ctx->mark_non_differentiable({lse});
    return {out, lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto s = ctx->get_saved_variables();
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::causal_attention_backward", "").typed<Backward>();
    auto [dq, dk, dv] = op.call(grads[0], s[0], s[1], s[2], optional(s[3]), optional(s[4]), s[5], s[6]);
    return {dq, dk, dv, Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> causal_attention_autograd(const Tensor& q, const Tensor& k, const Tensor& v,
                                                     const OptionalTensor& cos, const OptionalTensor& sin) {
  check::causal_attention(q, k, v, cos, sin);
  const auto out = CausalAttention::apply(q, k, v, cos, sin);
  return {out[0], out[1]};
}

}  // namespace

void check::rotate(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  if (!checkable("rotate", x, cos, sin)) return;
  floating("rotate", "x", x);
  RMOE_CHECK(x.dim() == 4, "rotate: x must be [B, S, H, C], got ", x.sizes());
  check_angles("rotate", x, cos, sin);
}

void check::causal_attention(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& cos,
                             const OptionalTensor& sin) {
  if (!checkable("causal_attention", q, k, v, cos, sin)) return;
  floating("causal_attention", "q", q);
  RMOE_CHECK(q.dim() == 4, "causal_attention: q must be [B, Sq, H, C], got ", q.sizes());
  RMOE_CHECK(k.dim() == 4 && k.size(0) == q.size(0) && k.size(3) == q.size(3), "causal_attention: k must be [",
             q.size(0), ", Sk, Hkv, ", q.size(3), "], got ", k.sizes());
  RMOE_CHECK(v.sizes() == k.sizes(), "causal_attention: v must be ", k.sizes(), " as k, got ", v.sizes());
  RMOE_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
             "causal_attention: k and v must be ", q.scalar_type(), " as q, got ", k.scalar_type(), " and ",
             v.scalar_type());
  RMOE_CHECK(k.size(2) > 0 && q.size(2) % k.size(2) == 0, "causal_attention: ", q.size(2),
             " query heads are no multiple of ", k.size(2), " key-value heads");
  RMOE_CHECK(k.size(1) >= q.size(1), "causal_attention: ", q.size(1), " queries but ", k.size(1), " keys");
  RMOE_CHECK(cos.has_value() == sin.has_value(), "causal_attention: cos and sin come together");
  if (!cos) return;
  RMOE_CHECK(k.size(1) == q.size(1), "causal_attention: with angles there must be as many keys as queries, got ",
             k.size(1), " and ", q.size(1));
  check_angles("causal_attention", q, *cos, *sin);
}

TORCH_LIBRARY_FRAGMENT(rmoe, m) {
  m.def("rotate(Tensor x, Tensor cos, Tensor sin, bool backwards) -> Tensor");
  m.def("causal_attention(Tensor q, Tensor k, Tensor v, Tensor? cos, Tensor? sin) -> (Tensor, Tensor)");
  m.def(
      "causal_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? cos, Tensor? sin, Tensor out,"
      " Tensor lse) -> (Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(rmoe, CompositeExplicitAutograd, m) {
  m.impl("rotate", &reference::rotate);
  m.impl("causal_attention", &reference::causal_attention);
  m.impl("causal_attention_backward", &reference::causal_attention_backward);
}
TORCH_LIBRARY_IMPL(rmoe, Autograd, m) {
  m.impl("rotate", &rotate_autograd);
  m.impl("causal_attention", &causal_attention_autograd);
}

Tensor rotary_frequencies(int64_t C, double theta, at::ScalarType type) {
  const Tensor exponent = at::arange(0, C, 2, at::TensorOptions().dtype(type)) / static_cast<double>(C);
  return at::pow(theta, exponent).reciprocal();
}

Tensor llama3_frequencies(const Tensor& plain_c, double factor, double low, double high, int64_t original) {
  const Tensor turns = plain_c * (static_cast<double>(original) / (2 * std::numbers::pi));
  const Tensor share = ((turns - low) / (high - low)).clamp(0, 1);  // of the undivided frequency
  return plain_c * share + plain_c / factor * (1 - share);
}

RotaryAngles rotary_angles(int64_t first, int64_t count, const Tensor& frequency_c) {
  const Tensor angle = at::arange(first, first + count, frequency_c.options()).unsqueeze(1) * frequency_c.unsqueeze(0);
  return {angle.cos(), angle.sin()};
}

RotaryAngles rotary_angles(int64_t first, int64_t count, int64_t C, double theta, at::ScalarType type) {
  return rotary_angles(first, count, rotary_frequencies(C, theta, type));
}

Tensor rotate(const Tensor& x_BSHC, const RotaryAngles& angles) {
  return rotate_op().call(x_BSHC, angles.cos, angles.sin, false);
}

namespace {

// By what torch has for the device.
Tensor by_library(const Tensor& q_BSHC, const Tensor& k_BSHC, const Tensor& v_BSHC) {
  const int64_t Sq = q_BSHC.size(1), Sk = k_BSHC.size(1);
  std::optional<Tensor> sees;
  // Its own causal mask has the first query see the first key alone.
  if (Sq > 1 && Sq != Sk) sees = at::ones({Sq, Sk}, q_BSHC.options().dtype(at::kBool)).tril_(Sk - Sq);
  const auto heads = [](const Tensor& t) { return t.transpose(1, 2); };
  return heads(at::scaled_dot_product_attention(heads(q_BSHC), heads(k_BSHC), heads(v_BSHC), sees, /*dropout_p=*/0,
                                                /*is_causal=*/Sq > 1 && Sq == Sk, /*scale=*/std::nullopt,
                                                /*enable_gqa=*/q_BSHC.size(2) != k_BSHC.size(2)))
      .contiguous();
}

}  // namespace

Tensor causal_attention(const Tensor& q_BSHC, const Tensor& k_BSHC, const Tensor& v_BSHC, const RotaryAngles& angles) {
  if (!q_BSHC.is_cpu() && !check::valueless(q_BSHC)) {
    check::causal_attention(q_BSHC, k_BSHC, v_BSHC, optional(angles.cos), optional(angles.sin));
    const auto turned = [&](const Tensor& x) { return angles.cos.defined() ? rotate(x, angles) : x; };
    return by_library(turned(q_BSHC), turned(k_BSHC), v_BSHC);
  }
  return std::get<0>(attention_op().call(q_BSHC, k_BSHC, v_BSHC, optional(angles.cos), optional(angles.sin)));
}

}  // namespace rmoe
