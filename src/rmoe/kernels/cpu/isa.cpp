#include "rmoe/kernels/cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <string>

#include "rmoe/base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rmoe::kernels {
namespace {

constexpr const char* kNames[] = {"plain", "avx2", "avx512", "avx512_bf16", "amx"};

#if defined(__x86_64__)

// The tiles' registers are large: Linux hands them out on request, for the whole process.
bool request_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Isa supported_isa() {
  // What per_isa/ is compiled for (CMakeLists.txt), not only the vectors: a virtual machine may hide bmi2.
  if (!__builtin_cpu_supports("x86-64-v3")) return Isa::kPlain;
  if (!__builtin_cpu_supports("x86-64-v4")) return Isa::kAvx2;
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::kAvx512;
  return request_amx() ? Isa::kAmx : Isa::kAvx512Bf16;
}

#else

Isa supported_isa() { return Isa::kPlain; }

#endif

Isa choose_isa() {
  const Isa most = supported_isa();
  const char* wish = std::getenv("RMOE_CPU_ISA");
  if (!wish) return most;
  for (Isa isa : {Isa::kPlain, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx}) {
    if (isa_name(isa) != std::string(wish)) continue;
    RMOE_CHECK(isa <= most, "RMOE_CPU_ISA: this CPU has no ", wish, "; it has ", isa_name(most));
    return isa;
  }
  input_error("RMOE_CPU_ISA: unknown instruction set '", wish,
              "', expected one of plain, avx2, avx512, avx512_bf16, amx");
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

namespace {
std::atomic<Isa>& current() {
  static std::atomic<Isa> isa = choose_isa();
  return isa;
}
}  // namespace

Isa cpu_isa() { return current().load(std::memory_order_relaxed); }
void set_cpu_isa(Isa isa) { current() = isa; }

bool library_has_fast_fp32() {
#if defined(__x86_64__)
  static const bool intel = __builtin_cpu_is("intel");
  return intel && cpu_isa() >= Isa::kAvx512;
#else
  return true;
#endif
}

}  // namespace rmoe::kernels
