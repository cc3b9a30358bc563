#include "rmoe/ops/runtime.h"

#include <malloc.h>

#include <ATen/Parallel.h>

#include "rmoe/base/process.h"

namespace rmoe {

void configure_runtime(int64_t threads) {
  at::set_num_threads(static_cast<int>(threads > 0 ? threads : usable_cpus()));
  // Large blocks come from the heap, not from mmap, and the heap is not given back between steps.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, INT32_MAX);
  mallopt(M_TOP_PAD, 64 << 20);
}

}  // namespace rmoe
