#include "rmoe/routing/sums.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace rmoe::routing {

void RoutingSums::add(const RoutingTrace& trace) {
  at::NoGradGuard no_grad;
  RoutingSums sums;
  for (const Routing& routing : trace) {
    const Tensor counts_N = routing.counts_N.cpu().contiguous();
    const auto* data = counts_N.const_data_ptr<int64_t>();
    sums.counts.emplace_back(data, data + counts_N.numel());
    if (routing.dropped.defined()) sums.dropped += routing.dropped.item<int64_t>();
    sums.entropy +=
        sum_over_tokens(at::special_entr(routing.probs_TN).sum(-1, false, at::kDouble), routing.valid_T).item<double>();
  }
  if (!trace.empty()) {
    sums.tokens = trace[0].valid_T.defined() ? trace[0].valid_T.sum().item<int64_t>() : trace[0].tokens();
  }
  add(sums);
}

void RoutingSums::add(const RoutingSums& other) {
  tokens += other.tokens;
  dropped += other.dropped;
  entropy += other.entropy;
  counts.resize(std::max(counts.size(), other.counts.size()));
  for (size_t layer = 0; layer < other.counts.size(); ++layer) {
    counts[layer].resize(other.counts[layer].size());
    for (size_t e = 0; e < counts[layer].size(); ++e) counts[layer][e] += other.counts[layer][e];
  }
}

double RoutingSums::mean_entropy() const {
  const auto rows = static_cast<double>(tokens) * static_cast<double>(counts.size());
  return rows > 0 ? entropy / rows : std::numeric_limits<double>::quiet_NaN();
}

double load_imbalance(const std::vector<std::vector<int64_t>>& counts) {
  double sum = 0;
  for (const auto& layer : counts) {
    const auto total = static_cast<double>(std::accumulate(layer.begin(), layer.end(), int64_t{0}));
    const auto most = static_cast<double>(*std::max_element(layer.begin(), layer.end()));
    sum += most * static_cast<double>(layer.size()) / total;
  }
  return sum / static_cast<double>(counts.size());
}

int64_t dead_experts(const std::vector<std::vector<int64_t>>& counts) {
  int64_t dead = 0;
  for (const auto& layer : counts) dead += std::count(layer.begin(), layer.end(), 0);
  return dead;
}

}  // namespace rmoe::routing
