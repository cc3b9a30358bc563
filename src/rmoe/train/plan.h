// What a training run will need, before it starts. Free of torch.
#pragma once

#include <cstdint>
#include <optional>

#include "rmoe/config/run.h"

namespace rmoe {

// fp32: the weight, its gradient and Adam's two moments.
inline constexpr int64_t kTrainingBytesPerParameter = 16;

struct TrainPlan {
  int64_t params = 0, active_params = 0;
  int64_t parameter_bytes = 0;  // with what is saved beside them, such as a bias that adapts
  int64_t gradient_bytes = 0;
  int64_t optimizer_bytes = 0;
  // Measured; none where what every run of this model needs is more than the machine has.
  std::optional<int64_t> activation_bytes;  // of one micro-batch: what its forward pass leaves for its backward pass
  std::optional<int64_t> peak_bytes;        // the most memory of the process, or on a device of tensors, in a step
  int64_t machine_bytes = 0;                // what this process may use, or the device has
};

// Counts the model and runs two steps (two micro-batches each, where there are several) of it on random tokens, with
// weights that are thrown away. The peak is that of this process, so it is the run's only in one that did nothing
// else. Reads nothing but the tokenizer in data.path, where the vocabulary is not set; writes nothing.
TrainPlan plan_training(RunConfig config);

}  // namespace rmoe
