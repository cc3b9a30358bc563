// The table that librmoe.so asks this library for.
#include "rmoe/kernels/cuda/kernels.h"

namespace rmoe::kernels::cuda {
namespace {

template <class T>
constexpr DeviceKernelsOf<T> kOf = {.dropout = &dropout<T>,
                                    .norm = &norm<T>,
                                    .norm_backward = &norm_backward<T>,
                                    .activate = &activate<T>,
                                    .activate_backward = &activate_backward<T>,
                                    .combine = &combine<T>,
                                    .cross_entropy = &cross_entropy<T>};

}  // namespace
}  // namespace rmoe::kernels::cuda

extern "C" __attribute__((visibility("default"))) const rmoe::kernels::DeviceKernels* rmoe_device_kernels() {
  using namespace rmoe::kernels::cuda;
  static const rmoe::kernels::DeviceKernels table = {.fp32 = kOf<float>,
                                                     .bf16 = kOf<rmoe::kernels::Bf16>,
                                                     .choose = &choose,
                                                     .choose_backward = &choose_backward,
                                                     .cell = &cell,
                                                     .cell_backward = &cell_backward,
                                                     .sort_slots = &sort_slots,
                                                     .span_attention = &span_attention,
                                                     .span_attention_backward = &span_attention_backward};
  return &table;
}
