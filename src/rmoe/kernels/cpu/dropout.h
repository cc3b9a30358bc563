// Dropout by a counter-based generator: whether element i survives depends on (key, i) alone, so the mask is never
// stored, is the same for any thread count, and backward or recomputation draws it again.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "rmoe/kernels/cpu/bf16.h"

namespace rmoe::kernels {

// The stream of one key, for kernels that draw the mask where they need it. Always inlined: each kernel file is
// compiled for instructions of its own.
class DropoutStream {
 public:
  // Elements share a stream as long as the upper 32 bits of their indices agree with `upper`.
  [[gnu::always_inline]] DropoutStream(uint64_t key, uint32_t upper, double probability)
      : low_(static_cast<uint32_t>(key) ^ scramble(upper)),
        high_(static_cast<uint32_t>(key >> 32)),
        threshold_(static_cast<uint32_t>(std::min(std::floor(probability * 4294967296.0), 4294967295.0))) {}
  // index: the lower 32 bits.
  [[gnu::always_inline]] bool keep(uint32_t index) const { return draw(index) >= threshold_; }
  // The number that is compared with the threshold. V: uint32_t, or GCC's vectors of them.
  template <class V>
  [[gnu::always_inline]] V draw(V index) const {
    return scramble(scramble(index ^ low_) + high_);
  }
  uint32_t threshold() const { return threshold_; }

 private:
  // A 32-bit finalizer with full avalanche (constants of Chris Wellons' hash prospector); two rounds with half of the
  // key before each.
  template <class V>
  [[gnu::always_inline]] static V scramble(V v) {
    v ^= v >> 16;
    v *= 0x7feb352dU;
    v ^= v >> 15;
    v *= 0x846ca68bU;
    v ^= v >> 16;
    return v;
  }
  uint32_t low_, high_, threshold_;
};

// out[i] = keep(key, first_index + i) ? in[i] * scale : 0 for i < n; each element is dropped with the given probability
// (resolution 2^-32). in and out may be the same. Serial; callers split the range over threads.
void dropout(float* out, const float* in, int64_t n, uint64_t key, uint64_t first_index, double probability,
             float scale);
void dropout(double* out, const double* in, int64_t n, uint64_t key, uint64_t first_index, double probability,
             float scale);
void dropout(Bf16* out, const Bf16* in, int64_t n, uint64_t key, uint64_t first_index, double probability, float scale);

}  // namespace rmoe::kernels
