// The device under test and the ways in which it computes: the far device, or the one that the environment variable
// RMOE_TEST_DEVICE names, where the kernels are the real ones.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string_view>

#include <gtest/gtest.h>

#include "rmoe/base/log.h"
#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/ops/device_kernels.h"
#include "tests/support/cuda_on_host.h"
#include "tests/support/far_device.h"

extern "C" const rmoe::kernels::DeviceKernels* rmoe_device_kernels();

namespace rmoe::testing {

inline const char* test_device() {
  const char* name = std::getenv("RMOE_TEST_DEVICE");
  return name ? name : kFarDevice;
}
inline bool is_far() { return std::string_view(test_device()) == kFarDevice; }

// By formulas in ATen; by the kernels of kernels/cuda/; by those once more, on the far device with the threads of a
// block in another order.
enum class Mode { kFormulas, kKernels, kKernelsBackward };

class ModeScope {
 public:
  explicit ModeScope(Mode mode) {
    const kernels::DeviceKernels* kernels = is_far() ? rmoe_device_kernels() : cuda_kernels();
    if (!kernels) throw std::runtime_error("no kernels for the device under test");
    set_device_kernels(kType, mode == Mode::kFormulas ? nullptr : kernels);
    set_turns(mode == Mode::kKernelsBackward ? Turns::kBackward : Turns::kForward);
  }
  ~ModeScope() { set_device_kernels(kType, nullptr); }
  ModeScope(const ModeScope&) = delete;
  ModeScope& operator=(const ModeScope&) = delete;

 private:
  const at::DeviceType kType = is_far() ? at::kPrivateUse1 : at::kCUDA;
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
    if (is_far()) GTEST_SKIP() << "ThreadSanitizer does not know the fibers that kernels run in";
#endif
  }
  ~OnFarDevice() override { kernels::set_cpu_isa(isa_); }

 private:
  kernels::Isa isa_ = kernels::cpu_isa();
};

}  // namespace rmoe::testing
