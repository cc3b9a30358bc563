// Loops of nothing but multiply-adds in registers: what one thread of this CPU can compute at most.
#pragma once

#include <cstdint>

namespace rmoe::kernels {

struct PeakLoop {
  const char* name;  // "avx512"
  // Runs `rounds` rounds on the calling thread and returns the floating-point operations done, 2 per multiply-add.
  double (*run)(int64_t rounds);
};

// The widest fp32 loop that this CPU runs: AVX-512, AVX2 or plain C++.
PeakLoop fp32_peak_loop();

// The same for bf16 products summed in fp32 (the tiles of AMX, AVX512_BF16's dot product); run is null where the CPU has
// none.
PeakLoop bf16_peak_loop();

// Passes over memory, for its bandwidth; the calling thread alone.
// a[i] = b[i] + c[i] / 2: two streams in, one out.
void triad(float* a, const float* b, const float* c, int64_t n);
// The sum modulo 2^64 of a[0..n): one stream in.
uint64_t read_all(const uint64_t* a, int64_t n);

}  // namespace rmoe::kernels
