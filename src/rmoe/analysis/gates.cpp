#include "rmoe/analysis/gates.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "rmoe/base/error.h"

namespace rmoe::analysis {
namespace {

constexpr double kMostLogRatio = 40;
constexpr int64_t kLogRatioBins = 40000, kShareBins = 10000, kEntropyBins = 10000;

Histogram merged(const std::vector<Histogram>& layers) {
  Histogram all = layers.at(0);
  for (size_t l = 1; l < layers.size(); ++l) all.merge(layers[l]);
  return all;
}

}  // namespace

MutualInformation::MutualInformation(const Shape& shape)
    : shape_(shape),
      sums_(static_cast<size_t>(shape.layers * shape.layers), 0),
      joint_(kBins * kBins, 0),
      bins_(static_cast<size_t>(shape.layers * shape.experts)),
      single_(static_cast<size_t>(shape.layers)) {
  for (int64_t c = 0; c <= shape.experts; ++c) {
    const auto n = static_cast<double>(c);
    step_.push_back((n + 1) * std::log(n + 1) - (c > 0 ? n * std::log(n) : 0));
  }
}

void MutualInformation::add(const Chunk& chunk) {
  const int64_t L = shape_.layers, N = shape_.experts;
  const double n = static_cast<double>(N), log_n = std::log(n);
  // The sum of c ln c over the counts c of equal codes, counted up one by one.
  const auto grown = [&](auto&& code) {
    double sum = 0;
    for (int64_t e = 0; e < N; ++e) sum += step_[joint_[code(e)]++];
    for (int64_t e = 0; e < N; ++e) joint_[code(e)] = 0;
    return sum;
  };
  for (int64_t t = 0; t < chunk.tokens; ++t) {
    for (int64_t l = 0; l < L; ++l) {
      const float* g = chunk.probs(t, l);
      uint8_t* bins = bins_.data() + l * N;
      for (int64_t e = 0; e < N; ++e) {
        bins[e] = static_cast<uint8_t>(std::clamp(g[e] * static_cast<float>(kBins), 0.0F, kBins - 1.0F));
      }
      single_[static_cast<size_t>(l)] = grown([&](int64_t e) { return static_cast<size_t>(bins[e]); });
    }
    for (int64_t a = 0; a < L; ++a) {
      const uint8_t* first = bins_.data() + a * N;
      sums_[static_cast<size_t>(a * L + a)] += log_n - single_[static_cast<size_t>(a)] / n;
      for (int64_t b = a + 1; b < L; ++b) {
        const uint8_t* second = bins_.data() + b * N;
        const double both = grown([&](int64_t e) { return static_cast<size_t>(first[e]) * kBins + second[e]; });
        sums_[static_cast<size_t>(a * L + b)] +=
            log_n - (single_[static_cast<size_t>(a)] + single_[static_cast<size_t>(b)] - both) / n;
      }
    }
  }
  tokens_ += chunk.tokens;
}

Matrix MutualInformation::matrix() const {
  const auto L = static_cast<size_t>(shape_.layers);
  Matrix out(L, std::vector<double>(L));
  for (size_t a = 0; a < L; ++a) {
    for (size_t b = a; b < L; ++b) {
      // Rounding may leave an independent pair just below 0.
      const double mean = tokens_ > 0 ? std::max(sums_[a * L + b] / static_cast<double>(tokens_), 0.0)
                                      : std::numeric_limits<double>::quiet_NaN();
      out[a][b] = out[b][a] = mean;
    }
  }
  return out;
}

double MutualInformation::mean() const {
  const Matrix all = matrix();
  double sum = 0, pairs = 0;
  for (size_t a = 0; a < all.size(); ++a) {
    for (size_t b = a + 1; b < all.size(); ++b) {
      sum += all[a][b];
      ++pairs;
    }
  }
  return pairs > 0 ? sum / pairs : std::numeric_limits<double>::quiet_NaN();
}

GateEntropy::GateEntropy(const Shape& shape)
    : shape_(shape),
      layers_(static_cast<size_t>(shape.layers),
              Histogram(0, std::log(static_cast<double>(std::max<int64_t>(shape.experts, 2))), kEntropyBins)) {}

void GateEntropy::add(const Chunk& chunk) {
  for (int64_t t = 0; t < chunk.tokens; ++t) {
    for (int64_t l = 0; l < shape_.layers; ++l) {
      const float* g = chunk.probs(t, l);
      float sum = 0;
      for (int64_t e = 0; e < shape_.experts; ++e) sum -= g[e] > 0 ? g[e] * std::log(g[e]) : 0;
      layers_[static_cast<size_t>(l)].add(std::max(sum, 0.0F));
    }
  }
}

Histogram GateEntropy::all() const { return merged(layers_); }

InnerOuterBalance::InnerOuterBalance(const Shape& shape)
    : shape_(shape),
      inner_(static_cast<size_t>(shape.layers), Histogram(0, kMostLogRatio, kLogRatioBins)),
      outer_(static_cast<size_t>(shape.layers), Histogram(0, 1, kShareBins)) {}

void InnerOuterBalance::add(const Chunk& chunk) {
  const auto kept = static_cast<std::ptrdiff_t>(std::min(std::max<int64_t>(shape_.top_k, 2), shape_.experts));
  const auto top_k = static_cast<std::ptrdiff_t>(std::min(shape_.top_k, shape_.experts));
  std::vector<float> sorted(static_cast<size_t>(shape_.experts));
  for (int64_t t = 0; t < chunk.tokens; ++t) {
    for (int64_t l = 0; l < shape_.layers; ++l) {
      const float* g = chunk.probs(t, l);
      std::copy_n(g, shape_.experts, sorted.begin());
      std::partial_sort(sorted.begin(), sorted.begin() + kept, sorted.end(), std::greater<>());
      float sum = 0;
      for (std::ptrdiff_t e = 0; e < top_k; ++e) sum += sorted[static_cast<size_t>(e)];
      outer_[static_cast<size_t>(l)].add(sum);
      if (shape_.experts < 2) continue;
      const double ratio = sorted[1] > 0 ? static_cast<double>(sorted[0]) / sorted[1] : 1e300;
      inner_[static_cast<size_t>(l)].add(std::min(std::log(ratio), kMostLogRatio));
    }
  }
}

Histogram InnerOuterBalance::all_log_inner() const { return merged(inner_); }
Histogram InnerOuterBalance::all_outer() const { return merged(outer_); }

}  // namespace rmoe::analysis
