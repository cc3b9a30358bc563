#include "rmoe/reproduce/scale.h"

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/config/run.h"

namespace rmoe::reproduce {
namespace {

constexpr int64_t kSteps = 1000, kBatch = 16, kBlock = 256;

class Flags {
 public:
  template <class V>
  void set(const char* key, const V& value) {
    flags_.push_back(str("--", key, "=", value));
  }
  std::vector<std::string> take() { return std::move(flags_); }

 private:
  std::vector<std::string> flags_;
};

// p over the model's width stays; a stage without a width (none, additive) has nothing to scale.
void scale_state(Flags& flags, const std::filesystem::path& config, int64_t divisor) {
  const Node tree = parse_toml_file(config);
  const Node* node = &tree;
  for (const char* key : {"model", "moe", "stage", "width"}) node = node ? node->find(key) : nullptr;
  if (!node) return;
  const auto* width = std::get_if<int64_t>(&node->value);
  RMOE_CHECK(width != nullptr, config.string(), ": model.moe.stage.width is no integer");
  flags.set("model.moe.stage.width", *width / divisor);
}

}  // namespace

std::vector<std::string> scale_flags(Scale scale, const std::filesystem::path& config) {
  if (scale == Scale::kPaper) return {};
  const RunConfig c = load_config<RunConfig>(config, {});
  const bool span = c.model.family == Family::kSpan;
  constexpr int64_t kLlamaWidth = 128, kLlamaHeadWidth = 64;
  const int64_t divisor = span ? 4 : c.model.width / kLlamaWidth, width = c.model.width / divisor;
  Flags flags;
  flags.set("model.width", width);
  flags.set("model.moe.expert_width", c.model.moe.expert_width / divisor);
  if (c.model.moe.shared_width > 0) flags.set("model.moe.shared_width", c.model.moe.shared_width / divisor);
  if (c.model.dense_width > 0) flags.set("model.dense_width", c.model.dense_width / divisor);
  scale_state(flags, config, divisor);
  if (span) {
    constexpr int64_t kHeadWidth = 22;  // half of 44: narrower heads spend their time on softmax
    flags.set("model.heads", width / kHeadWidth);
    flags.set("model.span.span", kBlock / 2);
    flags.set("train.optimizer.lr", 2e-3);  // narrow models take larger steps than the paper's 7e-4
  } else {
    flags.set("model.heads", width / kLlamaHeadWidth);
    flags.set("model.layers", c.model.layers / 3);
    flags.set("model.vocab_size", 0);  // the data's
    flags.set("train.optimizer.lr", 1e-3);
  }
  flags.set("train.dtype", "bf16");
  flags.set("train.steps", kSteps);
  flags.set("train.batch", kBatch);
  flags.set("train.accumulate", 1);
  flags.set("train.block", kBlock);
  flags.set("train.schedule.warmup", kSteps / 20);
  flags.set("train.eval.every", kSteps / 4);
  flags.set("train.eval.tokens", 100000);
  flags.set("train.checkpoint.every", kSteps / 4);
  flags.set("train.checkpoint.keep_last", 1);
  flags.set("train.sample.length", 0);
  if (c.train.gradient_sources_every > 0) flags.set("train.gradient_sources_every", kSteps / 4);
  return flags.take();
}

Budget budget_of(const std::filesystem::path& config, const std::vector<std::string>& flags) {
  const TrainConfig train = load_config<RunConfig>(config, flags).train;
  return {train.steps, train.batch * train.block};
}

}  // namespace rmoe::reproduce
