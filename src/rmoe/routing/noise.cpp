#include "rmoe/routing/noise.h"

#include <cmath>
#include <numbers>

#include "rmoe/base/error.h"
#include "rmoe/base/rng.h"

namespace rmoe::routing {
namespace {

constexpr int64_t kGrain = 4096;

// Draw `which` of element i.
double draw(DropoutKey key, uint64_t which, int64_t i) { return uniform(mix(key.value, which, i)); }

template <class T, class F>
void fill(Tensor& out, const F& value) {
  T* data = out.data_ptr<T>();
  at::parallel_for(0, out.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) data[i] = static_cast<T>(value(i));
  });
}

template <class F>
Tensor filled(const Tensor& like, const F& value) {
  RMOE_CHECK(like.scalar_type() == at::kFloat || like.scalar_type() == at::kDouble,
             "noise: the dtype must be fp32 or fp64, got ", like.scalar_type());
  Tensor out = at::empty(like.sizes(), like.options().device(at::kCPU));
  out.scalar_type() == at::kFloat ? fill<float>(out, value) : fill<double>(out, value);
  return out.to(like.device());
}

}  // namespace

Tensor uniform_noise(const Tensor& like, double low, double high, DropoutKey key) {
  return filled(like, [=](int64_t i) { return low + (high - low) * draw(key, 0, i); });
}

Tensor normal_noise(const Tensor& like, DropoutKey key) {
  return filled(like, [=](int64_t i) {  // Box and Muller
    const double radius = std::sqrt(-2 * std::log(1 - draw(key, 0, i)));
    return radius * std::cos(2 * std::numbers::pi * draw(key, 1, i));
  });
}

}  // namespace rmoe::routing
