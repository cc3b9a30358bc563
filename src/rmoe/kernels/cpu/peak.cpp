#include "rmoe/kernels/cpu/peak.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "rmoe/kernels/cpu/isa.h"

namespace rmoe::kernels {
namespace {

// Enough independent sums to hide the latency of two pipelines.
constexpr int kSums = 16;

// A round of the plain loop: the compiler's vectors, whatever it knows of the machine.
double run_plain(int64_t rounds) {
  constexpr int kLanes = 64;
  alignas(64) float sum[kLanes];
  for (int i = 0; i < kLanes; ++i) sum[i] = static_cast<float>(i);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kLanes; ++i) sum[i] = sum[i] * 0.5f + 1.0f;
    asm volatile("" : : "r"(sum) : "memory");
  }
  return 2.0 * kLanes * static_cast<double>(rounds);
}

#if defined(__x86_64__)

// Every sum converges to 2: no overflow, no denormals.
__attribute__((target("avx512f"))) double run_avx512(int64_t rounds) {
  const __m512 half = _mm512_set1_ps(0.5f), one = _mm512_set1_ps(1.0f);
  __m512 sum[kSums];
  for (int i = 0; i < kSums; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sum[i] = _mm512_fmadd_ps(sum[i], half, one);
  }
  for (int i = 0; i < kSums; ++i) asm volatile("" : : "v"(sum[i]));
  return 2.0 * 16 * kSums * static_cast<double>(rounds);
}

__attribute__((target("avx2,fma"))) double run_avx2(int64_t rounds) {
  constexpr int kSums2 = 12;  // of 16 registers
  const __m256 half = _mm256_set1_ps(0.5f), one = _mm256_set1_ps(1.0f);
  __m256 sum[kSums2];
  for (int i = 0; i < kSums2; ++i) sum[i] = _mm256_set1_ps(static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums2; ++i) sum[i] = _mm256_fmadd_ps(sum[i], half, one);
  }
  for (int i = 0; i < kSums2; ++i) asm volatile("" : : "x"(sum[i]));
  return 2.0 * 8 * kSums2 * static_cast<double>(rounds);
}

// Each lane adds two products. The sums grow, but by so little that they stay finite for any time one can wait.
__attribute__((target("avx512f,avx512bf16"))) double run_avx512_bf16(int64_t rounds) {
  const __m512bh factor = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0x1p-10f), _mm512_set1_ps(0x1p-10f));
  __m512 sum[kSums];
  for (int i = 0; i < kSums; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], factor, factor);
  }
  for (int i = 0; i < kSums; ++i) asm volatile("" : : "v"(sum[i]));
  return 2.0 * 32 * kSums * static_cast<double>(rounds);
}

// Four sums [16, 16] of products of depth 32, as many as the eight tiles leave room for.
__attribute__((target("amx-tile,amx-bf16"))) double run_amx(int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shapes;
  alignas(64) uint16_t factors[16 * 32];
  for (uint16_t& factor : factors) factor = 0x3a80;  // 2^-10
  asm volatile("ldtilecfg %0" ::"m"(shapes), "m"(factors));
  _tile_loadd(4, factors, 64);
  _tile_loadd(5, factors, 64);
  _tile_loadd(6, factors, 64);
  _tile_loadd(7, factors, 64);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 2.0 * 16 * 16 * 32 * 4 * static_cast<double>(rounds);
}

#endif

}  // namespace

void triad(float* a, const float* b, const float* c, int64_t n) {
  for (int64_t i = 0; i < n; ++i) a[i] = b[i] + 0.5f * c[i];
}

uint64_t read_all(const uint64_t* a, int64_t n) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i];
  return sum;
}

PeakLoop fp32_peak_loop() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return {"avx512", &run_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"avx2", &run_avx2};
#endif
  return {"plain", &run_plain};
}

PeakLoop bf16_peak_loop() {
#if defined(__x86_64__)
  if (cpu_isa() >= Isa::kAmx) return {"amx", &run_amx};
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16"))
    return {"avx512_bf16", &run_avx512_bf16};
#endif
  return {"none", nullptr};
}

}  // namespace rmoe::kernels
