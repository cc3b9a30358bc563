// `rmoe upcycle` and `rmoe retrofit`: a run made of another run's weights. Free of torch.
#pragma once

#include <string>

#include "rmoe/base/fields.h"
#include "rmoe/base/registry.h"
#include "rmoe/config/registries.h"

namespace rmoe::adapt {

// How a dense block becomes experts.
//   copy   every expert is the block. A token's weights sum to 1, so the output stays.
//   split  the block's inner width is cut into `slices`, each an expert `experts / slices` times, its output matrix
//          times `slices`; the slices of one copy share a row of the router, so that a token's K = m slices experts are
//          m whole copies ("virtual groups", He et al. 2024, arXiv 2410.07524). The output stays.
//   drop   copy, then in each expert a share of the inner units is drawn anew from N(mean, deviation) of the weights
//          that were there, matrix by matrix ("Drop-Upcycling", Nakamura et al. 2025, arXiv 2502.19261). The output
//          changes.
enum class Method { kCopy, kSplit, kDrop };

}  // namespace rmoe::adapt

namespace rmoe {
template <>
struct EnumNames<adapt::Method> {
  static constexpr std::array names{std::pair{adapt::Method::kCopy, "copy"}, std::pair{adapt::Method::kSplit, "split"},
                                    std::pair{adapt::Method::kDrop, "drop"}};
};
}  // namespace rmoe

namespace rmoe::adapt {

// What is the same for both.
struct Source {
  std::string run, out;
  std::string checkpoint = "newest";
  int64_t seed = 1;     // of what is drawn
  int64_t threads = 0;  // 0: all
};

struct UpcycleCommand {
  Source source;
  Method method = Method::kCopy;
  int64_t experts = 8, top_k = 2;
  int64_t slices = 2;        // split
  double drop_share = 0.5;   // drop
  int64_t dense_layers = 0;  // leading layers that stay dense
  int64_t every = 1;         // of the others, each n-th becomes MoE, the first included
};

struct RetrofitCommand {
  Source source;
  std::string stage = "gru";
  int64_t width = 128;
  bool train_routers = false;  // train.freeze of the new run's config leaves its routers to train, and nothing else
};

struct Report {
  std::string run;
  int64_t params = 0, active_params = 0;  // of the new run
  int64_t params_before = 0;
  // Of the logits of random tokens, before and after: the largest difference, over the largest logit.
  double difference = 0;
  bool identical = false;  // bit for bit
};

// Makes the run folder `out`, with one checkpoint, of step 0, the source's tokenizer and its config but for the model.
// `rmoe eval`, `generate` and `train --init` take it. Errors are kBadInput in one line: `out` is there already; a run
// of the span family, or one with MoE layers; sizes that do not go together (top_k above experts, experts no multiple
// of slices, top_k no multiple of slices, an inner width that slices do not divide).
Report upcycle(const UpcycleCommand& command);

// Puts a recurrent stage in front of an MoE run's routers: they go on to read x, and a gate on the state that starts at
// zero is added to their logits (model.moe.state_gate), so that the new run's output is that of the old one, bit for
// bit. Errors: as above; a run without MoE layers, one that has a recurrent stage already, a router that a stage cannot
// stand in front of.
Report retrofit(const RetrofitCommand& command);

}  // namespace rmoe::adapt
