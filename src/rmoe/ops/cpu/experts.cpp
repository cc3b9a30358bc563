// experts on the CPU: sorts the slots and shares the rows out; the formula where no kernel fits.
#include "rmoe/kernels/cpu/experts.h"

#include "rmoe/ops/checks.h"
#include "rmoe/ops/cpu/pointers.h"
#include "rmoe/ops/reference/experts.h"

namespace rmoe::cpu {
namespace {

using Optional = std::optional<Tensor>;
using kernels::RowBlock;

// The parameters as the kernels read them: contiguous, biases in fp32.
struct Parameters {
  Tensor w1, b1, w2, b2, w3;

  template <class T>
  kernels::ExpertWeights<T> read_as(double dropout_p, int64_t dropout_key) const {
    return {.D = w1.size(2),
            .F = w1.size(1),
            .w1 = weight<T>(w1),
            .w2 = weight<T>(w2),
            .w3 = w3.defined() ? weight<T>(w3) : kernels::Weight<T>{},
            .b1 = b1.defined() ? read<float>(b1) : nullptr,
            .b2 = b2.defined() ? read<float>(b2) : nullptr,
            .dropout = dropout_p,
            .dropout_key = static_cast<uint64_t>(dropout_key)};
  }
};
Parameters readable_parameters(const Tensor& w1, const Optional& b1, const Tensor& w2, const Optional& b2,
                               const Optional& w3) {
  const auto bias = [](const Optional& b) { return b ? b->to(at::kFloat).contiguous() : Tensor(); };
  return {w1.contiguous(), bias(b1), w2.contiguous(), bias(b2), w3 ? w3->contiguous() : Tensor()};
}

kernels::SortedSlots sort_slots(const Tensor& ids_TK, int64_t experts) {
  return {ids_TK.const_data_ptr<int64_t>(), ids_TK.size(0), ids_TK.size(1), experts};
}

// The kernels for x's dtype, where there are some that read such weights.
template <class T>
const kernels::ExpertsKernels<T>* kernels_for(const Tensor& x, const Tensor& w1, const Tensor& w2, const Optional& w3) {
  const bool alike = w2.scalar_type() == w1.scalar_type() && (!w3 || w3->scalar_type() == w1.scalar_type());
  return x.scalar_type() == kTypeOf<T> && alike && readable<T>(w1) ? kernels::experts_kernels<T>() : nullptr;
}

// At most so many rows of one expert in a task: so few that the threads share evenly, and so many that packing the
// expert's weights for each is a small part of the work.
int64_t rows_at_most(int64_t rows) { return std::clamp<int64_t>(rows / (2 * at::get_num_threads()), 128, 2048); }

template <class T>
std::tuple<Tensor, Tensor> forward(const kernels::ExpertsKernels<T>& kernel, const Tensor& x_TD, const Tensor& ids_TK,
                                   const Tensor& weights_TK, const Parameters& parameters, double dropout_p,
                                   int64_t dropout_key, bool keep) {
  const Tensor x = x_TD.contiguous(), ids = ids_TK.contiguous(), weights = weights_TK.to(at::kFloat).contiguous();
  const auto experts = parameters.read_as<T>(dropout_p, dropout_key);
  const auto sorted = sort_slots(ids, parameters.w1.size(0));
  const auto blocks = sorted.blocks(rows_at_most(sorted.rows().rows));
  const Tensor y = at::empty(x.sizes(), x.options());
  const Tensor before = keep ? at::empty({ids.numel(), experts.P()}, x.options()) : at::empty({0}, x.options());
  const Tensor outputs = at::empty({sorted.rows().rows, experts.D}, x.options());
  kernel.forward({.routed = sorted.rows(),
                  .experts = experts,
                  .blocks = blocks.data(),
                  .block_count = static_cast<int64_t>(blocks.size()),
                  .x = read<T>(x),
                  .weights = read<float>(weights),
                  .before = keep ? write<T>(before) : nullptr,
                  .outputs = write<T>(outputs),
                  .y = write<T>(y)});
  return {y, before};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
Gradients backward(const kernels::ExpertsKernels<T>& kernel, const Tensor& grad_TD, const Tensor& before_MP,
                   const Tensor& x_TD, const Tensor& ids_TK, const Tensor& weights_TK, const Parameters& parameters,
                   double dropout_p, int64_t dropout_key, std::array<bool, 3> needed) {
  const Tensor dy = grad_TD.contiguous(), before = before_MP.contiguous(), x = x_TD.contiguous();
  const Tensor ids = ids_TK.contiguous(), weights = weights_TK.to(at::kFloat).contiguous();
  const auto experts = parameters.read_as<T>(dropout_p, dropout_key);
  const int64_t N = parameters.w1.size(0), D = experts.D;
  const auto sorted = sort_slots(ids, N);
  const int64_t M = sorted.rows().rows;

  // An expert with more rows than this would keep one thread busy while the others wait.
  const int64_t most = at::get_num_threads() == 1 ? M : rows_at_most(M);
  std::vector<RowBlock> whole, split_blocks;
  std::vector<kernels::SplitExpert> split;
  int64_t split_rows = 0;
  for (const RowBlock& expert : sorted.blocks(std::max<int64_t>(M, 1))) {
    if (expert.end - expert.begin <= most) {
      whole.push_back(expert);
    } else {
      split.push_back({expert.expert, expert.begin, expert.end, split_rows});
      split_rows += expert.end - expert.begin;
    }
  }
  for (int64_t e = 0; e < N; ++e) {
    if (sorted.count(e) == 0) whole.push_back({e, 0, 0});
  }
  if (!split.empty()) {
    for (const RowBlock& block : sorted.blocks(most)) {
      if (sorted.count(block.expert) > most) split_blocks.push_back(block);
    }
  }

  const auto like = [](const Tensor& t, bool wanted) {
    return wanted && t.defined() ? at::empty(t.sizes(), t.options().dtype(at::kFloat)) : Tensor();
  };
  const Tensor d_w1 = like(parameters.w1, needed[2]), d_b1 = like(parameters.b1, needed[2]);
  const Tensor d_w2 = like(parameters.w2, needed[2]), d_b2 = like(parameters.b2, needed[2]);
  const Tensor d_w3 = like(parameters.w3, needed[2]), d_weights = at::empty(weights.sizes(), weights.options());
  const Tensor dx = needed[0] ? at::empty(x.sizes(), x.options()) : Tensor();
  const Tensor d_inputs = needed[0] ? at::empty({M, D}, x.options()) : Tensor();
  const Tensor d_before = at::empty({split_rows, kernel.before_stride(experts.P())}, x.options());
  const Tensor inner = at::empty({split_rows, experts.F}, x.options());
  const auto to = [](const Tensor& t) { return t.defined() ? write<float>(t) : nullptr; };
  kernel.backward({.routed = sorted.rows(),
                   .experts = experts,
                   .whole = whole.data(),
                   .whole_count = static_cast<int64_t>(whole.size()),
                   .split = split.data(),
                   .split_count = static_cast<int64_t>(split.size()),
                   .split_blocks = split_blocks.data(),
                   .split_block_count = static_cast<int64_t>(split_blocks.size()),
                   .x = read<T>(x),
                   .weights = read<float>(weights),
                   .before = read<T>(before),
                   .dy = read<T>(dy),
                   .d_inputs = needed[0] ? write<T>(d_inputs) : nullptr,
                   .d_before = write<T>(d_before),
                   .inner = write<T>(inner),
                   .dx = needed[0] ? write<T>(dx) : nullptr,
                   .d_weights = to(d_weights),
                   .d_w1 = to(d_w1),
                   .d_w2 = to(d_w2),
                   .d_w3 = to(d_w3),
                   .d_b1 = to(d_b1),
                   .d_b2 = to(d_b2)});
  return {dx, needed[1] ? d_weights.to(weights_TK.scalar_type()) : Tensor(), d_w1, d_b1, d_w2, d_b2, d_w3};
}

std::tuple<Tensor, Tensor> experts(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& w1,
                                   const Optional& b1, const Tensor& w2, const Optional& b2, const Optional& w3,
                                   double dropout_p, int64_t dropout_key, bool keep) {
  check::experts(x, ids, weights, w1, b1, w2, b2, w3, dropout_p);
  if (const auto* kernel = kernels_for<float>(x, w1, w2, w3)) {
    return forward(*kernel, x, ids, weights, readable_parameters(w1, b1, w2, b2, w3), dropout_p, dropout_key, keep);
  }
  if (const auto* kernel = kernels_for<kernels::Bf16>(x, w1, w2, w3)) {
    return forward(*kernel, x, ids, weights, readable_parameters(w1, b1, w2, b2, w3), dropout_p, dropout_key, keep);
  }
  return reference::experts(x, ids, weights, w1, b1, w2, b2, w3, dropout_p, dropout_key, keep);
}

// Gradients are written in fp32, those of masters.
bool masters(const Tensor& w1, const Optional& b1, const Optional& b2) {
  const auto fp32 = [](const Optional& t) { return !t || t->scalar_type() == at::kFloat; };
  return fp32(w1) && fp32(b1) && fp32(b2);
}

Gradients experts_backward(const Tensor& grad, const Tensor& before, const Tensor& x, const Tensor& ids,
                           const Tensor& weights, const Tensor& w1, const Optional& b1, const Tensor& w2,
                           const Optional& b2, const Optional& w3, double dropout_p, int64_t dropout_key,
                           std::array<bool, 3> needed) {
  check::experts(x, ids, weights, w1, b1, w2, b2, w3, dropout_p);
  check::shape("experts_backward", "grad", grad, x.sizes());
  check::shape("experts_backward", "before", before, {ids.numel(), (w3 ? 2 : 1) * w1.size(1)});
  if (masters(w1, b1, b2)) {
    const Parameters parameters = readable_parameters(w1, b1, w2, b2, w3);
    if (const auto* kernel = kernels_for<float>(x, w1, w2, w3)) {
      return backward(*kernel, grad, before, x, ids, weights, parameters, dropout_p, dropout_key, needed);
    }
    if (const auto* kernel = kernels_for<kernels::Bf16>(x, w1, w2, w3)) {
      return backward(*kernel, grad, before, x, ids, weights, parameters, dropout_p, dropout_key, needed);
    }
  }
  return reference::experts_backward(grad, before, x, ids, weights, w1, b1, w2, b2, w3, dropout_p, dropout_key, needed);
}

}  // namespace

TORCH_LIBRARY_IMPL(rmoe, CPU, m) {
  m.impl("experts", &experts);
  m.impl("experts_backward", &experts_backward);
}

}  // namespace rmoe::cpu
