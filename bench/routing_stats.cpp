// What the statistics of routing (train.routing_stats: loads, entropy, drops) and traces (--trace) cost of a training
// step.
//   bench_routing_stats CONFIG.toml [STEPS]
// Forward and backward passes of the config's model on random tokens; after each, the statistics of its trace, and its
// records in a file: ids and weights, and with scores and states. Best of STEPS (20), taken in turn.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>

#include "rmoe/base/config.h"
#include "rmoe/config/run.h"
#include "rmoe/eval/trace.h"
#include "rmoe/models/model.h"
#include "rmoe/ops/runtime.h"
#include "rmoe/routing/sums.h"

namespace {

template <class F>
double seconds(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int run(const char* path, int64_t steps) {
  rmoe::RunConfig config;
  rmoe::bind(config, rmoe::parse_toml_file(path));
  if (config.model.vocab_size == 0) config.model.vocab_size = 256;
  rmoe::configure_runtime(config.train.threads);
  rmoe::ParamTable table(1, at::kFloat);
  const auto model = rmoe::make_model(config.model, table);
  const auto dtype = config.train.dtype == rmoe::Precision::kBf16 ? at::kBFloat16 : at::kFloat;
  const at::Tensor tokens = at::randint(config.model.vocab_size, {config.train.batch, config.train.block}, at::kLong);
  const at::Tensor targets = tokens.roll(-1, 1).flatten();
  const std::filesystem::path folder = std::filesystem::temp_directory_path();
  const auto file = [&](const char* name) { return (folder / name).string(); };
  const bool states = model->routing().combination().recurrent;
  const auto fields = rmoe::io::TraceFields::parse(states ? "probs,states" : "probs");
  rmoe::TraceRecorder ids({.file = file("bench_trace_ids.npy")}, *model, {});
  rmoe::TraceRecorder full({.file = file("bench_trace_full.npy"), .fields = fields}, *model, {});
  const at::Tensor flat = tokens.flatten(), positions = at::arange(flat.numel(), at::kLong);
  double step = 1e30, statistics = 1e30, choices = 1e30, scores = 1e30;
  for (int64_t i = 0; i < steps; ++i) {
    rmoe::routing::RoutingTrace trace;
    step = std::min(step, seconds([&] {
                      auto result = model->forward(tokens, {}, {.training = true, .dtype = dtype});
                      (at::cross_entropy_loss(result.logits_TV.to(at::kFloat), targets) +
                       model->routing().loss(result.trace))
                          .backward();
                      trace = std::move(result.trace);
                    }));
    statistics = std::min(statistics, seconds([&] {
                            rmoe::routing::RoutingSums sums;
                            sums.add(trace);
                          }));
    choices = std::min(choices, seconds([&] { ids.add(trace, flat, positions, i); }));
    scores = std::min(scores, seconds([&] { full.add(trace, flat, positions, i); }));
  }
  std::printf("%s: step %.1f ms, statistics %.3f ms: %.2f %% of the step\n", path, 1e3 * step, 1e3 * statistics,
              100 * statistics / step);
  std::printf("%s: trace of ids and weights %.3f ms: %.2f %%; with scores%s %.3f ms: %.2f %%\n", path, 1e3 * choices,
              100 * choices / step, states ? " and states" : "", 1e3 * scores, 100 * scores / step);
  return 0;
}

}  // namespace

int main(int count, char** words) {
  if (count < 2) {
    std::fprintf(stderr, "bench_routing_stats CONFIG.toml [STEPS]\n");
    return 2;
  }
  return run(words[1], count > 2 ? std::atoll(words[2]) : 20);
}
