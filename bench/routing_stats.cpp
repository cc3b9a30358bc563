// What the statistics of routing (train.routing_stats: loads, entropy, drops) cost of a training step.
//   bench_routing_stats CONFIG.toml [STEPS]
// Forward and backward passes of the config's model on random tokens; after each, the statistics of its trace. Best of
// STEPS (20) for both, taken in turn.
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "rmoe/base/config.h"
#include "rmoe/config/run.h"
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
  double step = 1e30, statistics = 1e30;
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
  }
  std::printf("%s: step %.1f ms, statistics %.3f ms: %.2f %% of the step\n", path, 1e3 * step, 1e3 * statistics,
              100 * statistics / step);
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
