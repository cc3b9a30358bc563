// Which instruction sets the CPU kernels use on this machine.
//
// A kernel is one source file in per_isa/, compiled once for each instruction set and element type that it supports:
// fp32 for AVX2 and for AVX-512, bf16 for AVX-512 with BF16 dot products (which also uses the tiles of AMX where the
// CPU has them), and what multiplies matrices for fp32 in such tiles. Each copy lives in a namespace of its own,
// RMOE_ISA. Where none fits, callers compute the ATen formula.
#pragma once

#include <type_traits>

#include "rmoe/kernels/cpu/bf16.h"

namespace rmoe::kernels {

// In rising order: each includes those before it.
enum class Isa { kPlain, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// What this CPU and its operating system support, or less where the environment variable RMOE_CPU_ISA (plain, avx2,
// avx512, avx512_bf16, amx) says so; it exists for tests. Throws Error on an unknown name and on one beyond this CPU.
Isa cpu_isa();
// For tests and benches: goes on with this one, which cpu_isa() must have included at first.
void set_cpu_isa(Isa isa);
const char* isa_name(Isa isa);

// Whether the tensor library's own fp32 products are faster than ours: MKL's AVX-512 code runs on Intel's CPUs only.
bool library_has_fast_fp32();

// RMOE_KERNELS(norm, NormKernels) declares `const NormKernels<T>* norm_kernels<T>()`, T float or Bf16: the functions
// compiled for this CPU, or null. per_isa/norm.cpp defines the table `norm` in its namespace. Files of
// RMOE_PRODUCT_KERNELS multiply matrices, and are compiled once more for fp32 in the tiles of AMX (per_isa/gemm.h).
#if defined(__x86_64__)
#define RMOE_KERNELS(name, Table) RMOE_KERNELS_OF(name, Table, avx512)
#define RMOE_PRODUCT_KERNELS(name, Table) \
  namespace amx {                         \
  extern const Table<float> name;         \
  }                                       \
  RMOE_KERNELS_OF(name, Table, amx)
#define RMOE_KERNELS_OF(name, Table, with_amx)                             \
  namespace avx2 {                                                         \
  extern const Table<float> name;                                          \
  }                                                                        \
  namespace avx512 {                                                       \
  extern const Table<float> name;                                          \
  }                                                                        \
  namespace avx512_bf16 {                                                  \
  extern const Table<Bf16> name;                                           \
  }                                                                        \
  template <class T>                                                       \
  const Table<T>* name##_kernels() {                                       \
    if constexpr (std::is_same_v<T, float>) {                              \
      if (cpu_isa() >= Isa::kAmx) return &with_amx::name;                  \
      if (cpu_isa() >= Isa::kAvx512) return &avx512::name;                 \
      return cpu_isa() >= Isa::kAvx2 ? &avx2::name : nullptr;              \
    } else {                                                               \
      return cpu_isa() >= Isa::kAvx512Bf16 ? &avx512_bf16::name : nullptr; \
    }                                                                      \
  }
#else
#define RMOE_KERNELS(name, Table)    \
  template <class T>                 \
  const Table<T>* name##_kernels() { \
    return nullptr;                  \
  }
#define RMOE_PRODUCT_KERNELS(name, Table) RMOE_KERNELS(name, Table)
#endif

}  // namespace rmoe::kernels
