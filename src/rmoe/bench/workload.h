// What `rmoe bench layer|step|decode|prompt|eval` repeat.
#pragma once

#include <memory>

#include "rmoe/bench/commands.h"

namespace rmoe::bench {

class Workload {
 public:
  virtual ~Workload() = default;
  // One iteration; returns its seconds, without what it prepares first.
  virtual double run() = 0;
};

// What one iteration computes.
struct WorkloadSize {
  int64_t params = 0;
  double tokens = 0;  // trained, generated or read
  double flops = 0;   // of the model, 2 per multiply-add; a training step counts as three forward passes
  double bytes = 0;   // of weights read; decoding only
};

// Throws kBadInput where the config does not fit. `config` has a vocabulary.
WorkloadSize workload_size(WorkloadKind kind, const RunConfig& config);
// `trace`: of kEval.
std::unique_ptr<Workload> make_workload(WorkloadKind kind, const RunConfig& config, Tracing trace = Tracing::kOff);

// The config as the bench runs it: with a vocabulary, and a schedule that does not end.
RunConfig resolved(RunConfig config);

}  // namespace rmoe::bench
