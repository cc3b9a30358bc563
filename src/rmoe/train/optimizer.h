// Adam and AdamW over a parameter table, with clipping by the global gradient norm in the same pass.
#pragma once

#include "rmoe/config/run.h"
#include "rmoe/ops/param.h"
#include "rmoe/ops/tensor_file.h"

namespace rmoe {

class Optimizer {
 public:
  // `params` must outlive the optimizer.
  Optimizer(ParamTable& params, const OptimizerConfig& config);

  // The global 2-norm of all gradients, an fp64 scalar on their device.
  Tensor gradient_norm() const;
  // One update with this learning rate; gradients count as scaled by min(1, clip / (norm + 1e-6)) where clip > 0.
  // Parameters without a gradient stay as they are. On a device a norm that is not finite changes nothing, without the
  // host having seen it; on the CPU that is the caller's to look at.
  void step(double lr, const Tensor& gradient_norm);
  // Drops them. The next backward pass hands its results over as the new ones, which costs no pass to clear them and
  // leaves their memory to the activations until then.
  void zero_gradients();

  // Moments as named tensors, exp_avg.NAME and exp_avg_sq.NAME, sharing storage, for checkpoints.
  NamedTensors state() const;
  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }

 private:
  ParamTable& params_;
  OptimizerConfig config_;
  std::vector<size_t> trained_;               // indices into params_
  std::vector<Tensor> exp_avg_, exp_avg_sq_;  // of the trained ones
  int64_t steps_ = 0;
};

}  // namespace rmoe
