// The kernel of kernels/cpu/linear_cross_entropy.h on tensors; other dtypes and machines take the reference.
#include "rmoe/kernels/cpu/linear_cross_entropy.h"

#include <algorithm>

#include "rmoe/ops/checks.h"
#include "rmoe/ops/cpu/pointers.h"
#include "rmoe/ops/reference/linear_cross_entropy.h"

namespace rmoe::cpu {
namespace {

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Null where no kernel reads these.
template <class T>
const kernels::LinearCrossEntropyKernels<T>* loss_kernels_for(const Tensor& x, const Tensor& w) {
  if (x.scalar_type() != kTypeOf<T> || !readable<T>(w)) return nullptr;
  return kernels::linear_cross_entropy_kernels<T>();
}

template <class T>
Results loss_and_gradients(const kernels::LinearCrossEntropyKernels<T>& kernel, const Tensor& x, const Tensor& w,
                           const std::optional<Tensor>& b, const Tensor& targets, int64_t ignore_index, double z_loss,
                           double scale, bool wanted) {
  const Tensor rows = x.contiguous(), weights = w.contiguous(), ids = targets.contiguous();
  const Tensor bias = b ? b->to(at::kFloat).contiguous() : Tensor();
  const int64_t tokens = x.size(0);
  const auto* id = ids.const_data_ptr<int64_t>();
  const auto count = tokens - std::count(id, id + tokens, ignore_index);
  const double share = count > 0 ? scale / static_cast<double>(count) : 0;

  const auto precise = x.options().dtype(at::kFloat);
  Tensor losses = at::empty({tokens}, precise), lse = at::empty({tokens}, precise);
  Tensor dx, dw, db;
  kernels::LinearCrossEntropyGradients<T> gradients{};
  if (wanted) {
    dx = at::empty(x.sizes(), x.options());
    dw = at::empty(w.sizes(), precise);
    db = at::empty({b ? w.size(0) : 0}, precise);
    gradients = {.weight = static_cast<float>(share),
                 .z_loss = static_cast<float>(z_loss),
                 .dx = write<T>(dx),
                 .dw = write<float>(dw),
                 .db = b ? write<float>(db) : nullptr};
  }
  kernel.forward(write<float>(losses), write<float>(lse), wanted ? &gradients : nullptr,
                 {.x = read<T>(rows),
                  .w = weight<T>(weights),
                  .b = b ? read<float>(bias) : nullptr,
                  .targets = id,
                  .ignore_index = ignore_index,
                  .M = tokens,
                  .V = w.size(0),
                  .D = w.size(1)});
  double sum = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const double l = read<float>(lse)[t];
    sum += read<float>(losses)[t] + z_loss * l * l;
  }
  const Tensor loss = at::scalar_tensor(share * sum, precise);
  if (!wanted) return {loss, losses, {}, {}, {}};
  return {loss, losses, dx, dw.to(w.scalar_type()), b ? db.to(b->scalar_type()) : db};
}

std::tuple<Tensor, Tensor> linear_cross_entropy(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b,
                                                const Tensor& targets, int64_t ignore_index, double z_loss,
                                                double scale) {
  check::linear_cross_entropy(x, w, b, targets);
  check::targets(targets, w.size(0), ignore_index);
  const auto run = [&](const auto& kernel) -> std::tuple<Tensor, Tensor> {
    auto results = loss_and_gradients(kernel, x, w, b, targets, ignore_index, z_loss, scale, /*wanted=*/false);
    return {std::get<0>(results), std::get<1>(results)};
  };
  if (const auto* kernel = loss_kernels_for<float>(x, w)) return run(*kernel);
  if (const auto* kernel = loss_kernels_for<kernels::Bf16>(x, w)) return run(*kernel);
  return reference::linear_cross_entropy(x, w, b, targets, ignore_index, z_loss, scale);
}

Results linear_cross_entropy_gradients(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b,
                                       const Tensor& targets, int64_t ignore_index, double z_loss, double scale) {
  check::linear_cross_entropy(x, w, b, targets);
  check::targets(targets, w.size(0), ignore_index);
  const auto run = [&](const auto& kernel) {
    return loss_and_gradients(kernel, x, w, b, targets, ignore_index, z_loss, scale, /*wanted=*/true);
  };
  if (const auto* kernel = loss_kernels_for<float>(x, w)) return run(*kernel);
  if (const auto* kernel = loss_kernels_for<kernels::Bf16>(x, w)) return run(*kernel);
  return reference::linear_cross_entropy_gradients(x, w, b, targets, ignore_index, z_loss, scale);
}

}  // namespace

TORCH_LIBRARY_IMPL(rmoe, CPU, m) {
  m.impl("linear_cross_entropy", &linear_cross_entropy);
  m.impl("linear_cross_entropy_gradients", &linear_cross_entropy_gradients);
}

}  // namespace rmoe::cpu
