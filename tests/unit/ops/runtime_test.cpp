#include "rmoe/ops/runtime.h"

#include <cstdlib>

#include <ATen/Parallel.h>

#include <gtest/gtest.h>

#include "rmoe/base/process.h"
#include "rmoe/ops/torch.h"

namespace rmoe {
namespace {

class Runtime : public ::testing::Test {
 protected:
  ~Runtime() override {
    ::unsetenv("LOCAL_WORLD_SIZE");
    at::set_num_threads(threads_);
  }
  const int threads_ = at::get_num_threads();
};

int default_threads_with(const char* processes) {
  ::setenv("LOCAL_WORLD_SIZE", processes, 1);
  configure_runtime(0);
  return at::get_num_threads();
}

TEST_F(Runtime, ThreadsAreTheCpusUnlessSaidOtherwise) {
  ::unsetenv("LOCAL_WORLD_SIZE");
  configure_runtime(0);
  EXPECT_EQ(at::get_num_threads(), usable_cpus());
  configure_runtime(3);
  EXPECT_EQ(at::get_num_threads(), 3);
}

TEST_F(Runtime, ProcessesOfTorchrunShareTheCpus) {
  EXPECT_EQ(default_threads_with("1"), usable_cpus());
  EXPECT_EQ(default_threads_with(std::to_string(usable_cpus()).c_str()), 1);
  EXPECT_EQ(default_threads_with("1000000"), 1);
  EXPECT_EQ(default_threads_with("?"), usable_cpus());
  ::setenv("LOCAL_WORLD_SIZE", "2", 1);
  configure_runtime(2);
  EXPECT_EQ(at::get_num_threads(), 2);
}

TEST_F(Runtime, CountsTheBytesOfTensors) {
  configure_runtime(1);
  const int64_t before = tensor_bytes();
  {
    const Tensor small = at::zeros({100}), large = at::zeros({1 << 20});
    for (const Tensor& t : {small, large}) EXPECT_EQ(reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 64, 0);
    EXPECT_EQ(tensor_bytes() - before, 400 + (4 << 20));
    EXPECT_EQ(at::empty({0}).numel(), 0);
  }
  EXPECT_EQ(tensor_bytes(), before);
}

TEST_F(Runtime, TensorsOfBeforeMayBeFreedAfter) {
  Tensor old = at::ones({1 << 20});
  configure_runtime(1);
  Tensor grown = at::cat({old, at::ones({1 << 20})});
  old = Tensor();
  EXPECT_EQ(grown.sum().item<double>(), 2 << 20);
  grown.resize_({3 << 20});
  EXPECT_EQ(grown.narrow(0, 0, 2 << 20).sum().item<double>(), 2 << 20);
}

}  // namespace
}  // namespace rmoe
