#include "tests/support/far_device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <set>

#include <ATen/EmptyTensor.h>
#include <ATen/SDPBackend.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "rmoe/base/error.h"

namespace rmoe::testing {
namespace {

constexpr at::DeviceType kType = at::kPrivateUse1;

std::mutex waits_mutex;
std::vector<std::string> waits;
// Ops compute on copies on the host: those copies are the device's own work.
thread_local int inside_op = 0;

void count_wait(const std::string& op) {
  if (inside_op > 0) return;
  const std::lock_guard lock(waits_mutex);
  waits.push_back(op);
}

// Memory with two addresses: the device's, which nobody may touch, and the host's.
class FarAllocator : public c10::DeviceAllocator {
 public:
  at::DataPtr allocate(size_t bytes) override {
    const at::Device device(kType, 0);
    if (bytes == 0) return {nullptr, nullptr, &release, device};
    constexpr size_t kAlign = 256;
    const size_t size = (bytes + kAlign - 1) / kAlign * kAlign;
    const std::lock_guard lock(mutex_);
    std::vector<std::byte*>& free = free_[size];
    std::byte* block = next_;
    if (free.empty()) {
      RMOE_ASSERT(next_ + size <= far_ + kBytes, "the far device's memory is used up");
      next_ += size;
    } else {
      block = free.back();
      free.pop_back();
    }
    sizes_[block] = size;
    stat_.increase(size);
    return {block, block, &release, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(near(to), near(from), bytes); }

  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    const std::lock_guard lock(mutex_);
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)] = stat_;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override {}
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override { return {kBytes, kBytes}; }

  void* near(const void* far) const { return near_ + (static_cast<const std::byte*>(far) - far_); }

  void let(bool touch) {
    const std::lock_guard lock(mutex_);
    at_work_ += touch ? 1 : -1;
    if (at_work_ != (touch ? 1 : 0)) return;
    // All that may be given out until then: a block may be made while another thread's kernel runs.
    ::mprotect(far_, kBytes, touch ? PROT_READ | PROT_WRITE : PROT_NONE);
  }

  static FarAllocator& instance() {
    static auto* allocator = new FarAllocator;
    return *allocator;
  }

 private:
  static constexpr size_t kBytes = size_t{1} << 36;  // as far as it is touched

  FarAllocator() {
    const int file = ::memfd_create("far device", 0);
    RMOE_ASSERT(file >= 0 && ::ftruncate(file, kBytes) == 0, "the far device has no memory");
    const auto map = [&](int access) {
      void* all = ::mmap(nullptr, kBytes, access, MAP_SHARED | MAP_NORESERVE, file, 0);
      RMOE_ASSERT(all != MAP_FAILED, "the far device has no addresses");
      return static_cast<std::byte*>(all);
    };
    near_ = map(PROT_READ | PROT_WRITE);
    next_ = far_ = map(PROT_NONE);
  }
  static void release(void* far) {
    if (!far) return;
    FarAllocator& self = instance();
    const std::lock_guard lock(self.mutex_);
    auto* block = static_cast<std::byte*>(far);
    const auto size = self.sizes_.find(block);
    self.free_[size->second].push_back(block);
    self.stat_.decrease(size->second);
    self.sizes_.erase(size);
  }

  std::mutex mutex_;
  std::byte *near_, *far_, *next_;
  c10::CachingAllocator::Stat stat_;                // of what is given out
  std::map<std::byte*, size_t> sizes_;              // of what is given out
  std::map<size_t, std::vector<std::byte*>> free_;  // by size
  int at_work_ = 0;
};

bool far(const Tensor& t) { return t.device().type() == kType; }

// The same elements as the host sees them.
Tensor near(const Tensor& t) {
  if (!far(t) || t.numel() == 0) return far(t) ? at::empty(t.sizes(), t.options().device(at::kCPU)) : t;
  void* data = FarAllocator::instance().near(t.const_data_ptr());
  return at::from_blob(data, t.sizes(), t.strides(), t.options().device(at::kCPU));
}

const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &FarAllocator::instance(), kKeys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &FarAllocator::instance(), kKeys,
                                           c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  if (far(from) && !far(to)) count_wait("copy to the host");
  const at::NoGradGuard no_grad;
  near(to).copy_(near(from));
  return to;
}

const Tensor& resize(const Tensor& t, c10::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  RMOE_ASSERT(t.storage().nbytes() == 0 || c10::multiply_integers(size) <= t.numel(),
              "the far device does not move what a tensor holds");
  return at::native::resize_(t, size, format);
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar value(const Tensor& t) {
  count_wait("item");
  return near(t).item();
}

// Ops whose results' size depends on the values: every device has to be waited for.
const std::set<std::string> kSizedByValues = {
    "aten::nonzero",    "aten::masked_select",      "aten::bincount",          "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::repeat_interleave", "aten::equal"};

void by_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  if (kSizedByValues.contains(op.schema().name())) count_wait(op.schema().name());
  ++inside_op;
  const std::shared_ptr<void> leave(nullptr, [](void*) { --inside_op; });
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
}

// One stream, on which everything is done as soon as it is asked for.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<kType> {
  c10::Device getDevice() const override { return {kType, 0}; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void* getStreamNativeHandle(const c10::Stream) const override { return nullptr; }
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, {kType, 0}); }
  void synchronizeDevice(const c10::DeviceIndex) const override { count_wait("synchronize"); }
};

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &value);
}
// As CUDA's own: ATen's formula for devices without one copies the groups' sizes to the host.
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_grouped_mm", torch::CppFunction::makeFromBoxedFunction<&by_host>());
}
// Attention by its formula.
int64_t attention_kernel(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                         std::optional<double>, bool) {
  return static_cast<int64_t>(at::SDPBackend::math);
}
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) { m.impl("_fused_sdp_choice", &attention_kernel); }
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_host>()); }

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
};

[[maybe_unused]] const bool named = [] {
  c10::register_privateuse1_backend(kFarDevice);
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  c10::SetAllocator(kType, &FarAllocator::instance());
  return true;
}();

}  // namespace

DeviceAtWork::DeviceAtWork() { FarAllocator::instance().let(true); }
DeviceAtWork::~DeviceAtWork() { FarAllocator::instance().let(false); }

std::vector<std::string> take_waiting_ops() {
  const std::lock_guard lock(waits_mutex);
  return std::exchange(waits, {});
}

int64_t take_waits() { return std::ssize(take_waiting_ops()); }

}  // namespace rmoe::testing
