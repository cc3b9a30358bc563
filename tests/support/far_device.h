// A device whose memory the host cannot touch, for what has to work on every device: torch's type PrivateUse1. Its ops
// are the CPU's on copies of their arguments. A pointer to its memory that the host follows is a segmentation fault,
// and whatever the host reads back from it is counted.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe::testing {

inline constexpr const char* kFarDevice = "far";

// How often the host had to wait for the device since the last call: for a value (item(), a copy to the host), or for
// the size of a result (nonzero(), bincount() and their like, which wait on every device).
int64_t take_waits();
// While it lives, the host may touch the device's memory, as the device does when it computes.
class DeviceAtWork {
 public:
  DeviceAtWork();
  ~DeviceAtWork();
  DeviceAtWork(const DeviceAtWork&) = delete;
  DeviceAtWork& operator=(const DeviceAtWork&) = delete;
};

// The ops that made it wait, for messages.
std::vector<std::string> take_waiting_ops();

}  // namespace rmoe::testing
