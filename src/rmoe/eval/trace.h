// Recording what the routers do into a trace file, and forcing recorded choices on them.
#pragma once

#include <string>

#include "rmoe/eval/commands.h"
#include "rmoe/io/trace_file.h"
#include "rmoe/models/model.h"

namespace rmoe {

// 16 hex digits that are equal for models of the same configuration, whatever their weights.
std::string model_hash(const ModelConfig& config);

// What a trace of this model holds per token. Error(kBadInput) for states of a model without a recurrent stage, and for
// a model without MoE layers.
io::TraceLayout trace_layout(const Model& model, const io::TraceFields& fields);

// Writes forward passes to a trace file, the chosen tokens of each. Memory: the records of one pass.
class TraceRecorder {
 public:
  // `info`: what the trailer says beside the model ("source", "run", "step", "data").
  TraceRecorder(const TraceOptions& options, const Model& model, Json info);

  // tokens_T, positions_T int64; positions as docs/formats.md defines them for the command.
  void add(const routing::RoutingTrace& trace, const Tensor& tokens_T, const Tensor& positions_T, int64_t step);
  void finish();
  int64_t records() const { return writer_.records(); }

 private:
  io::TokenSlice slice_;
  io::TraceLayout layout_;
  io::TraceWriter writer_;
  Json info_;
};

// Recorded choices, looked up by step and position.
class Replay {
 public:
  // Error(kBadInput) unless the trace is whole and of a model of this configuration.
  Replay(const std::string& file, const Model& model);

  // For ForwardOptions::replay_TK: int64 [T, slots] per MoE layer. Error(kBadInput) for a token that the trace lacks,
  // and where the trace holds token ids, for one that is another.
  std::vector<Tensor> choices(const Tensor& tokens_T, const Tensor& positions_T, int64_t step);
  const io::TraceFile& file() const { return file_; }

 private:
  int64_t find(uint32_t step, uint64_t position) const;
  io::TraceFile file_;
  int64_t cursor_ = 0;  // the record after the last one found
};

}  // namespace rmoe
