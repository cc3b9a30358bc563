// `rmoe analyze`: every analysis of some runs or traces, as the JSON that docs/formats.md describes. Free of torch.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "rmoe/base/json.h"
#include "rmoe/config/run.h"

namespace rmoe::analysis {

struct AnalyzeCommand {
  std::vector<std::string> runs = {};    // run folders; or trace files, which tell what the routers did and no more
  std::vector<std::string> traces = {};  // of the runs, in their order, instead of reading text with them; or none
  std::string data = {};                 // a data folder or a token file; empty: each run's own
  std::string split = "valid";
  std::string checkpoint = "newest";
  int64_t tokens = 0;                   // read this many of the split's start only; 0: all
  int64_t gradient_batches = 4;         // on which gradients are measured; 0: they are not
  std::optional<Precision> dtype = {};  // to read text in; default: each run's. Gradients are computed in fp32
  std::string device = "cpu";
  int64_t threads = 0;  // 0: all
};

// The contents of analysis.json. Shows progress. Errors as load_run, evaluate and TraceFile::open have them; kBadInput
// where a trace is of another model than its run, and where a run is still being written.
Json analyze(const AnalyzeCommand& command);

}  // namespace rmoe::analysis
