// What a process that computes sets up once.
#pragma once

#include <cstdint>

namespace rmoe {

// Threads of every tensor operation (0: all CPUs this process may use), and an allocator that keeps freed memory: fresh
// pages cost a fault each, which would double the time of a training step. Free of torch in its interface.
void configure_runtime(int64_t threads);

}  // namespace rmoe
