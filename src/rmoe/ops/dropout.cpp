#include "rmoe/ops/dropout.h"

#include "rmoe/base/error.h"
#include "rmoe/base/rng.h"
#include "rmoe/kernels/cpu/dropout.h"

namespace rmoe {
namespace {

constexpr int64_t kGrain = 16384;

template <class T>
void run(T* out, const T* in, int64_t n, double p, DropoutKey key, int64_t first_index) {
  const auto scale = static_cast<float>(1 / (1 - p));
  at::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
    kernels::dropout(out + begin, in + begin, end - begin, key.value, static_cast<uint64_t>(first_index + begin), p,
                     scale);
  });
}

void mask_into(Tensor& out, const Tensor& in, double p, DropoutKey key, int64_t first_index) {
  RMOE_CHECK(in.device().is_cpu(), "dropout: x must be on the CPU, got ", in.device().str());
  RMOE_ASSERT(in.is_contiguous() && out.is_contiguous());
  switch (in.scalar_type()) {
    case at::kFloat:
      return run(out.data_ptr<float>(), in.const_data_ptr<float>(), in.numel(), p, key, first_index);
    case at::kDouble:
      return run(out.data_ptr<double>(), in.const_data_ptr<double>(), in.numel(), p, key, first_index);
    case at::kBFloat16:
      return run(reinterpret_cast<kernels::Bf16*>(out.data_ptr()),
                 reinterpret_cast<const kernels::Bf16*>(in.const_data_ptr()), in.numel(), p, key, first_index);
    default:
      RMOE_CHECK(false, "dropout: x must be fp32, fp64 or bf16, got ", in.scalar_type());
  }
}

class Dropout : public torch::autograd::Function<Dropout> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, double p, int64_t key) {
    ctx->saved_data["p"] = p;
    ctx->saved_data["key"] = key;
    return masked(x, p, key);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    return {masked(grads[0], ctx->saved_data["p"].toDouble(), ctx->saved_data["key"].toInt()), Tensor(), Tensor()};
  }

 private:
  static Tensor masked(const Tensor& x, double p, int64_t key) {
    const Tensor in = x.contiguous();
    Tensor out = at::empty_like(in);
    mask_into(out, in, p, DropoutKey{static_cast<uint64_t>(key)}, 0);
    return out;
  }
};

}  // namespace

DropoutKey DropoutKey::at(uint64_t site) const { return {mix(value, site, 0)}; }

Tensor dropout(const Tensor& x, double p, DropoutKey key) {
  RMOE_CHECK(p >= 0 && p < 1, "dropout: p must be in [0, 1), got ", p);
  return p == 0 ? x : Dropout::apply(x, p, static_cast<int64_t>(key.value));
}

void dropout_(Tensor& x, double p, DropoutKey key, int64_t first_index) {
  if (p > 0) mask_into(x, x, p, key, first_index);
}

}  // namespace rmoe
