// Runs a test's body with every instruction set that this CPU has.
#pragma once

#include <gtest/gtest.h>

#include "rmoe/kernels/cpu/isa.h"

namespace rmoe::test {

template <class F>
void for_each_isa(F&& f) {
  const kernels::Isa most = kernels::cpu_isa();
  for (int i = 0; i <= static_cast<int>(most); ++i) {
    kernels::set_cpu_isa(static_cast<kernels::Isa>(i));
    SCOPED_TRACE(kernels::isa_name(kernels::cpu_isa()));
    f();
  }
  kernels::set_cpu_isa(most);
}

}  // namespace rmoe::test
