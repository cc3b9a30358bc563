// In which ways a far device computes.
#pragma once

#include <gtest/gtest.h>

#include "rmoe/base/log.h"
#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/ops/device_kernels.h"
#include "tests/support/cuda_on_host.h"
#include "tests/support/far_device.h"

extern "C" const rmoe::kernels::DeviceKernels* rmoe_device_kernels();

namespace rmoe::testing {

// By formulas in ATen; by the kernels of kernels/cuda/ on the host; by those, the threads of a block in another order.
enum class Mode { kFormulas, kKernels, kKernelsBackward };

class ModeScope {
 public:
  explicit ModeScope(Mode mode) {
    set_device_kernels(at::kPrivateUse1, mode == Mode::kFormulas ? nullptr : rmoe_device_kernels());
    set_turns(mode == Mode::kKernelsBackward ? Turns::kBackward : Turns::kForward);
  }
  ~ModeScope() { set_device_kernels(at::kPrivateUse1, nullptr); }
  ModeScope(const ModeScope&) = delete;
  ModeScope& operator=(const ModeScope&) = delete;
};

// What it is compared with on the CPU are the formulas, too.
class OnFarDevice : public ::testing::Test {
 protected:
  OnFarDevice() {
    set_log_level(Level::kQuiet);
    kernels::set_cpu_isa(kernels::Isa::kPlain);
  }
  void SetUp() override {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "ThreadSanitizer does not know the fibers that kernels run in";
#endif
  }
  ~OnFarDevice() override { kernels::set_cpu_isa(isa_); }

 private:
  kernels::Isa isa_ = kernels::cpu_isa();
};

}  // namespace rmoe::testing
