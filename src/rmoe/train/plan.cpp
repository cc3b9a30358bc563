#include "rmoe/train/plan.h"

#include <algorithm>
#include <filesystem>

#include "rmoe/base/error.h"
#include "rmoe/data/tokenizer.h"
#include "rmoe/models/size.h"
#include "rmoe/ops/device.h"
#include "rmoe/ops/runtime.h"
#include "rmoe/train/freeze.h"
#include "rmoe/train/machine.h"
#include "rmoe/train/trainer.h"

namespace rmoe {
namespace {

// A second micro-batch runs beside the gradients of the first; further ones add what the span family remembers.
constexpr int64_t kMeasuredMicroBatches = 2;

RunConfig measured(RunConfig config) {
  const int64_t rows = config.train.batch / config.train.accumulate;
  config.train.accumulate = std::min(config.train.accumulate, kMeasuredMicroBatches);
  config.train.batch = rows * config.train.accumulate;
  return config;
}

// Of the micro-batches that are not run.
int64_t other_memories(const RunConfig& config) {
  if (config.model.family != Family::kSpan) return 0;
  const int64_t rows = config.train.batch / config.train.accumulate;
  const int64_t element = config.train.dtype == Precision::kBf16 ? 2 : 4;
  return std::max<int64_t>(0, config.train.accumulate - kMeasuredMicroBatches) * rows * config.model.span.span *
         config.model.width * config.model.layers * element;
}

// Parameters with gradients and moments, and every layer's input: no setting makes it less.
double least_bytes(const RunConfig& config, int64_t params, int64_t trained) {
  const TrainConfig& t = config.train;
  const double rows = static_cast<double>(t.batch / t.accumulate) * static_cast<double>(t.block);
  const double width = static_cast<double>(config.model.width) * (t.dtype == Precision::kBf16 ? 2 : 4);
  return static_cast<double>(trained) * kTrainingBytesPerParameter + 4 * static_cast<double>(params - trained) +
         rows * width * static_cast<double>(config.model.layers);
}

}  // namespace

TrainPlan plan_training(RunConfig config) {
  if (config.model.vocab_size == 0 && !config.data.path.empty()) {
    resolve_vocabulary(config, data::Tokenizer::load(config.data.path)->vocab_size());
  }
  TrainPlan plan;
  const ModelSize size = model_size(config.model, config.train.block);
  plan.params = size.params;
  plan.active_params = size.active_params;
  ParamTable table;
  const auto model = make_model(config.model, table);
  freeze(table, model->routing(), config.train.freeze);
  for (const Param& param : table.all()) {
    const int64_t element = param.is_buffer() ? static_cast<int64_t>(c10::elementSize(*param.traits.buffer)) : 4;
    plan.parameter_bytes += param.count() * element;
    if (param.traits.trainable) plan.gradient_bytes += 4 * param.count();
  }
  plan.optimizer_bytes = 2 * plan.gradient_bytes;
  const at::Device device = device_named(config.train.device);
  plan.machine_bytes = memory_total_bytes(device);
  if (least_bytes(config, plan.params, trained_count(table)) > static_cast<double>(plan.machine_bytes)) return plan;

  configure_runtime(config.train.threads);
  measured_peak_flops(config.train.dtype, device);  // as the run does before its first step
  Trainer trainer(measured(config));
  // In the second, the span family attends to the first.
  for (int step = 0; step < 2; ++step) trainer.step();
  plan.activation_bytes = trainer.activation_bytes();
  plan.peak_bytes = memory_peak_bytes(device) + other_memories(config);
  return plan;
}

}  // namespace rmoe
