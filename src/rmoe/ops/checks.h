// The checks of the ops' arguments: shapes, ranges and what else a kernel relies on. Each throws Error(kBadInput) that
// names the op, the argument, its value and what was expected.
//
// An op checks where it is called, before autograd, and once more where raw memory is read (ops/cpu): inference tensors
// and compiled graphs get there without passing autograd. Tensors of symbolic shape, as torch.compile traces with, are
// not checked; the run is.
#pragma once

#include <array>
#include <initializer_list>
#include <string_view>

#include "rmoe/ops/torch.h"

namespace rmoe::check {

using OptionalTensor = std::optional<Tensor>;

void linear(const Tensor& x, const Tensor& w, const OptionalTensor& b);
void recurrent_stage(std::string_view cell, const Tensor& x, const OptionalTensor& h, const OptionalTensor& c,
                     const OptionalTensor& projection, const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                     const Tensor& b_hh);
void gate(const Tensor& feature, const Tensor& weight, const OptionalTensor& bias, int64_t top_k);
void added_gate(const Tensor& feature, const Tensor& weight, const OptionalTensor& bias, const Tensor& added,
                int64_t top_k);
void experts(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& w1, const OptionalTensor& b1,
             const Tensor& w2, const OptionalTensor& b2, const OptionalTensor& w3, double dropout_p);
void norm(const Tensor& x, const OptionalTensor& branch, const Tensor& weight, const OptionalTensor& bias,
          double dropout_p);
void rotate(const Tensor& x, const Tensor& cos, const Tensor& sin);
void causal_attention(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& cos,
                      const OptionalTensor& sin);
void span_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_pe, double dropout_p);
void linear_cross_entropy(const Tensor& x, const Tensor& w, const OptionalTensor& b, const Tensor& targets);
// That every target is in [0, V) or ignore_index. Reads the targets.
void targets(const Tensor& targets, int64_t V, int64_t ignore_index);

// That `t`, a gradient or something that forward kept, has the shape that the op `name` gave it.
void shape(const char* op, const char* name, const Tensor& t, at::IntArrayRef expected);

// That x is of a floating-point type and `others` are, too: kernels take what is not fp32, bf16 or fp64 to the formula,
// which speaks of its own inner products.
void floating(const char* op, const char* name, const Tensor& x);

inline bool symbolic(const Tensor& t) { return t.defined() && t.unsafeGetTensorImpl()->has_symbolic_sizes_strides(); }
// Whether the op's tensors have shapes that can be checked. Error when they are not on one device.
bool checkable(const char* op, std::initializer_list<OptionalTensor> tensors);
template <class... Tensors>
bool checkable(const char* op, const Tensors&... tensors) {
  return checkable(op, {OptionalTensor(tensors)...});
}

// A tensor of a Python mode or subclass, such as the fake ones of torch.compile: it has no values to read.
inline bool valueless(const Tensor& t) { return t.is_meta() || t.key_set().has(c10::DispatchKey::Python); }

}  // namespace rmoe::check
