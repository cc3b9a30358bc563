#include "rmoe/kernels/cpu/dropout.h"

#include <algorithm>
#include <cstring>

// One copy per instruction set, chosen when the library is loaded. The sanitizers' start-up code does not stand the
// resolvers this needs.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define RMOE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define RMOE_CLONES
#endif

namespace rmoe::kernels {
namespace {

inline float to_float(Bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline Bf16 to_bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  return {static_cast<uint16_t>(nan ? 0x7fc0 : rounded)};
}

inline float times(float v, float s) { return v * s; }
inline double times(double v, float s) { return v * static_cast<double>(s); }
inline Bf16 times(Bf16 v, float s) { return to_bf16(to_float(v) * s); }

// The indices of one call share their upper 32 bits.
#define RMOE_DROPOUT_LOOP(T)                                                                                         \
  RMOE_CLONES void dropout_loop(T* out, const T* in, int64_t n, DropoutStream stream, uint32_t first, float scale) { \
    for (int64_t i = 0; i < n; ++i)                                                                                  \
      out[i] = stream.keep(first + static_cast<uint32_t>(i)) ? times(in[i], scale) : T{};                            \
  }
RMOE_DROPOUT_LOOP(float)
RMOE_DROPOUT_LOOP(double)
// With a mask in place of a choice between structs, which the compiler does not vectorize.
RMOE_CLONES void dropout_loop(Bf16* out, const Bf16* in, int64_t n, DropoutStream stream, uint32_t first, float scale) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t kept = stream.keep(first + static_cast<uint32_t>(i)) ? 0xffffU : 0;
    out[i].bits = static_cast<uint16_t>(times(in[i], scale).bits & kept);
  }
}
#undef RMOE_DROPOUT_LOOP

template <class T>
void dropout_any(T* out, const T* in, int64_t n, uint64_t key, uint64_t first_index, double probability, float scale) {
  while (n > 0) {
    const uint64_t upper = first_index >> 32;
    const uint64_t left = ((upper + 1) << 32) - first_index;
    const auto count = static_cast<int64_t>(std::min<uint64_t>(left, static_cast<uint64_t>(n)));
    const DropoutStream stream(key, static_cast<uint32_t>(upper), probability);
    dropout_loop(out, in, count, stream, static_cast<uint32_t>(first_index), scale);
    out += count, in += count, n -= count, first_index += static_cast<uint64_t>(count);
  }
}

}  // namespace

void dropout(float* out, const float* in, int64_t n, uint64_t key, uint64_t first_index, double probability,
             float scale) {
  dropout_any(out, in, n, key, first_index, probability, scale);
}
void dropout(double* out, const double* in, int64_t n, uint64_t key, uint64_t first_index, double probability,
             float scale) {
  dropout_any(out, in, n, key, first_index, probability, scale);
}
void dropout(Bf16* out, const Bf16* in, int64_t n, uint64_t key, uint64_t first_index, double probability,
             float scale) {
  dropout_any(out, in, n, key, first_index, probability, scale);
}

}  // namespace rmoe::kernels
