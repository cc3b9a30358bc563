// Vectors of floats in the widest registers of the instruction set that a kernel file is compiled for, with loads and
// stores that convert from and to bf16 (round to nearest even) and that stop at a count. Included by kernel files only.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "rmoe/kernels/cpu/bf16.h"

namespace rmoe::kernels {
namespace RMOE_ISA {

inline float to_float(float f) { return f; }
inline float to_float(Bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
template <class T>
T from_float(float f);
template <>
inline float from_float<float>(float f) {
  return f;
}
template <>
inline Bf16 from_float<Bf16>(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  return {static_cast<uint16_t>(nan ? 0x7fc0 : rounded)};
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// ThreadSanitizer sees the accesses that the compiler sees. Those that an intrinsic hides are told here, in elements.
#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_read_range(void*, unsigned long);
extern "C" void __tsan_write_range(void*, unsigned long);
template <class T>
void tell_read(const T* p, int64_t n) {
  if (n > 0) __tsan_read_range(const_cast<T*>(p), static_cast<size_t>(n) * sizeof(T));
}
template <class T>
void tell_write(T* p, int64_t n) {
  if (n > 0) __tsan_write_range(p, static_cast<size_t>(n) * sizeof(T));
}
#else
inline void tell_read(const void*, int64_t) {}
inline void tell_write(void*, int64_t) {}
#endif

#if defined(__AVX512F__)

struct Vec {
  static constexpr int64_t kLanes = 16;
  __m512 v;
  Vec() = default;
  Vec(__m512 x) : v(x) {}
  explicit Vec(float x) : v(_mm512_set1_ps(x)) {}
};

// Lanes [0, n): n may be anything.
inline __mmask16 lanes(int64_t n) {
  return n >= 16  ? static_cast<__mmask16>(0xffff)
         : n <= 0 ? static_cast<__mmask16>(0)
                  : static_cast<__mmask16>((1u << n) - 1);
}

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
// Zeros behind the first n.
inline Vec load(const float* p, int64_t n) {
  tell_read(p, std::min<int64_t>(n, 16));
  return _mm512_maskz_loadu_ps(lanes(n), p);
}
inline Vec widen(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }
inline Vec load(const Bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Vec load(const Bf16* p, int64_t n) {
  tell_read(p, std::min<int64_t>(n, 16));
  return widen(_mm256_maskz_loadu_epi16(lanes(n), p));
}
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }
inline void store(float* p, Vec x, int64_t n) {
  tell_write(p, std::min<int64_t>(n, 16));
  _mm512_mask_storeu_ps(p, lanes(n), x.v);
}
// Past the caches, to an address aligned to the vector; stream_fence() before others read it.
inline void stream(float* p, Vec x) {
  tell_write(p, 16);
  _mm512_stream_ps(p, x.v);
}
inline __m256i narrow(Vec x) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v));
#else
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16);
  rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  return _mm512_cvtepi32_epi16(rounded);
#endif
}
inline void store(Bf16* p, Vec x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x)); }
inline void store(Bf16* p, Vec x, int64_t n) {
  tell_write(p, std::min<int64_t>(n, 16));
  _mm256_mask_storeu_epi16(p, lanes(n), narrow(x));
}

inline Vec operator+(Vec a, Vec b) { return _mm512_add_ps(a.v, b.v); }
inline Vec operator-(Vec a, Vec b) { return _mm512_sub_ps(a.v, b.v); }
inline Vec operator*(Vec a, Vec b) { return _mm512_mul_ps(a.v, b.v); }
inline Vec operator/(Vec a, Vec b) { return _mm512_div_ps(a.v, b.v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }  // a b + c
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a.v, b.v); }                // b where either is nan
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a.v, b.v); }
inline Vec sqrt(Vec a) { return _mm512_sqrt_ps(a.v); }
inline Vec abs(Vec a) { return _mm512_abs_ps(a.v); }
inline float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float max(Vec a) { return _mm512_reduce_max_ps(a.v); }
// x where lane < n, other elsewhere.
inline Vec first(Vec x, int64_t n, Vec other) { return _mm512_mask_mov_ps(other.v, lanes(n), x.v); }
// a where x > y, b elsewhere.
inline Vec where_greater(Vec x, Vec y, Vec a, Vec b) {
  return _mm512_mask_mov_ps(b.v, _mm512_cmp_ps_mask(x.v, y.v, _CMP_GT_OQ), a.v);
}
inline Vec round(Vec a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec scale_by_power(Vec a, Vec exponent) { return _mm512_scalef_ps(a.v, exponent.v); }

#else

struct Vec {
  static constexpr int64_t kLanes = 8;
  __m256 v;
  Vec() = default;
  Vec(__m256 x) : v(x) {}
  explicit Vec(float x) : v(_mm256_set1_ps(x)) {}
};

inline __m256i lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(std::clamp<int64_t>(n, 0, 8))),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const float* p, int64_t n) {
  tell_read(p, std::min<int64_t>(n, 8));
  return _mm256_maskload_ps(p, lanes(n));
}
inline Vec load(const Bf16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec load(const Bf16* p, int64_t n) {
  Bf16 bits[8] = {};
  std::memcpy(bits, p, static_cast<size_t>(std::clamp<int64_t>(n, 0, 8)) * 2);
  return load(bits);
}
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x.v); }
inline void store(float* p, Vec x, int64_t n) {
  tell_write(p, std::min<int64_t>(n, 8));
  _mm256_maskstore_ps(p, lanes(n), x.v);
}
inline void stream(float* p, Vec x) {
  tell_write(p, 8);
  _mm256_stream_ps(p, x.v);
}
inline void store(Bf16* p, Vec x, int64_t n) {
  float values[8];
  _mm256_storeu_ps(values, x.v);
  for (int64_t i = 0; i < std::min<int64_t>(n, 8); ++i) p[i] = from_float<Bf16>(values[i]);
}
inline void store(Bf16* p, Vec x) { store(p, x, 8); }

inline Vec operator+(Vec a, Vec b) { return _mm256_add_ps(a.v, b.v); }
inline Vec operator-(Vec a, Vec b) { return _mm256_sub_ps(a.v, b.v); }
inline Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.v, b.v); }
inline Vec operator/(Vec a, Vec b) { return _mm256_div_ps(a.v, b.v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a.v, b.v); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a.v, b.v); }
inline Vec sqrt(Vec a) { return _mm256_sqrt_ps(a.v); }
inline Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
inline float sum(Vec a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float max(Vec a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline Vec first(Vec x, int64_t n, Vec other) { return _mm256_blendv_ps(other.v, x.v, _mm256_castsi256_ps(lanes(n))); }
inline Vec where_greater(Vec x, Vec y, Vec a, Vec b) {
  return _mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(x.v, y.v, _CMP_GT_OQ));
}
inline Vec round(Vec a) { return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// In two factors, so that the result may be denormal.
inline Vec scale_by_power(Vec a, Vec exponent) {
  const __m256i e = _mm256_cvtps_epi32(exponent.v), half = _mm256_srai_epi32(e, 1);
  const auto power = [](__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  };
  return _mm256_mul_ps(_mm256_mul_ps(a.v, power(half)), power(_mm256_sub_epi32(e, half)));
}

#endif

// e^x within 1.5 units in the last place; 0 below -104, infinity above 88.73, nan for nan.
inline Vec exp(Vec x) {
  const Vec bounded = min(Vec(89.0f), max(Vec(-104.5f), x));
  const Vec n = round(bounded * Vec(1.44269504f));
  Vec r = fma(n, Vec(-0.693359375f), bounded);
  r = fma(n, Vec(2.12194440e-4f), r);
  Vec p(1.9875691500e-4f);
  p = fma(p, r, Vec(1.3981999507e-3f));
  p = fma(p, r, Vec(8.3334519073e-3f));
  p = fma(p, r, Vec(4.1665795894e-2f));
  p = fma(p, r, Vec(1.6666665459e-1f));
  p = fma(p, r, Vec(5.0000001201e-1f));
  p = fma(p, r * r, r) + Vec(1.0f);
  return scale_by_power(p, n);
}
inline Vec sigmoid(Vec x) {
#if defined(__AVX512F__)
  // An estimate and a Newton step take a third of a division's time. (They cannot take an infinity: e^88 is finite.)
  const Vec d = Vec(1.0f) + exp(min(Vec(88.0f), Vec(0.0f) - x)), estimate = _mm512_rcp14_ps(d.v);
  return fma(estimate, _mm512_fnmadd_ps(d.v, estimate.v, _mm512_set1_ps(1.0f)), estimate);
#else
  return Vec(1.0f) / (Vec(1.0f) + exp(Vec(0.0f) - x));
#endif
}
inline Vec tanh(Vec x) {
  // Near zero the quotient below would lose the small digits.
  const Vec z = x * x;
  Vec p(-5.70498872745e-3f);
  p = fma(p, z, Vec(2.06390887954e-2f));
  p = fma(p, z, Vec(-5.37397155531e-2f));
  p = fma(p, z, Vec(1.33314422036e-1f));
  p = fma(p, z, Vec(-3.33332819422e-1f));
  const Vec near_zero = fma(p * z, x, x);
  // Of |x|, where the quotient is below 1 and its rounding small.
  const Vec size = abs(x), far = Vec(1.0f) - Vec(2.0f) / (Vec(1.0f) + exp(size + size));
  return where_greater(Vec(0.625f), size, near_zero, where_greater(x, Vec(0.0f), far, Vec(0.0f) - far));
}

inline void stream_fence() { _mm_sfence(); }

// f(i, n): every stretch [i, i + n) of `count` elements, n = Vec::kLanes but for the last.
template <class F>
inline void for_each_stretch(int64_t count, F&& f) {
  int64_t i = 0;
  for (; i + Vec::kLanes <= count; i += Vec::kLanes) f(i, Vec::kLanes);
  if (i < count) f(i, count - i);
}

// out = (add ? out : 0) + value, for n elements that are not read again soon; stream_fence() before other threads read
// them.
inline void write_gradient(float* out, const float* value, int64_t n, bool add) {
  const bool aligned = reinterpret_cast<uintptr_t>(out) % sizeof(Vec) == 0;
  for_each_stretch(n, [&](int64_t i, int64_t count) {
    if (add) {
      store(out + i, load(out + i, count) + load(value + i, count), count);
    } else if (aligned && count == Vec::kLanes) {
      stream(out + i, load(value + i));
    } else {
      store(out + i, load(value + i, count), count);
    }
  });
}

}  // namespace RMOE_ISA
}  // namespace rmoe::kernels
