// The launchers of kernels/device.h, one .cu file for each group.
#pragma once

#include "rmoe/kernels/cuda/device_code.h"

namespace rmoe::kernels::cuda {

template <class T>
void dropout(T* out, const T* in, int64_t n, Drop drop, uint64_t first_index, Stream stream);
template <class T>
void norm(const NormForward<T>& p, Stream stream);
template <class T>
void norm_backward(const NormBackward<T>& p, float* partials, Stream stream);
template <class T>
void activate(const Activation<T>& p, Stream stream);
template <class T>
void activate_backward(const ActivationGradients<T>& p, Stream stream);
template <class T>
void combine(const Combination<T>& p, Stream stream);
template <class T>
void cross_entropy(const CrossEntropyRows<T>& p, Stream stream);
void choose(const Choice& p, Stream stream);
void choose_backward(const ChoiceGradients& p, Stream stream);
void cell(const CellStep& p, Stream stream);
void cell_backward(const CellGradients& p, Stream stream);
void sort_slots(const SlotSort& p, Stream stream);
void span_attention(const SpanAttentionCall& a, HeadRows<Bf16> out, float* lse, Stream stream);
void span_attention_backward(const SpanAttentionGradients& g, Stream stream);

}  // namespace rmoe::kernels::cuda
