#include "rmoe/routing/sums.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace rmoe::routing {

void RoutingSums::add(const RoutingTrace& trace) {
  RoutingTotals totals;
  totals.add(trace);
  add(totals.take());
}

void RoutingTotals::add(const RoutingTrace& trace) {
  if (trace.empty()) return;
  const at::NoGradGuard no_grad;
  const auto sum = [](Tensor& total, const Tensor& x) { total = total.defined() ? total + x : x; };
  std::vector<Tensor> counts;
  for (const Routing& r : trace) {
    counts.push_back(r.counts_N);
    if (r.dropped.defined()) sum(dropped_, r.dropped);
    sum(entropy_, sum_over_tokens(at::special_entr(r.probs_TN).sum(-1, false, at::kDouble), r.valid_T));
  }
  sum(counts_LN_, at::stack(counts));
  if (trace[0].valid_T.defined()) {
    sum(valid_, trace[0].valid_T.sum());
  } else {
    tokens_ += trace[0].tokens();
  }
}

RoutingSums RoutingTotals::take() {
  RoutingSums sums;
  sums.tokens = tokens_;
  if (valid_.defined()) sums.tokens += valid_.item<int64_t>();
  if (dropped_.defined()) sums.dropped = dropped_.item<int64_t>();
  if (entropy_.defined()) sums.entropy = entropy_.item<double>();
  if (counts_LN_.defined()) {
    const Tensor counts = counts_LN_.cpu().contiguous();
    const auto* row = counts.const_data_ptr<int64_t>();
    for (int64_t layer = 0; layer < counts.size(0); ++layer, row += counts.size(1)) {
      sums.counts.emplace_back(row, row + counts.size(1));
    }
  }
  *this = {};
  return sums;
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
