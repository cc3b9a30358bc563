#include "rmoe/ops/reference/experts.h"

#include "rmoe/kernels/cpu/experts.h"
#include "rmoe/ops/affine.h"
#include "rmoe/ops/device_kernels.h"
#include "rmoe/ops/dropout.h"

namespace rmoe::reference {
namespace {

// The slots sorted by expert, as M rows, and what is computed of the rows of each expert with that expert's weights. Of
// a row that belongs to a slot without an expert, nothing counts.
class Groups {
 public:
  Groups(const Tensor& ids_TK, int64_t experts) : top_k_(ids_TK.size(1)), experts_(experts) {}
  virtual ~Groups() = default;

  virtual Tensor linear(const Tensor& x_MI, const Tensor& w_NOI) const = 0;   // x W_e^T
  virtual Tensor product(const Tensor& x_MO, const Tensor& w_NOI) const = 0;  // x W_e
  // Of each expert, the sum of its rows' outer products, [N, O, I], and of the left factor's rows, [N, O].
  virtual Tensor outer(const Tensor& left_MO, const Tensor& right_MI) const = 0;
  virtual Tensor sum(const Tensor& left_MO) const = 0;
  // Zeros in the rows that do not count.
  virtual Tensor counting(const Tensor& rows_MD) const = 0;
  // [M, D] -> [T, K, D], zeros for slots without an expert.
  virtual Tensor by_slot(const Tensor& rows_MD) const = 0;
  // [M, D] -> [T, D]: of each token, its slots' rows summed, weighted where there are weights [T, K].
  virtual Tensor combined(const Tensor& rows_MD, const Tensor& weights_TK) const {
    const Tensor rows_TKD = by_slot(rows_MD);
    if (!weights_TK.defined()) return rows_TKD.sum(1);
    return weights_TK.to(rows_MD.scalar_type()).unsqueeze(1).bmm(rows_TKD).squeeze(1);
  }

  Tensor linear(const Tensor& x_MI, const Tensor& w_NOI, const std::optional<Tensor>& b_NO) const {
    const Tensor y = linear(x_MI, w_NOI);
    return b_NO ? y + of_rows(*b_NO).to(y.scalar_type()) : y;
  }
  // Each row's expert's row.
  Tensor of_rows(const Tensor& x_ND) const { return x_ND.index_select(0, expert_M_); }
  const Tensor& slot_M() const { return slot_M_; }
  const Tensor& token_M() const { return token_M_; }

 protected:
  int64_t top_k_, experts_;
  Tensor slot_M_, token_M_, expert_M_;
};

// Sorted on the host, and one product for each expert.
class LoopedGroups : public Groups {
 public:
  LoopedGroups(const Tensor& ids_TK, int64_t experts) : Groups(ids_TK, experts) {
    const Tensor ids = ids_TK.cpu().contiguous();
    const kernels::SortedSlots sorted(ids.const_data_ptr<int64_t>(), ids.size(0), top_k_, experts);
    first_N1_ = sorted.first();
    const auto tensor = [&](const int64_t* data, int64_t n) {
      return at::from_blob(const_cast<int64_t*>(data), {n}, at::kLong).clone().to(ids_TK.device());
    };
    slot_M_ = tensor(sorted.rows().slots_M, sorted.rows().rows);
    token_M_ = slot_M_.div(top_k_, "floor");
    expert_M_ = ids_TK.flatten().index_select(0, slot_M_);
    const Tensor row_TK = tensor(sorted.rows().rows_TK, ids.numel());
    row_or_last_TK_ = row_TK.masked_fill(row_TK.lt(0), sorted.rows().rows);
  }

  Tensor linear(const Tensor& x_MI, const Tensor& w_NOI) const override {
    const Tensor w = w_NOI.to(x_MI.scalar_type());
    return each_row(x_MI, w.size(1), [&](int64_t e, Tensor& out, const Tensor& x) { at::mm_out(out, x, w[e].t()); });
  }
  Tensor product(const Tensor& x_MO, const Tensor& w_NOI) const override {
    const Tensor w = w_NOI.to(x_MO.scalar_type());
    return each_row(x_MO, w.size(2), [&](int64_t e, Tensor& out, const Tensor& x) { at::mm_out(out, x, w[e]); });
  }
  Tensor outer(const Tensor& left_MO, const Tensor& right_MI) const override {
    Tensor out = at::zeros({experts_, left_MO.size(1), right_MI.size(1)}, left_MO.options());
    for_each_expert([&](int64_t e, int64_t begin, int64_t count) {
      Tensor sum = out[e];
      at::mm_out(sum, left_MO.narrow(0, begin, count).t(), right_MI.narrow(0, begin, count));
    });
    return out;
  }
  Tensor sum(const Tensor& left_MO) const override {
    Tensor out = at::zeros({experts_, left_MO.size(1)}, left_MO.options());
    for_each_expert(
        [&](int64_t e, int64_t begin, int64_t count) { out[e].copy_(left_MO.narrow(0, begin, count).sum(0)); });
    return out;
  }
  Tensor counting(const Tensor& rows_MD) const override { return rows_MD; }
  Tensor by_slot(const Tensor& rows_MD) const override {
    const Tensor padded = at::cat({rows_MD, rows_MD.new_zeros({1, rows_MD.size(1)})});
    return padded.index_select(0, row_or_last_TK_).view({-1, top_k_, rows_MD.size(1)});
  }

 private:
  // f(e, begin, count) for every expert that has rows.
  template <class F>
  void for_each_expert(F&& f) const {
    for (size_t e = 0; e + 1 < first_N1_.size(); ++e) {
      if (first_N1_[e + 1] > first_N1_[e]) f(static_cast<int64_t>(e), first_N1_[e], first_N1_[e + 1] - first_N1_[e]);
    }
  }
  template <class F>
  Tensor each_row(const Tensor& x_MI, int64_t width, F&& f) const {
    Tensor out = at::empty({x_MI.size(0), width}, x_MI.options());
    for_each_expert([&](int64_t e, int64_t begin, int64_t count) {
      Tensor part = out.narrow(0, begin, count);
      f(e, part, x_MI.narrow(0, begin, count));
    });
    return out;
  }

  std::vector<int64_t> first_N1_;
  Tensor row_or_last_TK_;
};

// Sorted on the device and one grouped product for all experts, without waiting for the device: M = T K whatever the
// choice was, and the rows without an expert are the last.
class DeviceGroups : public Groups {
 public:
  DeviceGroups(const Tensor& ids_TK, int64_t experts) : Groups(ids_TK, experts) {
    const Tensor ids_M = ids_TK.flatten();
    if (const DeviceCall call(ids_M); call) {
      const int64_t M = ids_M.size(0);
      const Tensor ids = ids_M.contiguous();
      slot_M_ = at::empty_like(ids), sorted_M_ = at::empty_like(ids), row_TK_ = at::empty_like(ids);
      end_N_ = at::empty({experts}, ids.options().dtype(at::kInt));
      const Tensor counts = at::empty({kernels::sort_blocks(M), experts + 1}, end_N_.options());
      call->sort_slots({.ids = elements<int64_t>(ids),
                        .slots = M,
                        .N = experts,
                        .slot_M = elements_to_write<int64_t>(slot_M_),
                        .expert_M = elements_to_write<int64_t>(sorted_M_),
                        .row_M = elements_to_write<int64_t>(row_TK_),
                        .end_N = elements_to_write<int32_t>(end_N_),
                        .counts = elements_to_write<int32_t>(counts)},
                       call.stream());
      finish();
      return;
    }
    const Tensor key_M = ids_M.masked_fill(ids_M.lt(0).logical_or(ids_M.ge(experts)), experts);
    const auto [sorted_M, order_M] = key_M.sort(/*stable=*/true, 0, /*descending=*/false);
    slot_M_ = order_M, sorted_M_ = sorted_M;
    row_TK_ = at::empty_like(order_M).scatter_(0, order_M, at::arange(order_M.size(0), order_M.options()));
    end_N_ = at::searchsorted(sorted_M, at::arange(experts, sorted_M.options()), /*out_int32=*/true, /*right=*/true);
    finish();
  }

  // What the grouped product takes.
  static bool fits(const Tensor& x_TD, const Tensor& ids_TK, const Tensor& w1_NFD) {
    constexpr int64_t kAlignment = 16;  // of rows, in bytes
    const auto aligned = [&](int64_t width) { return width * x_TD.element_size() % kAlignment == 0; };
    return x_TD.scalar_type() != at::kDouble && ids_TK.numel() > 0 && aligned(w1_NFD.size(1)) &&
           aligned(w1_NFD.size(2));
  }

  Tensor linear(const Tensor& x_MI, const Tensor& w_NOI) const override {
    return at::_grouped_mm(x_MI, w_NOI.to(x_MI.scalar_type()).transpose(1, 2), end_N_);
  }
  Tensor product(const Tensor& x_MO, const Tensor& w_NOI) const override {
    return at::_grouped_mm(x_MO.contiguous(), w_NOI.to(x_MO.scalar_type()), end_N_);
  }
  Tensor outer(const Tensor& left_MO, const Tensor& right_MI) const override {
    return at::_grouped_mm(left_MO.contiguous().t(), right_MI.contiguous(), end_N_);
  }
  Tensor sum(const Tensor& left_MO) const override {
    return at::zeros({experts_, left_MO.size(1)}, left_MO.options()).index_add_(0, expert_M_, counting(left_MO));
  }
  Tensor counting(const Tensor& rows_MD) const override { return rows_MD.masked_fill(unused_M1_, 0); }
  Tensor by_slot(const Tensor& rows_MD) const override {
    return counting(rows_MD).index_select(0, row_TK_).view({-1, top_k_, rows_MD.size(1)});
  }
  Tensor combined(const Tensor& rows_MD, const Tensor& weights_TK) const override {
    const DeviceCall call(rows_MD);
    Tensor y;
    call.with_kernels_of(rows_MD.scalar_type(), [&]<class T>(const auto& kernels, T*) {
      const int64_t D = rows_MD.size(1), tokens = row_TK_.size(0) / top_k_;
      const Tensor rows = rows_MD.contiguous();
      const Tensor weights = weights_TK.defined() ? weights_TK.to(at::kFloat).contiguous() : Tensor();
      y = at::empty({tokens, D}, rows.options());
      kernels.combine({.rows = elements<T>(rows),
                       .row_TK = elements<int64_t>(row_TK_),
                       .expert_M = elements<int64_t>(sorted_M_),
                       .weights = weights.defined() ? elements<float>(weights) : nullptr,
                       .T_ = tokens,
                       .K = top_k_,
                       .N = experts_,
                       .D = D,
                       .y = elements_to_write<T>(y)},
                      call.stream());
    });
    return y.defined() ? y : Groups::combined(rows_MD, weights_TK);
  }

 private:
  void finish() {
    token_M_ = slot_M_.div(top_k_, "floor");
    expert_M_ = sorted_M_.clamp_max(experts_ - 1);
    unused_M1_ = sorted_M_.eq(experts_).unsqueeze(1);
  }

  Tensor sorted_M_;  // row -> expert; N: none
  Tensor unused_M1_, row_TK_, end_N_;
};

std::unique_ptr<Groups> group(const Tensor& x_TD, const Tensor& ids_TK, const Tensor& w1_NFD) {
  const int64_t experts = w1_NFD.size(0);
  if (x_TD.is_cpu() || !DeviceGroups::fits(x_TD, ids_TK, w1_NFD))
    return std::make_unique<LoopedGroups>(ids_TK, experts);
  return std::make_unique<DeviceGroups>(ids_TK, experts);
}

Tensor activation(const Tensor& before_MP, bool gated, double dropout_p, int64_t dropout_key) {
  Tensor inner;
  const DeviceCall call(before_MP);
  if (call.with_kernels_of(before_MP.scalar_type(), [&]<class T>(const auto& kernels, T*) {
        const Tensor before = before_MP.contiguous();
        const int64_t F = before.size(1) / (gated ? 2 : 1);
        inner = at::empty({before.size(0), F}, before.options());
        kernels.activate({.before = elements<T>(before),
                          .M = before.size(0),
                          .F = F,
                          .gated = gated,
                          .dropout = {static_cast<uint64_t>(dropout_key), dropout_p},
                          .inner = elements_to_write<T>(inner)},
                         call.stream());
      })) {
    return inner;
  }
  if (gated) {
    const auto halves = before_MP.chunk(2, 1);
    inner = at::silu(halves[0]) * halves[1];
  } else {
    inner = before_MP.relu();
  }
  dropout_(inner, dropout_p, {static_cast<uint64_t>(dropout_key)}, 0);
  return inner;
}

// From the gradient [M, F] of the unweighted inner activations.
struct InnerGradients {
  Tensor inner;        // [M, F], computed again
  Tensor d_weight_M1;  // of the rows' weights, without the part of the second bias
  Tensor d_in, d_up;   // of the two pre-activations
};

InnerGradients inner_gradients(Tensor d_inner, const Tensor& before, const Tensor& weight_M1, bool gated,
                               double dropout_p, int64_t dropout_key) {
  InnerGradients out;
  const DeviceCall call(before);
  const int64_t M = d_inner.size(0), F = d_inner.size(1);
  if (call.with_kernels_of(before.scalar_type(), [&]<class T>(const auto& kernels, T*) {
        const Tensor rows = before.contiguous(), d = d_inner.contiguous();
        const Tensor weights = weight_M1.to(at::kFloat).contiguous(), d_before = at::empty_like(rows);
        out.inner = at::empty_like(d);
        out.d_weight_M1 = at::empty({M, 1}, weights.options());
        kernels.activate_backward({.before = elements<T>(rows),
                                   .d_unweighted = elements<T>(d),
                                   .weight_M = elements<float>(weights),
                                   .M = M,
                                   .F = F,
                                   .gated = gated,
                                   .dropout = {static_cast<uint64_t>(dropout_key), dropout_p},
                                   .d_before = elements_to_write<T>(d_before),
                                   .inner = elements_to_write<T>(out.inner),
                                   .d_weight_M = elements_to_write<float>(out.d_weight_M1)},
                                  call.stream());
        out.d_in = d_before.narrow(1, 0, F);
        if (gated) out.d_up = d_before.narrow(1, F, F);
      })) {
    return out;
  }
  out.inner = activation(before, gated, dropout_p, dropout_key);
  out.d_weight_M1 = (at_least_fp32(d_inner) * at_least_fp32(out.inner)).sum(1, /*keepdim=*/true);
  d_inner.mul_(weight_M1);
  dropout_(d_inner, dropout_p, {static_cast<uint64_t>(dropout_key)}, 0);
  if (gated) {
    const auto halves = before.chunk(2, 1);
    out.d_in = at::silu_backward(d_inner * halves[1], halves[0]);
    out.d_up = d_inner * at::silu(halves[0]);
  } else {
    out.d_in = d_inner * before.gt(0);
  }
  return out;
}

}  // namespace

std::tuple<Tensor, Tensor> experts(const Tensor& x_TD, const Tensor& ids_TK, const Tensor& weights_TK,
                                   const Tensor& w1_NFD, const std::optional<Tensor>& b1_NF, const Tensor& w2_NDF,
                                   const std::optional<Tensor>& b2_ND, const std::optional<Tensor>& w3_NFD,
                                   double dropout_p, int64_t dropout_key, bool keep) {
  const int64_t F = w1_NFD.size(1);
  const auto groups = group(x_TD, ids_TK, w1_NFD);
  const int64_t M = groups->slot_M().size(0);
  const Tensor x_MD = x_TD.index_select(0, groups->token_M());
  const Tensor all = at::empty({ids_TK.numel(), w3_NFD ? 2 * F : F}, x_TD.options()), before = all.narrow(0, 0, M);
  before.narrow(1, 0, F).copy_(groups->linear(x_MD, w1_NFD, b1_NF));
  if (w3_NFD) before.narrow(1, F, F).copy_(groups->linear(x_MD, *w3_NFD));
  const Tensor inner = activation(before, w3_NFD.has_value(), dropout_p, dropout_key);
  const Tensor answers_MD = groups->linear(inner, w2_NDF, b2_ND);
  return {groups->combined(answers_MD, weights_TK), keep ? all : x_TD.new_empty({0})};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> experts_backward(
    const Tensor& grad_TD, const Tensor& before_MP, const Tensor& x_TD, const Tensor& ids_TK, const Tensor& weights_TK,
    const Tensor& w1_NFD, const std::optional<Tensor>& b1_NF, const Tensor& w2_NDF, const std::optional<Tensor>& b2_ND,
    const std::optional<Tensor>& w3_NFD, double dropout_p, int64_t dropout_key, std::array<bool, 3> needed) {
  const auto groups = group(x_TD, ids_TK, w1_NFD);
  const auto dtype = x_TD.scalar_type();
  const Tensor before = before_MP.narrow(0, 0, groups->slot_M().size(0));
  const Tensor grad_MD = grad_TD.index_select(0, groups->token_M());
  const Tensor weight_M1 = weights_TK.flatten().index_select(0, groups->slot_M()).unsqueeze(1).to(dtype);
  const Tensor d_answer = grad_MD * weight_M1;
  // Of the unweighted answers, and what becomes of it.
  const InnerGradients g =
      inner_gradients(groups->product(grad_MD, w2_NDF), before, weight_M1, w3_NFD.has_value(), dropout_p, dropout_key);
  Tensor d_weights;
  if (needed[1]) {
    Tensor d_weight_M1 = g.d_weight_M1;
    if (b2_ND) {
      d_weight_M1 += (at_least_fp32(grad_MD) * at_least_fp32(groups->of_rows(b2_ND->to(dtype)))).sum(1, true);
    }
    d_weights = weights_TK.new_zeros({weights_TK.numel()});
    d_weights.index_copy_(0, groups->slot_M(), groups->counting(d_weight_M1).squeeze(1).to(weights_TK.scalar_type()));
    d_weights = d_weights.view(weights_TK.sizes());
  }
  Tensor dx, d_w1, d_b1, d_w2, d_b2, d_w3;
  if (needed[0]) {
    Tensor dx_MD = groups->product(g.d_in, w1_NFD);
    if (w3_NFD) dx_MD += groups->product(g.d_up, *w3_NFD);
    dx = groups->combined(dx_MD, {});
  }
  if (needed[2]) {
    const Tensor x_MD = x_TD.index_select(0, groups->token_M());
    d_w1 = groups->outer(g.d_in, x_MD).to(w1_NFD.scalar_type());
    d_w2 = groups->outer(d_answer, g.inner).to(w2_NDF.scalar_type());
    if (w3_NFD) d_w3 = groups->outer(g.d_up, x_MD).to(w3_NFD->scalar_type());
    if (b1_NF) d_b1 = groups->sum(g.d_in).to(b1_NF->scalar_type());
    if (b2_ND) d_b2 = groups->sum(d_answer).to(b2_ND->scalar_type());
  }
  return {dx, d_weights, d_w1, d_b1, d_w2, d_b2, d_w3};
}

}  // namespace rmoe::reference
