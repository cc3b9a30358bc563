#include "rmoe/ops/reference/linear_cross_entropy.h"

#include <algorithm>

#include "rmoe/ops/affine.h"
#include "rmoe/ops/checks.h"
#include "rmoe/ops/device_kernels.h"

namespace rmoe::reference {
namespace {

constexpr int64_t kLogits = int64_t{1} << 24;  // held at a time

struct Gradients {
  Tensor dx, dw, db;
};

std::tuple<Tensor, Tensor> compute(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b,
                                   const Tensor& targets, int64_t ignore_index, double z_loss, double scale,
                                   Gradients* gradients) {
  // On a device that would have to be waited for, gather() itself refuses.
  if (targets.is_cpu()) check::targets(targets, w.size(0), ignore_index);
  const int64_t tokens = x.size(0), V = w.size(0), step = std::max<int64_t>(kLogits / V, 1);
  const auto dtype = x.scalar_type(), precise = at_least_fp32(dtype);
  const Tensor weight = w.to(dtype), counts = targets.ne(ignore_index);
  const auto bias = b ? std::optional<Tensor>(b->to(dtype)) : std::nullopt;
  // Of each token that counts: scale / their number.
  const Tensor share = scale / counts.sum().clamp_min(1).to(precise);
  Tensor losses = at::empty({tokens}, x.options().dtype(precise));
  Tensor loss = at::zeros({}, losses.options());
  for (int64_t begin = 0; begin < tokens; begin += step) {
    const int64_t n = std::min(step, tokens - begin);
    const Tensor x_n = x.narrow(0, begin, n), counts_n = counts.narrow(0, begin, n);
    const Tensor target_n = targets.narrow(0, begin, n).masked_fill(counts_n.logical_not(), 0).unsqueeze(1);
    if (const DeviceCall call(x); call.with_kernels_of(dtype, [&]<class T>(const auto& kernels, T*) {
          const Tensor logits = at::linear(x_n, weight, bias), ids = targets.narrow(0, begin, n).contiguous();
          const Tensor loss_n = losses.narrow(0, begin, n), lse = at::empty_like(loss_n);
          kernels.cross_entropy({.logits = elements_to_write<T>(logits),
                                 .targets = elements<int64_t>(ids),
                                 .rows = n,
                                 .V = V,
                                 .ignore = ignore_index,
                                 .z_loss = z_loss,
                                 .share = gradients ? elements<float>(share) : nullptr,
                                 .losses = elements_to_write<float>(loss_n),
                                 .lse = elements_to_write<float>(lse)},
                                call.stream());
          loss += (loss_n + z_loss * lse.square() * counts_n).sum() * share;
          if (!gradients) return;
          gradients->dx.narrow(0, begin, n).copy_(logits.mm(weight));
          gradients->dw += logits.t().mm(x_n);
          if (b) gradients->db += logits.sum(0);
        })) {
      continue;
    }
    Tensor logits = at::linear(x_n, weight, bias).to(precise);
    const Tensor lse = logits.logsumexp(-1);
    const Tensor loss_n = (lse - logits.gather(1, target_n).squeeze(1)).masked_fill(counts_n.logical_not(), 0);
    losses.narrow(0, begin, n).copy_(loss_n);
    loss += (loss_n + (z_loss * lse.square()).masked_fill(counts_n.logical_not(), 0)).sum() * share;
    if (!gradients) continue;
    const Tensor share_n = (share * counts_n).unsqueeze(1);
    Tensor d_logits = logits.sub_(lse.unsqueeze(1)).exp_().mul_(share_n * (1 + 2 * z_loss * lse.unsqueeze(1)));
    d_logits = d_logits.scatter_add_(1, target_n, -share_n).to(dtype);
    gradients->dx.narrow(0, begin, n).copy_(d_logits.mm(weight));
    gradients->dw += d_logits.t().mm(x_n);
    if (b) gradients->db += d_logits.sum(0);
  }
  return {loss, losses};
}

}  // namespace

std::tuple<Tensor, Tensor> linear_cross_entropy(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b,
                                                const Tensor& targets, int64_t ignore_index, double z_loss,
                                                double scale) {
  return compute(x, w, b, targets, ignore_index, z_loss, scale, nullptr);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_gradients(const Tensor& x, const Tensor& w,
                                                                                  const std::optional<Tensor>& b,
                                                                                  const Tensor& targets,
                                                                                  int64_t ignore_index, double z_loss,
                                                                                  double scale) {
  Gradients g{at::empty(x.sizes(), x.options()), at::zeros(w.sizes(), w.options()),
              at::zeros({b ? w.size(0) : 0}, b ? b->options() : w.options())};
  auto [loss, losses] = compute(x, w, b, targets, ignore_index, z_loss, scale, &g);
  return {loss, losses, g.dx, g.dw, g.db};
}

}  // namespace rmoe::reference
