// Made-up routing for the tests of analyses.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "rmoe/analysis/chunk.h"
#include "rmoe/base/rng.h"

namespace rmoe::analysis {

// T tokens with scores drawn at random, and the top K of them as choices. `layer_of` maps each layer to the one whose
// scores it copies: itself for independent layers.
struct MadeChunk {
  MadeChunk(const Shape& s, int64_t tokens, uint64_t seed, double sharpness = 2, std::vector<int64_t> layer_of = {}) {
    const auto L = s.layers, N = s.experts;
    probs.resize(static_cast<size_t>(tokens * L * N));
    ids.assign(static_cast<size_t>(tokens * L * s.slots), -1);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t l = 0; l < L; ++l) {
        const int64_t from = layer_of.empty() ? l : layer_of[static_cast<size_t>(l)];
        std::vector<double> g;
        for (int64_t n = 0; n < N; ++n) {
          const auto at = static_cast<uint64_t>((t * L + from) * N + n);
          g.push_back(std::exp(sharpness * uniform(mix(seed, kTestStream, at))));
        }
        const double sum = std::accumulate(g.begin(), g.end(), 0.0);
        std::vector<int32_t> order(static_cast<size_t>(N));
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](int32_t a, int32_t b) { return g[static_cast<size_t>(a)] > g[static_cast<size_t>(b)]; });
        for (int64_t n = 0; n < N; ++n) {
          probs[static_cast<size_t>((t * L + l) * N + n)] = static_cast<float>(g[static_cast<size_t>(n)] / sum);
        }
        for (int64_t k = 0; k < s.top_k; ++k) {
          ids[static_cast<size_t>((t * L + l) * s.slots + k)] = order[static_cast<size_t>(k)];
        }
      }
      positions.push_back(t);
      words.push_back(static_cast<int32_t>(uniform_below(mix(seed + 1, kTestStream, static_cast<uint64_t>(t)), 5)));
    }
    chunk = {.shape = s,
             .tokens = tokens,
             .ids_TLK = ids.data(),
             .probs_TLN = probs.data(),
             .tokens_T = words.data(),
             .positions_T = positions.data()};
  }
  MadeChunk(const MadeChunk&) = delete;
  MadeChunk& operator=(const MadeChunk&) = delete;

  std::vector<int32_t> ids, words;
  std::vector<float> probs;
  std::vector<int64_t> positions;
  Chunk chunk;
};

}  // namespace rmoe::analysis
