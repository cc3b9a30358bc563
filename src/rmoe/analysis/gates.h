// Analyses of the gate scores g (each token's distribution over the N experts of a layer).
#pragma once

#include "rmoe/analysis/chunk.h"
#include "rmoe/analysis/histogram.h"

namespace rmoe::analysis {

// Cross-layer mutual information (paper, Fig. 3): for each token, the scores of two layers, each N numbers, put into
// 100 equal bins over [0, 1]; I = sum p(a, b) ln(p(a, b) / (p(a) p(b))) over the N pairs of bins, in nats; the mean
// over tokens. The diagonal is the entropy of a layer's bins.
class MutualInformation {
 public:
  static constexpr int64_t kBins = 100;

  explicit MutualInformation(const Shape& shape);
  void add(const Chunk& chunk);  // with probs
  Matrix matrix() const;         // [L, L], symmetric; NaN without tokens
  // Mean over pairs of different layers; NaN with fewer than two.
  double mean() const;

 private:
  Shape shape_;
  int64_t tokens_ = 0;
  std::vector<double> sums_;     // [L, L], the upper triangle
  std::vector<double> step_;     // step_[c] = (c + 1) ln(c + 1) - c ln c
  std::vector<uint16_t> joint_;  // [bins, bins], zero between calls
  std::vector<uint8_t> bins_;    // [L, N] of one token
  std::vector<double> single_;   // [L], sum c ln c of one token
};

// Gate entropy -sum g ln g in nats, per token (Fig. 4).
class GateEntropy {
 public:
  explicit GateEntropy(const Shape& shape);
  void add(const Chunk& chunk);  // with probs
  const std::vector<Histogram>& layers() const { return layers_; }
  Histogram all() const;

 private:
  Shape shape_;
  std::vector<Histogram> layers_;  // over [0, ln N]
};

// Inner balance: the largest score over the second largest. Outer balance: the sum of the K largest. Both on the whole
// distribution (Table 8). The ratio is kept as its logarithm in steps of 0.1 %, up to e^40.
class InnerOuterBalance {
 public:
  explicit InnerOuterBalance(const Shape& shape);
  void add(const Chunk& chunk);                                       // with probs
  const std::vector<Histogram>& log_inner() const { return inner_; }  // per layer, of ln(ratio)
  const std::vector<Histogram>& outer() const { return outer_; }
  Histogram all_log_inner() const;
  Histogram all_outer() const;

 private:
  Shape shape_;
  std::vector<Histogram> inner_, outer_;
};

}  // namespace rmoe::analysis
