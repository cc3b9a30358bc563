// Drawing the next token from logits. Free of torch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace rmoe {

struct SamplingOptions {
  double temperature = 1;  // logits are divided by it; 0: greedy, the largest logit
  int64_t top_k = 0;       // only the k largest logits; 0: all
  double top_p = 1;        // of those, the smallest set of the likeliest whose probability reaches p; 1: all

  // Error(kBadInput) for a negative or non-finite temperature, a negative top_k, a top_p outside (0, 1].
  void validate() const;
};

struct Candidate {
  int64_t id;
  double probability;
};

// The tokens that can be drawn, by ascending id, their probabilities summing to 1: temperature, then top_k, then top_p
// on the renormalized rest (the order of Hugging Face's generate). Equal logits: the lower id counts as the likelier,
// so top_k never keeps more than k. Error(kDiverged) when a logit is NaN or none is finite.
std::vector<Candidate> sampling_candidates(std::span<const float> logits, const SamplingOptions& options);

// The candidate at `uniform`, in [0, 1), of the cumulative distribution.
int64_t sample_token(std::span<const float> logits, const SamplingOptions& options, double uniform);

}  // namespace rmoe
