#include "rmoe/config/run.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "rmoe/base/error.h"

namespace rmoe {

double ScheduleConfig::factor(int64_t step, int64_t steps) const {
  if (step < warmup) return static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (decay == Decay::kConstant) return 1;
  const double span = static_cast<double>(std::max<int64_t>(steps - warmup, 1));
  const double done = std::clamp(static_cast<double>(step - warmup) / span, 0.0, 1.0);
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
