// Products of small matrices of bf16 on the tensor cores, from tiles in shared memory. The layouts are those of PTX's
// mma.m16n8k16: lane 4 g + t of a warp holds rows g and g + 8 and, of every 8 columns, 2 t and 2 t + 1.
#pragma once

#include "rmoe/kernels/cuda/device_code.h"

namespace rmoe::kernels::cuda {

struct Lane {
  int g, t;
  __device__ static Lane own() {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    return {lane / 4, lane % 4};
  }
};

#if !defined(RMOE_CUDA_ON_HOST)
#define RMOE_UNROLL _Pragma("unroll")
// d [16, 8] += a [16, 16] b [16, 8].
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline uint32_t pack(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
#else
#define RMOE_UNROLL
inline uint32_t pack(float low, float high) {
  return from_float<Bf16>(low).bits | uint32_t{from_float<Bf16>(high).bits} << 16;
}
#endif

__device__ inline uint32_t pair_at(const Bf16* p) { return *reinterpret_cast<const uint32_t*>(p); }

// Rows row ... row + 15 and columns k ... k + 15 of a tile [rows, stride], as a left operand.
struct Left {
  uint32_t pairs[4];
  __device__ static Left of(const Bf16* tile, int stride, int row, int k) {
    const Lane lane = Lane::own();
    const Bf16* p = tile + (row + lane.g) * stride + k + 2 * lane.t;
    return {{pair_at(p), pair_at(p + 8 * stride), pair_at(p + 8), pair_at(p + 8 * stride + 8)}};
  }
  // Of two results side by side, [16, 8] each.
  __device__ static Left of(const float (&low)[4], const float (&high)[4]) {
    return {{pack(low[0], low[1]), pack(low[2], low[3]), pack(high[0], high[1]), pack(high[2], high[3])}};
  }
};

// d [16, 8] += left x (the transpose of rows n ... n + 7 and columns k ... k + 15 of a tile [rows, stride]).
__device__ inline void multiply(float (&d)[4], const Left& left, const Bf16* tile, int stride, int n, int k) {
  const Lane lane = Lane::own();
  const Bf16* p = tile + (n + lane.g) * stride + k + 2 * lane.t;
  mma(d, left.pairs, {pair_at(p), pair_at(p + 8)});
}

// Of one value of a result. half: row / 8, which the compiler knows.
struct Place {
  int row, column, half;
};

// A result [16, 8 kColumns].
template <int kColumns>
struct Result {
  float values[kColumns][4] = {};

  // += left [16, 16 kSteps] x the transpose of the rows n ... of a tile. left(step): the Left of 16 columns.
  template <int kSteps, class F>
  __device__ void add(F&& left, const Bf16* tile, int stride, int n = 0) {
    RMOE_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      const Left l = left(step);
      RMOE_UNROLL
      for (int j = 0; j < kColumns; ++j) multiply(values[j], l, tile, stride, n + 8 * j, 16 * step);
    }
  }
  // f(place, value, other's value) for this lane's values.
  template <class F>
  __device__ void for_each_with(Result& other, F&& f) {
    const Lane lane = Lane::own();
    RMOE_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      RMOE_UNROLL
      for (int i = 0; i < 4; ++i)
        f(Place{lane.g + 8 * (i / 2), 8 * j + 2 * lane.t + i % 2, i / 2}, values[j][i], other.values[j][i]);
    }
  }
  template <class F>
  __device__ void for_each(F&& f) {
    for_each_with(*this, [&](Place at, float& value, float&) { f(at, value); });
  }
  // Columns 16 step ... 16 step + 15, as a left operand.
  __device__ Left left(int step) const { return Left::of(values[2 * step], values[2 * step + 1]); }
};

}  // namespace rmoe::kernels::cuda
