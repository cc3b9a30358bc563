// Sampling: see sampling.h.
#include "rmoe/eval/sampling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "rmoe/base/error.h"

namespace rmoe {
namespace {

// Makes the probabilities sum to 1.
void normalize(std::vector<Candidate>& kept) {
  double sum = 0;
  for (const Candidate& c : kept) sum += c.probability;
  for (Candidate& c : kept) c.probability /= sum;
}

bool likelier(const Candidate& a, const Candidate& b) {
  return a.probability != b.probability ? a.probability > b.probability : a.id < b.id;
}

struct Largest {
  float value;
  bool any_nan;
};

// In several chains of comparisons at once: a vocabulary is as long as a layer's work in decoding.
Largest largest_of(std::span<const float> logits) {
  constexpr size_t kChains = 8;
  std::array<float, kChains> most;
  most.fill(-std::numeric_limits<float>::infinity());
  std::array<bool, kChains> nan = {};
  const auto see = [&](size_t chain, float x) {
    most[chain] = x > most[chain] ? x : most[chain];
    nan[chain] |= x != x;
  };
  size_t i = 0;
  for (; i + kChains <= logits.size(); i += kChains) {
    for (size_t chain = 0; chain < kChains; ++chain) see(chain, logits[i + chain]);
  }
  for (; i < logits.size(); ++i) see(0, logits[i]);
  return {*std::ranges::max_element(most), std::ranges::find(nan, true) != nan.end()};
}

}  // namespace

void SamplingOptions::validate() const {
  RMOE_CHECK(temperature >= 0 && std::isfinite(temperature), "sampling: temperature must be at least 0, got ",
             temperature);
  RMOE_CHECK(top_k >= 0, "sampling: top_k must be at least 0, got ", top_k);
  RMOE_CHECK(top_p > 0 && top_p <= 1, "sampling: top_p must be above 0 and at most 1, got ", top_p);
}

std::vector<Candidate> sampling_candidates(std::span<const float> logits, const SamplingOptions& options) {
  const auto [largest, any_nan] = largest_of(logits);
  if (any_nan || !std::isfinite(largest)) {
    throw Error(Exit::kDiverged,
                "sampling: the logits are not finite: the weights are damaged or the training diverged");
  }
  if (options.temperature == 0) return {{std::ranges::find(logits, largest) - logits.begin(), 1.0}};

  std::vector<Candidate> kept;
  kept.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    kept.push_back({static_cast<int64_t>(i), static_cast<double>(logits[i])});
  }
  const auto size = static_cast<int64_t>(kept.size());
  // The order of logits, which is finer than that of their probabilities: those of unlikely tokens round to zero.
  if (options.top_k > 0 && options.top_k < size) {
    std::nth_element(kept.begin(), kept.begin() + options.top_k, kept.end(), likelier);
    kept.resize(static_cast<size_t>(options.top_k));
  }
  if (options.top_p < 1) std::sort(kept.begin(), kept.end(), likelier);
  for (Candidate& c : kept) c.probability = std::exp((c.probability - largest) / options.temperature);
  normalize(kept);
  if (options.top_p < 1) {
    double sum = 0;
    size_t count = 0;
    while (count < kept.size() && sum < options.top_p) sum += kept[count++].probability;
    kept.resize(count);
    normalize(kept);
  }
  if (kept.size() < logits.size() || options.top_p < 1) {
    std::sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  }
  return kept;
}

int64_t sample_token(std::span<const float> logits, const SamplingOptions& options, double uniform) {
  const std::vector<Candidate> kept = sampling_candidates(logits, options);
  double sum = 0;
  for (const Candidate& c : kept) {
    sum += c.probability;
    if (uniform < sum) return c.id;
  }
  // The sum may round to just below 1.
  const auto last = std::find_if(kept.rbegin(), kept.rend(), [](const Candidate& c) { return c.probability > 0; });
  return last->id;
}

}  // namespace rmoe
