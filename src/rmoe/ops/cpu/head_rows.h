// Heads of attention as the kernels take them, those of other devices too.
#pragma once

#include "rmoe/kernels/cpu/attention.h"
#include "rmoe/ops/cpu/pointers.h"

namespace rmoe::cpu {

// Rows of contiguous channels.
inline Tensor with_rows(const Tensor& t) { return t.stride(-1) == 1 ? t : t.contiguous(); }

// The rows of t, whose dimension `head` is 1 or 2; the first is the sequence, the last the channel.
template <class T>
kernels::HeadRows<const T> read_rows(const Tensor& t, int64_t head) {
  check_type<T>(t);
  return {static_cast<const T*>(t.const_data_ptr()), t.stride(0), t.stride(head), t.stride(3 - head)};
}
template <class T>
kernels::HeadRows<T> write_rows(const Tensor& t, int64_t head) {
  return {static_cast<T*>(t.mutable_data_ptr()), t.stride(0), t.stride(head), t.stride(3 - head)};
}

// An empty [B, H, S, C] in the memory order [B, S, H, C]: joining the heads is a view.
inline Tensor empty_by_heads(const Tensor& like) {
  return at::empty({like.size(0), like.size(2), like.size(1), like.size(3)}, like.options()).transpose(1, 2);
}

}  // namespace rmoe::cpu
