// What the routers did with some tokens, as plain arrays: the input of every analysis of routing, whether it comes from
// a model that runs or from a trace file. Free of torch.
#pragma once

#include <cstdint>
#include <vector>

namespace rmoe::analysis {

struct Shape {
  int64_t layers = 0;   // L, MoE layers
  int64_t experts = 0;  // N
  int64_t slots = 0;    // experts that a token can have; ids beyond what it has are -1
  int64_t top_k = 0;    // K of the config
};

// T tokens in the order of the text. Arrays are row-major.
struct Chunk {
  Shape shape;
  int64_t tokens = 0;                    // T
  const int32_t* ids_TLK = nullptr;      // [T, L, slots], by falling score; -1: unused
  const float* probs_TLN = nullptr;      // [T, L, N], each sums to 1; null: not known
  const int32_t* tokens_T = nullptr;     // ids in the vocabulary; null: not known
  const int64_t* positions_T = nullptr;  // token i follows token i - 1 in the text where the positions do

  const int32_t* ids(int64_t t, int64_t layer) const { return ids_TLK + (t * shape.layers + layer) * shape.slots; }
  const float* probs(int64_t t, int64_t layer) const { return probs_TLN + (t * shape.layers + layer) * shape.experts; }
};

using Matrix = std::vector<std::vector<double>>;

}  // namespace rmoe::analysis
