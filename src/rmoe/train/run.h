// `rmoe train`: drives a Trainer and keeps the run folder (config.toml, metrics.jsonl, tensorboard/, samples/,
// checkpoints/, summary.json). Free of torch.
#pragma once

#include <filesystem>

#include "rmoe/config/run.h"
#include "rmoe/eval/commands.h"

namespace rmoe {

enum class Resume { kAuto, kNever, kMust };
template <>
struct EnumNames<Resume> {
  static constexpr std::array names{std::pair{Resume::kAuto, "auto"}, std::pair{Resume::kNever, "never"},
                                    std::pair{Resume::kMust, "must"}};
};

struct TrainReport {
  int64_t steps = 0;
  double valid_bits = 0;  // bits per character of the last evaluation, per token where characters are unknown
  bool finished = false;  // the budget is used up, as against stopped by a signal
  int signal = 0;         // SIGINT or SIGTERM that ended it, after a save
};

// `trace`: what of the routing is recorded (from the step on that a resumed run starts with), and what is forced.
// Trains in `out` until the config's budget is used up or a signal asks to stop. Errors: kBadInput for config, data or
// a folder that holds another run; kDiverged; kIo.
TrainReport train(RunConfig config, const std::filesystem::path& out, Resume resume, const TraceOptions& trace = {});

}  // namespace rmoe
