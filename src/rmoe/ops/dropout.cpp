#include "rmoe/ops/dropout.h"

#include <algorithm>
#include <cmath>

#include "rmoe/base/error.h"
#include "rmoe/base/rng.h"
#include "rmoe/kernels/cpu/dropout.h"
#include "rmoe/ops/device_kernels.h"

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

// kernels::DropoutStream::draw in ATen, for devices without a kernel: 32-bit numbers in the lower halves of int64.
Tensor scrambled(const Tensor& v) {
  const auto low = [](const Tensor& x) { return x.bitwise_and(0xffffffffLL); };
  Tensor x = v.bitwise_xor(v.bitwise_right_shift(16));
  x = low(x * 0x7feb352dLL);
  x = x.bitwise_xor(x.bitwise_right_shift(15));
  x = low(x * 0x846ca68bLL);
  return x.bitwise_xor(x.bitwise_right_shift(16));
}

void mask_by_formula(Tensor& out, const Tensor& in, double p, DropoutKey key, int64_t first_index) {
  const Tensor index = at::arange(first_index, first_index + in.numel(), in.options().dtype(at::kLong));
  const auto low_key = static_cast<int64_t>(key.value & 0xffffffff), high_key = static_cast<int64_t>(key.value >> 32);
  const Tensor stream = scrambled(index.bitwise_right_shift(32)).bitwise_xor(low_key);
  const Tensor first = scrambled(index.bitwise_and(0xffffffffLL).bitwise_xor(stream));
  const Tensor drawn = scrambled((first + high_key).bitwise_and(0xffffffffLL));
  const auto threshold = static_cast<int64_t>(std::min(std::floor(p * 4294967296.0), 4294967295.0));
  const auto scale = static_cast<double>(static_cast<float>(1 / (1 - p)));
  out.copy_((in * scale).masked_fill(drawn.lt(threshold).view(in.sizes()), 0));
}

void mask_into(Tensor& out, const Tensor& in, double p, DropoutKey key, int64_t first_index) {
  RMOE_ASSERT(in.is_contiguous() && out.is_contiguous());
  if (!in.is_cpu()) {
    const DeviceCall call(in);
    const bool done = call.with_kernels_of(in.scalar_type(), [&]<class T>(const auto& kernels, T*) {
      kernels.dropout(elements_to_write<T>(out), elements<T>(in), in.numel(), {key.value, p},
                      static_cast<uint64_t>(first_index), call.stream());
    });
    return done ? void() : mask_by_formula(out, in, p, key, first_index);
  }
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
