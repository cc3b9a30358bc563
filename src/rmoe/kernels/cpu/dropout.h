// Dropout by a counter-based generator: whether element i survives depends on (key, i) alone, so the mask is never
// stored, is the same for any thread count, and backward or recomputation draws it again.
#pragma once

#include <cstdint>

#include "rmoe/kernels/cpu/bf16.h"

namespace rmoe::kernels {

// out[i] = keep(key, first_index + i) ? in[i] * scale : 0 for i < n; each element is dropped with the given probability
// (resolution 2^-32). in and out may be the same. Serial; callers split the range over threads.
void dropout(float* out, const float* in, int64_t n, uint64_t key, uint64_t first_index, double probability,
             float scale);
void dropout(double* out, const double* in, int64_t n, uint64_t key, uint64_t first_index, double probability,
             float scale);
void dropout(Bf16* out, const Bf16* in, int64_t n, uint64_t key, uint64_t first_index, double probability, float scale);

}  // namespace rmoe::kernels
