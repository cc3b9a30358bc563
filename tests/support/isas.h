// Every way that this CPU can compute, and with several threads.
#pragma once

#include <string>

#include <gtest/gtest.h>

#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/ops/torch.h"

namespace rmoe::testing {

// f(name of the instruction set) with each that this process may use, the plain formulas first.
template <class F>
void with_every_isa(F&& f) {
  using kernels::Isa;
  const struct Restore {
    Isa isa = kernels::cpu_isa();
    ~Restore() { kernels::set_cpu_isa(isa); }
  } start;
  for (Isa isa : {Isa::kPlain, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx}) {
    if (isa > start.isa) break;
    kernels::set_cpu_isa(isa);
    f(std::string(kernels::isa_name(isa)));
  }
}

// f() with each of them, named in the failures.
template <class F>
void for_each_isa(F&& f) {
  with_every_isa([&](const std::string& isa) {
    SCOPED_TRACE(isa);
    f();
  });
}

// The same without the one that has no kernels.
template <class F>
void for_each_kernel_isa(F&& f) {
  with_every_isa([&](const std::string& isa) {
    SCOPED_TRACE(isa);
    if (kernels::cpu_isa() > kernels::Isa::kPlain) f();
  });
}

// f() with so many threads.
template <class F>
auto with_threads(int threads, F&& f) {
  const struct Restore {
    int threads = at::get_num_threads();
    ~Restore() { at::set_num_threads(threads); }
  } start;
  at::set_num_threads(threads);
  return f();
}

}  // namespace rmoe::testing
