// Parameters that a training leaves as they are, chosen by the names that checkpoints give them.
#pragma once

#include <string>
#include <vector>

#include "rmoe/ops/param.h"
#include "rmoe/routing/pipeline.h"

namespace rmoe {

struct Frozen {
  int64_t tensors = 0, params = 0;  // as a checkpoint counts them; without the model's own frozen parts
  std::vector<Tensor> buffers;      // states of the training run that are to stay as well
  std::vector<bool> routers;  // per MoE layer: nothing of its head is left to train, and some of it was frozen here
};

// Marks what the globs match (fnmatch(3) with ksh's !(a|b) and so on, `*` also matches dots) as not trained, in order:
// a glob behind a `!` takes back what it matches. Names are those of a checkpoint's tensors, or of the table, where the
// experts of a layer are one tensor: model.layers.0.block_sparse_moe.experts.w1.weight. What the model itself freezes
// stays frozen. Error(kBadInput): a glob that matches nothing; one that matches some parts of what is trained as one
// tensor (single experts, single gates of a cell); nothing left to train. `table` may be one that only counts.
Frozen freeze(ParamTable& table, const routing::Pipeline& routing, const std::vector<std::string>& globs);

// Parameters with gradients.
int64_t trained_count(const ParamTable& table);

}  // namespace rmoe
