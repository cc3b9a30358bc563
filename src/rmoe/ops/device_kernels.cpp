#include "rmoe/ops/device_kernels.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <string_view>

#include <c10/core/impl/VirtualGuardImpl.h>

#include "rmoe/base/log.h"

namespace rmoe {
namespace {

std::array<const kernels::DeviceKernels*, static_cast<size_t>(at::COMPILE_TIME_MAX_DEVICE_TYPES)> tables = {};

// Our own kernels, where they were built. RMOE_DEVICE_KERNELS=0 does without, for comparisons.
void load_cuda_kernels() {
  [[maybe_unused]] static const bool tried = [] {
    const char* wanted = std::getenv("RMOE_DEVICE_KERNELS");
    if (wanted && std::string_view(wanted) == "0") return true;
    ::Dl_info self;  // it lies beside this library
    if (::dladdr(reinterpret_cast<void*>(&load_cuda_kernels), &self) == 0) return true;
    const auto path = std::filesystem::path(self.dli_fname).parent_path() / "librmoe_cuda.so";
    std::error_code unreadable;
    if (!std::filesystem::exists(path, unreadable)) return true;
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) log_warn(::dlerror(), "; computing without the kernels for CUDA");
    using Table = const kernels::DeviceKernels*();
    auto* const table = library ? reinterpret_cast<Table*>(::dlsym(library, "rmoe_device_kernels")) : nullptr;
    if (table) set_device_kernels(at::kCUDA, table());
    return true;
  }();
}

}  // namespace

void set_device_kernels(at::DeviceType type, const kernels::DeviceKernels* kernels) {
  tables.at(static_cast<size_t>(type)) = kernels;
}

DeviceCall::DeviceCall(const Tensor& t) {
  const at::Device device = t.device();
  if (device.is_cuda()) load_cuda_kernels();
  kernels_ = tables.at(static_cast<size_t>(device.type()));
  if (!kernels_) return;
  guard_.reset_device(device);
  stream_ = c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

}  // namespace rmoe
