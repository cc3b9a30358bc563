#include "rmoe/ops/device.h"

#include <dlfcn.h>

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "rmoe/base/error.h"
#include "rmoe/base/process.h"
#include "rmoe/ops/runtime.h"

namespace rmoe {
namespace {

// Why CUDA cannot be used; empty: it can.
const std::string& cuda_error() {
  static const std::string error = [] {
    if (c10::impl::hasDeviceGuardImpl(at::kCUDA)) return std::string();  // Python's torch has loaded it
    return ::dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) ? std::string() : std::string(::dlerror());
  }();
  return error;
}

// Of all sizes of blocks together.
c10::CachingAllocator::Stat tensor_stat(at::Device device) {
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
}

}  // namespace

at::Device device_named(const std::string& name) {
  std::optional<at::Device> device;
  try {
    device.emplace(name);
  } catch (const c10::Error&) {
  }
  RMOE_CHECK(device && device->type() != at::kMeta, "device '", name, "': expected cpu, cuda or cuda:NUMBER");
  if (device->is_cpu()) return at::kCPU;
  const std::string why = device->is_cuda() ? cuda_error() : std::string();
  if (!why.empty() || !c10::impl::hasDeviceGuardImpl(device->type())) {
    throw Error(Exit::kBadInput, str("device '", name, "': this torch has none", why.empty() ? "" : ": ", why),
                "build on a CUDA build of torch (RMOE_TORCH=/path make build), or compute on the CPU: --device cpu");
  }
  const c10::impl::VirtualGuardImpl guard(device->type());
  const int count = guard.deviceCount();
  RMOE_CHECK(count > 0, "device '", name, "': this machine has none");
  RMOE_CHECK(device->index() < count, "device '", name, "': this machine has ", count, ", counted from 0");
  if (!device->has_index()) device->set_index(0);
  return *device;
}

void allow_tf32(bool allow, at::Device device) {
  RMOE_CHECK(!allow || device.is_cuda(), "dtype tf32: device '", device.str(), "' has none, expected fp32 or bf16");
  if (device.is_cuda()) at::globalContext().setAllowTF32CuBLAS(allow);
}

int64_t tensor_bytes(at::Device device) { return device.is_cpu() ? tensor_bytes() : tensor_stat(device).current; }

int64_t memory_peak_bytes(at::Device device) {
  return device.is_cpu() ? memory_peak_bytes() : tensor_stat(device).peak;
}

int64_t memory_total_bytes(at::Device device) {
  if (device.is_cpu()) return memory_total_bytes();
  return static_cast<int64_t>(c10::getDeviceAllocator(device.type())->getMemoryInfo(device.index()).second);
}

void synchronize(at::Device device) {
  if (!device.is_cpu()) c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
}

}  // namespace rmoe
