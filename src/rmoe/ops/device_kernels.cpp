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

using Table = const kernels::DeviceKernels*;
std::array<std::optional<Table>, static_cast<size_t>(at::COMPILE_TIME_MAX_DEVICE_TYPES)> tables = {};

}  // namespace

const kernels::DeviceKernels* cuda_kernels() {
  static const Table kernels = []() -> Table {
    const char* wanted = std::getenv("RMOE_DEVICE_KERNELS");
    if (wanted && std::string_view(wanted) == "0") return nullptr;
    ::Dl_info self;
    if (::dladdr(reinterpret_cast<void*>(&cuda_kernels), &self) == 0) return nullptr;
    const auto path = std::filesystem::path(self.dli_fname).parent_path() / "librmoe_cuda.so";
    std::error_code unreadable;
    if (!std::filesystem::exists(path, unreadable)) return nullptr;
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    using GetTable = Table();
    auto* const table = library ? reinterpret_cast<GetTable*>(::dlsym(library, "rmoe_device_kernels")) : nullptr;
    if (!table) log_warn(::dlerror(), "; computing without the kernels for CUDA");
    return table ? table() : nullptr;
  }();
  return kernels;
}

void set_device_kernels(at::DeviceType type, const kernels::DeviceKernels* kernels) {
  tables.at(static_cast<size_t>(type)) = kernels;
}

DeviceCall::DeviceCall(const Tensor& t) {
  const at::Device device = t.device();
  const std::optional<Table>& table = tables.at(static_cast<size_t>(device.type()));
  kernels_ = table ? *table : device.is_cuda() ? cuda_kernels() : nullptr;
  if (!kernels_) return;
  guard_.reset_device(device);
  stream_ = c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

}  // namespace rmoe
