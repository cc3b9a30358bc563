// span_attention, causal_attention and rotate by the kernels of this CPU, where there are some for the dtype.
#include "rmoe/kernels/cpu/attention.h"

#include "rmoe/ops/checks.h"
#include "rmoe/ops/cpu/head_rows.h"
#include "rmoe/ops/reference/causal_attention.h"
#include "rmoe/ops/reference/span_attention.h"

namespace rmoe::cpu {
namespace {

template <class T>
bool all_of_type(std::initializer_list<const Tensor*> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const Tensor* t) { return t->scalar_type() == kTypeOf<T>; });
}

template <class T>
const kernels::SpanAttentionKernels<T>* span_kernels(const Tensor& q, const Tensor& k, const Tensor& v,
                                                     const Tensor& key_pe) {
  if (!all_of_type<T>({&q, &k, &v}) || !readable<T>(key_pe) || q.numel() == 0 || key_pe.numel() == 0) return nullptr;
  return kernels::span_attention_kernels<T>();
}

template <class T>
struct SpanInputs {
  SpanInputs(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& key_pe_, double p, int64_t key)
      : q(with_rows(q_)), k(with_rows(k_)), v(with_rows(v_)), key_pe(key_pe_.contiguous()) {
    a = {q.size(0),
         q.size(1),
         q.size(2),
         key_pe.size(1),
         q.size(3),
         read_rows<T>(q, 1),
         read_rows<T>(k, 1),
         read_rows<T>(v, 1),
         weight<T>(key_pe),
         p,
         static_cast<uint64_t>(key)};
  }
  Tensor q, k, v, key_pe;
  kernels::SpanAttention<T> a;
};

template <class T>
std::tuple<Tensor, Tensor> forward(const kernels::SpanAttentionKernels<T>& kernel, const SpanInputs<T>& in) {
  Tensor out = empty_by_heads(in.q);
  Tensor lse = at::empty({in.a.B, in.a.H, in.a.M}, in.q.options().dtype(at::kFloat));
  kernel.forward(in.a, write_rows<T>(out, 1), write<float>(lse));
  return {out, lse};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const kernels::SpanAttentionKernels<T>& kernel,
                                                    const SpanInputs<T>& in, const Tensor& grad, const Tensor& out,
                                                    const Tensor& lse) {
  const Tensor grads = with_rows(grad), outs = with_rows(out);
  Tensor dq = empty_by_heads(in.q), dk = empty_by_heads(in.k), dv = empty_by_heads(in.v);
  Tensor dkey_pe = at::empty(in.key_pe.sizes(), in.key_pe.options().dtype(at::kFloat));
  kernel.backward(in.a, read_rows<T>(grads, 1), read_rows<T>(outs, 1), read<float>(lse.contiguous()),
                  write_rows<T>(dq, 1), write_rows<T>(dk, 1), write_rows<T>(dv, 1), write<float>(dkey_pe));
  return {dq, dk, dv, dkey_pe.to(in.key_pe.scalar_type())};
}

std::tuple<Tensor, Tensor> span_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_pe,
                                          double p, int64_t key) {
  check::span_attention(q, k, v, key_pe, p);
  if (const auto* kernel = span_kernels<float>(q, k, v, key_pe)) {
    return forward(*kernel, SpanInputs<float>(q, k, v, key_pe, p, key));
  }
  if (const auto* kernel = span_kernels<kernels::Bf16>(q, k, v, key_pe)) {
    return forward(*kernel, SpanInputs<kernels::Bf16>(q, k, v, key_pe, p, key));
  }
  return reference::span_attention(q, k, v, key_pe, p, key);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> span_attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                                   const Tensor& v, const Tensor& key_pe,
                                                                   const Tensor& out, const Tensor& lse, double p,
                                                                   int64_t key) {
  check::span_attention(q, k, v, key_pe, p);
  check::shape("span_attention_backward", "grad", grad, q.sizes());
  check::shape("span_attention_backward", "out", out, q.sizes());
  check::shape("span_attention_backward", "lse", lse, q.sizes().slice(0, 3));
  if (const auto* kernel = span_kernels<float>(q, k, v, key_pe)) {
    return backward(*kernel, SpanInputs<float>(q, k, v, key_pe, p, key), grad, out, lse);
  }
  if (const auto* kernel = span_kernels<kernels::Bf16>(q, k, v, key_pe)) {
    return backward(*kernel, SpanInputs<kernels::Bf16>(q, k, v, key_pe, p, key), grad, out, lse);
  }
  return reference::span_attention_backward(grad, q, k, v, key_pe, out, lse, p, key);
}

using OptionalTensor = std::optional<Tensor>;

template <class T>
const kernels::CausalAttentionKernels<T>* causal_kernels(const Tensor& q, const Tensor& k, const Tensor& v,
                                                         const OptionalTensor& cos, const OptionalTensor& sin) {
  if (!all_of_type<T>({&q, &k, &v}) || q.numel() == 0) return nullptr;
  if (cos && !all_of_type<float>({&*cos, &*sin})) return nullptr;
  return kernels::causal_attention_kernels<T>();
}

template <class T>
struct CausalInputs {
  CausalInputs(const Tensor& q_, const Tensor& k_, const Tensor& v_, const OptionalTensor& cos_,
               const OptionalTensor& sin_)
      : q(with_rows(q_)), k(with_rows(k_)), v(with_rows(v_)) {
    if (cos_) cos = cos_->contiguous(), sin = sin_->contiguous();
    a = {q.size(0),
         q.size(1),
         k.size(1),
         q.size(2),
         k.size(2),
         q.size(3),
         read_rows<T>(q, 2),
         read_rows<T>(k, 2),
         read_rows<T>(v, 2),
         cos_ ? read<float>(cos) : nullptr,
         cos_ ? read<float>(sin) : nullptr};
  }
  Tensor q, k, v, cos, sin;
  kernels::CausalAttention<T> a;
};

template <class T>
std::tuple<Tensor, Tensor> forward(const kernels::CausalAttentionKernels<T>& kernel, const CausalInputs<T>& in) {
  Tensor out = at::empty(in.q.sizes(), in.q.options());
  Tensor lse = at::empty({in.a.B, in.a.H, in.a.Sq}, in.q.options().dtype(at::kFloat));
  kernel.forward(in.a, write_rows<T>(out, 2), write<float>(lse));
  return {out, lse};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> backward(const kernels::CausalAttentionKernels<T>& kernel, const CausalInputs<T>& in,
                                            const Tensor& grad, const Tensor& out, const Tensor& lse) {
  const Tensor grads = with_rows(grad), outs = with_rows(out);
  Tensor dq = at::empty(in.q.sizes(), in.q.options());
  Tensor dk = at::empty(in.k.sizes(), in.k.options()), dv = at::empty(in.v.sizes(), in.v.options());
  kernel.backward(in.a, read_rows<T>(grads, 2), read_rows<T>(outs, 2), read<float>(lse.contiguous()),
                  write_rows<T>(dq, 2), write_rows<T>(dk, 2), write_rows<T>(dv, 2));
  return {dq, dk, dv};
}

std::tuple<Tensor, Tensor> causal_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const OptionalTensor& cos, const OptionalTensor& sin) {
  check::causal_attention(q, k, v, cos, sin);
  if (const auto* kernel = causal_kernels<float>(q, k, v, cos, sin)) {
    return forward(*kernel, CausalInputs<float>(q, k, v, cos, sin));
  }
  if (const auto* kernel = causal_kernels<kernels::Bf16>(q, k, v, cos, sin)) {
    return forward(*kernel, CausalInputs<kernels::Bf16>(q, k, v, cos, sin));
  }
  return reference::causal_attention(q, k, v, cos, sin);
}

std::tuple<Tensor, Tensor, Tensor> causal_attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                             const Tensor& v, const OptionalTensor& cos,
                                                             const OptionalTensor& sin, const Tensor& out,
                                                             const Tensor& lse) {
  check::causal_attention(q, k, v, cos, sin);
  check::shape("causal_attention_backward", "grad", grad, q.sizes());
  check::shape("causal_attention_backward", "out", out, q.sizes());
  check::shape("causal_attention_backward", "lse", lse, {q.size(0), q.size(2), q.size(1)});
  if (const auto* kernel = causal_kernels<float>(q, k, v, cos, sin)) {
    return backward(*kernel, CausalInputs<float>(q, k, v, cos, sin), grad, out, lse);
  }
  if (const auto* kernel = causal_kernels<kernels::Bf16>(q, k, v, cos, sin)) {
    return backward(*kernel, CausalInputs<kernels::Bf16>(q, k, v, cos, sin), grad, out, lse);
  }
  return reference::causal_attention_backward(grad, q, k, v, cos, sin, out, lse);
}

template <class T>
bool rotated(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backwards, Tensor* out) {
  const auto* kernel = kernels::causal_attention_kernels<T>();
  if (!kernel || !all_of_type<T>({&x}) || !all_of_type<float>({&cos, &sin}) || x.numel() == 0) return false;
  const Tensor rows = with_rows(x);
  *out = at::empty(x.sizes(), x.options());
  kernel->rotate(write_rows<T>(*out, 2), read_rows<T>(rows, 2), read<float>(cos.contiguous()),
                 read<float>(sin.contiguous()), x.size(0), x.size(1), x.size(2), x.size(3), backwards);
  return true;
}

Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backwards) {
  check::rotate(x, cos, sin);
  Tensor out;
  if (rotated<float>(x, cos, sin, backwards, &out) || rotated<kernels::Bf16>(x, cos, sin, backwards, &out)) return out;
  return reference::rotate(x, cos, sin, backwards);
}

}  // namespace

TORCH_LIBRARY_IMPL(rmoe, CPU, m) {
  m.impl("span_attention", &span_attention);
  m.impl("span_attention_backward", &span_attention_backward);
  m.impl("causal_attention", &causal_attention);
  m.impl("causal_attention_backward", &causal_attention_backward);
  m.impl("rotate", &rotate);
}

}  // namespace rmoe::cpu
