#include "rmoe/config/run.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "rmoe/base/error.h"

namespace rmoe {

void InstructConfig::validate() const {
  const auto count = [](const std::string& text, const char* place) {
    int64_t found = 0;
    for (size_t at = text.find(place); at != text.npos; at = text.find(place, at + 1)) ++found;
    return found;
  };
  const auto check = [&](const char* key, const std::string& text, const char* place) {
    RMOE_CHECK(count(text, place) == 1, key, " must contain ", place, " once, got '", text, "'");
  };
  check("system", system, "{content}");
  check("user", user, "{content}");
  check("assistant", assistant, "{content}");
  check("input", input, "{instruction}");
  check("input", input, "{input}");
  RMOE_CHECK(assistant.ends_with("{content}"), "assistant must end with {content}: `end` follows, got '", assistant,
             "'");
}

int64_t ScheduleConfig::warmup_steps(int64_t steps) const {
  if (warmup_ratio <= 0) return warmup;
  return static_cast<int64_t>(std::ceil(warmup_ratio * static_cast<double>(steps)));
}

double ScheduleConfig::factor(int64_t step, int64_t steps) const {
  const int64_t first = warmup_steps(steps);
  if (step < first) return static_cast<double>(step + 1) / static_cast<double>(first);
  if (decay == Decay::kConstant) return 1;
  const double span = static_cast<double>(std::max<int64_t>(steps - first, 1));
  const double done = std::clamp(static_cast<double>(step - first) / span, 0.0, 1.0);
  const double left = decay == Decay::kLinear ? 1 - done : 0.5 * (1 + std::cos(std::numbers::pi * done));
  return final_ratio + (1 - final_ratio) * left;
}

void TrainConfig::validate() const {
  RMOE_CHECK(batch % accumulate == 0, "batch must be a multiple of accumulate, got batch = ", batch,
             " and accumulate = ", accumulate);
}

void resolve_vocabulary(RunConfig& config, int64_t data_size) {
  int64_t& wanted = config.model.vocab_size;
  if (wanted == 0) wanted = data_size;
  RMOE_CHECK(data_size <= wanted, "model.vocab_size is ", wanted, " but the data in ", config.data.path, " has ",
             data_size);
}

}  // namespace rmoe
