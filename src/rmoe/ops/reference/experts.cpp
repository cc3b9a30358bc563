#include "rmoe/ops/reference/experts.h"

#include "rmoe/kernels/cpu/experts.h"
#include "rmoe/ops/affine.h"
#include "rmoe/ops/dropout.h"

namespace rmoe::reference {
namespace {

// The used slots sorted by expert.
struct Rows {
  Rows(const Tensor& ids_TK, int64_t experts) : top_k(ids_TK.size(1)) {
    const Tensor ids = ids_TK.cpu().contiguous();
    const kernels::SortedSlots sorted(ids.const_data_ptr<int64_t>(), ids.size(0), top_k, experts);
    first_N1 = sorted.first();
    const auto tensor = [&](const int64_t* data, int64_t n) {
      return at::from_blob(const_cast<int64_t*>(data), {n}, at::kLong).clone().to(ids_TK.device());
    };
    slot_M = tensor(sorted.rows().slots_M, sorted.rows().rows);
    token_M = slot_M.div(top_k, "floor");
    const Tensor row_TK = tensor(sorted.rows().rows_TK, ids.numel());
    row_or_last_TK = row_TK.masked_fill(row_TK.lt(0), sorted.rows().rows);
  }

  // [M, D] -> [T, K, D], zeros for unused slots.
  Tensor by_slot(const Tensor& rows_MD) const {
    const Tensor padded = at::cat({rows_MD, rows_MD.new_zeros({1, rows_MD.size(1)})});
    return padded.index_select(0, row_or_last_TK).view({row_or_last_TK.size(0) / top_k, top_k, rows_MD.size(1)});
  }

  // f(e, begin, count) for every expert that has rows.
  template <class F>
  void for_each_expert(F&& f) const {
    for (size_t e = 0; e + 1 < first_N1.size(); ++e) {
      if (first_N1[e + 1] > first_N1[e]) f(static_cast<int64_t>(e), first_N1[e], first_N1[e + 1] - first_N1[e]);
    }
  }

  int64_t top_k;
  std::vector<int64_t> first_N1;
  Tensor slot_M, token_M, row_or_last_TK;
};

// out[m] = rows[m] W_e^T + b_e for the rows m of expert e; out may be a part of a wider matrix.
void grouped_linear(const Rows& rows, Tensor out_MO, const Tensor& x_MI, const Tensor& w_NOI,
                    const std::optional<Tensor>& b_NO) {
  const auto dtype = x_MI.scalar_type();
  const Tensor w = w_NOI.to(dtype), b = b_NO ? b_NO->to(dtype) : Tensor();
  rows.for_each_expert([&](int64_t e, int64_t begin, int64_t count) {
    Tensor part = out_MO.narrow(0, begin, count);
    const Tensor x = x_MI.narrow(0, begin, count);
    part.copy_(b.defined() ? at::addmm(b[e], x, w[e].t()) : at::mm(x, w[e].t()));
  });
}

// x[m] W_e.
Tensor grouped_product(const Rows& rows, const Tensor& x_MO, const Tensor& w_NOI) {
  const Tensor w = w_NOI.to(x_MO.scalar_type());
  Tensor out = at::empty({x_MO.size(0), w.size(2)}, x_MO.options());
  rows.for_each_expert([&](int64_t e, int64_t begin, int64_t count) {
    Tensor part = out.narrow(0, begin, count);
    at::mm_out(part, x_MO.narrow(0, begin, count), w[e]);
  });
  return out;
}

// Sums of the outer products of the rows of each expert, [N, O, I], and of the rows of the left factor, [N, O].
Tensor grouped_outer(const Rows& rows, const Tensor& left_MO, const Tensor& right_MI, const Tensor& like_NOI) {
  Tensor out = at::zeros(like_NOI.sizes(), like_NOI.options());
  rows.for_each_expert([&](int64_t e, int64_t begin, int64_t count) {
    out[e].copy_(at::mm(left_MO.narrow(0, begin, count).t(), right_MI.narrow(0, begin, count)));
  });
  return out;
}
Tensor grouped_sum(const Rows& rows, const Tensor& left_MO, const std::optional<Tensor>& like_NO) {
  if (!like_NO) return {};
  Tensor out = at::zeros(like_NO->sizes(), like_NO->options());
  rows.for_each_expert(
      [&](int64_t e, int64_t begin, int64_t count) { out[e].copy_(left_MO.narrow(0, begin, count).sum(0)); });
  return out;
}

Tensor activation(const Tensor& before_MP, bool gated, double dropout_p, int64_t dropout_key) {
  Tensor inner;
  if (gated) {
    const auto halves = before_MP.chunk(2, 1);
    inner = at::silu(halves[0]) * halves[1];
  } else {
    inner = before_MP.relu();
  }
  dropout_(inner, dropout_p, {static_cast<uint64_t>(dropout_key)}, 0);
  return inner;
}

}  // namespace

std::tuple<Tensor, Tensor> experts(const Tensor& x_TD, const Tensor& ids_TK, const Tensor& weights_TK,
                                   const Tensor& w1_NFD, const std::optional<Tensor>& b1_NF, const Tensor& w2_NDF,
                                   const std::optional<Tensor>& b2_ND, const std::optional<Tensor>& w3_NFD,
                                   double dropout_p, int64_t dropout_key, bool keep) {
  const int64_t F = w1_NFD.size(1);
  const Rows rows(ids_TK, w1_NFD.size(0));
  const int64_t M = rows.slot_M.size(0);
  const Tensor x_MD = x_TD.index_select(0, rows.token_M);
  const Tensor all = at::empty({ids_TK.numel(), w3_NFD ? 2 * F : F}, x_TD.options()), before = all.narrow(0, 0, M);
  grouped_linear(rows, before.narrow(1, 0, F), x_MD, w1_NFD, b1_NF);
  if (w3_NFD) grouped_linear(rows, before.narrow(1, F, F), x_MD, *w3_NFD, std::nullopt);
  const Tensor inner = activation(before, w3_NFD.has_value(), dropout_p, dropout_key);
  Tensor answers_MD = at::empty_like(x_MD);
  grouped_linear(rows, answers_MD, inner, w2_NDF, b2_ND);
  const Tensor weights_T1K = weights_TK.to(x_TD.scalar_type()).unsqueeze(1);
  return {weights_T1K.bmm(rows.by_slot(answers_MD)).squeeze(1), keep ? all : x_TD.new_empty({0})};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> experts_backward(
    const Tensor& grad_TD, const Tensor& before_MP, const Tensor& x_TD, const Tensor& ids_TK, const Tensor& weights_TK,
    const Tensor& w1_NFD, const std::optional<Tensor>& b1_NF, const Tensor& w2_NDF, const std::optional<Tensor>& b2_ND,
    const std::optional<Tensor>& w3_NFD, double dropout_p, int64_t dropout_key, std::array<bool, 3> needed) {
  const Rows rows(ids_TK, w1_NFD.size(0));
  const auto dtype = x_TD.scalar_type();
  const Tensor before = before_MP.narrow(0, 0, rows.slot_M.size(0));
  const Tensor inner = activation(before, w3_NFD.has_value(), dropout_p, dropout_key);
  const Tensor grad_MD = grad_TD.index_select(0, rows.token_M);
  const Tensor weight_M1 = weights_TK.flatten().index_select(0, rows.slot_M).unsqueeze(1).to(dtype);
  const Tensor d_answer = grad_MD * weight_M1;
  Tensor d_inner = grouped_product(rows, grad_MD, w2_NDF);  // of the unweighted answer
  Tensor d_weights;
  if (needed[1]) {
    Tensor d_weight_M = (at_least_fp32(d_inner) * at_least_fp32(inner)).sum(1);
    if (b2_ND) {
      rows.for_each_expert([&](int64_t e, int64_t begin, int64_t count) {
        d_weight_M.narrow(0, begin, count)
            .add_(at_least_fp32(grad_MD.narrow(0, begin, count)).mv(at_least_fp32((*b2_ND)[e].to(dtype))));
      });
    }
    d_weights = weights_TK.new_zeros({weights_TK.numel()});
    d_weights.index_copy_(0, rows.slot_M, d_weight_M.to(weights_TK.scalar_type()));
    d_weights = d_weights.view(weights_TK.sizes());
  }
  d_inner.mul_(weight_M1);
  dropout_(d_inner, dropout_p, {static_cast<uint64_t>(dropout_key)}, 0);
  Tensor d_in, d_up;  // of the two pre-activations
  if (w3_NFD) {
    const auto halves = before.chunk(2, 1);
    d_in = at::silu_backward(d_inner * halves[1], halves[0]);
    d_up = d_inner * at::silu(halves[0]);
  } else {
    d_in = d_inner * before.gt(0);
  }
  Tensor dx, d_w1, d_b1, d_w2, d_b2, d_w3;
  if (needed[0]) {
    Tensor dx_MD = grouped_product(rows, d_in, w1_NFD);
    if (w3_NFD) dx_MD += grouped_product(rows, d_up, *w3_NFD);
    dx = rows.by_slot(dx_MD).sum(1);
  }
  if (needed[2]) {
    const Tensor x_MD = x_TD.index_select(0, rows.token_M);
    d_w1 = grouped_outer(rows, d_in, x_MD, w1_NFD);
    d_w2 = grouped_outer(rows, d_answer, inner, w2_NDF);
    if (w3_NFD) d_w3 = grouped_outer(rows, d_up, x_MD, *w3_NFD);
    d_b1 = grouped_sum(rows, d_in, b1_NF);
    d_b2 = grouped_sum(rows, d_answer, b2_ND);
  }
  return {dx, d_weights, d_w1, d_b1, d_w2, d_b2, d_w3};
}

}  // namespace rmoe::reference
