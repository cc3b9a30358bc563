// What a process that computes sets up once.
#pragma once

#include <cstdint>

namespace rmoe {

// Threads of every tensor operation (0: this process's share of the CPUs it may use: all of them, or under torchrun
// their number over LOCAL_WORLD_SIZE), and an allocator that keeps freed memory: fresh pages cost a fault each, which
// would double the time of a training step. Memory freed in one step is there for the next; beyond three quarters of
// the machine's, what is free goes back to the system. Free of torch in its interface.
void configure_runtime(int64_t threads);

// Bytes of all tensors on the CPU that are alive, made since configure_runtime().
int64_t tensor_bytes();

}  // namespace rmoe
