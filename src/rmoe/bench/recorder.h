// Feeds a Profile with what this thread runs.
#pragma once

#include <ATen/record_function.h>

#include "rmoe/bench/profile.h"

namespace rmoe::bench {

// While it lives, every op, backward node and Region of the thread that made it goes into `profile`; one at a time per
// thread. Ops that other threads call inside of an op are part of that op.
class Recorder {
 public:
  explicit Recorder(Profile& profile);
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

 private:
  at::CallbackHandle handle_;
};

}  // namespace rmoe::bench
