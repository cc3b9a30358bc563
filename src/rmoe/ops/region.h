// Names a part of a training step for whoever profiles it.
#pragma once

#include <string>

#include <ATen/record_function.h>

namespace rmoe {

// From its construction on to the end of its scope, what runs on this thread belongs to "name", or "name index". Shown
// by every profiler that listens to at::RecordFunction; while none does, it costs a look at a thread-local variable.
class Region {
 public:
  explicit Region(const char* name, int64_t index = -1) : record_(at::RecordScope::USER_SCOPE) {
    if (record_.isActive()) record_.before(index < 0 ? std::string(name) : name + (" " + std::to_string(index)));
  }

 private:
  at::RecordFunction record_;
};

}  // namespace rmoe
