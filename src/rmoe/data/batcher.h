// Batches of a token file, stateless: what step s holds depends on (seed, s) and the sizes only, so a resumed run
// continues exactly, and any rows of a batch can be had by themselves (micro-batches, data-parallel ranks).
#pragma once

#include <cstdint>
#include <vector>

#include "rmoe/data/token_file.h"

namespace rmoe::data {

// Row b, b in [0, batch): length + 1 ids; inputs are the first `length`, targets the last `length`.
struct Batch {
  std::vector<int64_t> tokens;  // [batch, length + 1]
  // Of instruction data (instructions.h), [batch, length]; empty: the tokens' own. -100: no target.
  std::vector<int64_t> targets;
  std::vector<uint8_t> valid;  // [batch, length] with targets: 0 where a row is padded
  int64_t batch = 0;
  int64_t length = 0;
  bool fresh = true;  // the rows do not continue those of the step before: caches must be cleared
  int64_t epoch = 0;  // of the first row

  // Rows [begin, end) as a batch of their own.
  Batch rows(int64_t begin, int64_t end) const;
};

// The span family's protocol (Transformer-XL, adaptive span): the split is cut into `batch` contiguous streams; step s
// gives the next `block` tokens of every stream, so a cache of the previous block carries over from step to step. Each
// epoch starts at an offset below `block` keyed by (seed, epoch), so blocks are cut elsewhere every time; at most
// (batch + 1) * block tokens at the end of the split are left out of an epoch.
class StreamBatcher {
 public:
  // Throws kBadInput when the file has fewer than batch * block + 1 tokens, or a size is not positive.
  StreamBatcher(TokenFile tokens, int64_t batch, int64_t block, uint64_t seed);
  Batch get(int64_t step) const { return get(step, 0, batch_); }
  // Rows [first_row, last_row) only.
  Batch get(int64_t step, int64_t first_row, int64_t last_row) const;
  int64_t steps_per_epoch() const { return steps_per_epoch_; }

 private:
  int64_t offset(int64_t epoch) const;

  TokenFile tokens_;
  int64_t batch_, block_;
  uint64_t seed_;
  int64_t steps_per_epoch_;
};

// The llama family's protocol: the split is cut into windows of `length` inputs (and as many targets, shifted by one);
// every window is visited once per epoch in an order keyed by (seed, epoch), from an offset below `length` keyed
// likewise. The sequence of windows does not depend on the batch size; a batch may hold the end of one epoch and the
// start of the next. Every batch is fresh.
class WindowBatcher {
 public:
  // Throws kBadInput when the file has fewer than length + 1 tokens, or a size is not positive.
  WindowBatcher(TokenFile tokens, int64_t batch, int64_t length, uint64_t seed);
  Batch get(int64_t step) const { return get(step, 0, batch_); }
  Batch get(int64_t step, int64_t first_row, int64_t last_row) const;
  int64_t windows_per_epoch() const { return windows_per_epoch_; }

 private:
  TokenFile tokens_;
  int64_t batch_, length_;
  uint64_t seed_;
  int64_t windows_per_epoch_;
};

// Tokens drawn uniformly, with no data behind them: to measure what a step costs. Streams that go on from step to step.
class RandomBatcher {
 public:
  RandomBatcher(int64_t vocab_size, int64_t batch, int64_t length, uint64_t seed);
  Batch get(int64_t step, int64_t first_row, int64_t last_row) const;

 private:
  int64_t vocab_size_, batch_, length_;
  uint64_t seed_;
};

}  // namespace rmoe::data
