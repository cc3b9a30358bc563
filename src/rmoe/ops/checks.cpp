#include "rmoe/ops/checks.h"

#include "rmoe/base/error.h"

namespace rmoe::check {

bool checkable(const char* op, std::initializer_list<OptionalTensor> tensors) {
  std::optional<c10::Device> device;
  for (const OptionalTensor& t : tensors) {
    if (!t || !t->defined()) continue;
    if (symbolic(*t)) return false;
    if (!device) device = t->device();
    RMOE_CHECK(t->device() == *device, op, ": all tensors must be on one device, got ", *device, " and ", t->device());
  }
  return true;
}

void shape(const char* op, const char* name, const Tensor& t, at::IntArrayRef expected) {
  if (symbolic(t)) return;
  RMOE_CHECK(t.sizes() == expected, op, ": ", name, " must be ", expected, ", got ", t.sizes());
}

void floating(const char* op, const char* name, const Tensor& x) {
  RMOE_CHECK(at::isFloatingType(x.scalar_type()), op, ": ", name, " must be of a floating-point type, got ",
             x.scalar_type());
}

void targets(const Tensor& targets, int64_t V, int64_t ignore_index) {
  const Tensor outside = targets.lt(0).logical_or_(targets.ge(V)).logical_and_(targets.ne(ignore_index));
  RMOE_CHECK(!outside.any().item<bool>(), "linear_cross_entropy: target ",
             targets.masked_select(outside)[0].item<int64_t>(), " is outside [0, ", V, ") and is not ", ignore_index,
             ", which marks ignored tokens");
}

}  // namespace rmoe::check
