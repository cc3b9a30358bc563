// Batches: see batcher.h.
#include "rmoe/data/batcher.h"

#include <algorithm>
#include <utility>

#include "rmoe/base/error.h"
#include "rmoe/base/rng.h"

namespace rmoe::data {
namespace {

// What an epoch draws: where it starts, and the order of its windows.
enum : uint64_t { kOffset = 0, kOrder = 1 };

uint64_t epoch_key(uint64_t seed, int64_t epoch, uint64_t use) {
  return mix(seed, kDataStream, 2 * static_cast<uint64_t>(epoch) + use);
}

Batch empty_batch(int64_t rows, int64_t length) {
  Batch batch;
  batch.batch = rows;
  batch.length = length;
  batch.tokens.resize(static_cast<size_t>(rows * (length + 1)));
  return batch;
}

void check_rows(const char* what, int64_t step, int64_t first, int64_t last, int64_t batch) {
  RMOE_ASSERT(step >= 0 && first >= 0 && first <= last && last <= batch, what, ": step ", step, ", rows [", first, ", ",
              last, ") of ", batch);
}

}  // namespace

Batch Batch::rows(int64_t begin, int64_t end) const {
  check_rows("batch", 0, begin, end, batch);
  Batch part = *this;
  part.batch = end - begin;
  part.tokens.assign(tokens.begin() + begin * (length + 1), tokens.begin() + end * (length + 1));
  if (!targets.empty()) {
    part.targets.assign(targets.begin() + begin * length, targets.begin() + end * length);
    part.valid.assign(valid.begin() + begin * length, valid.begin() + end * length);
  }
  return part;
}

StreamBatcher::StreamBatcher(TokenFile tokens, int64_t batch, int64_t block, uint64_t seed)
    : tokens_(std::move(tokens)), batch_(batch), block_(block), seed_(seed) {
  RMOE_CHECK(batch > 0 && block > 0, "batches of ", batch, " x ", block, " tokens: both must be at least 1");
  const int64_t size = tokens_.size();
  RMOE_CHECK(block <= (size - 1) / batch, tokens_.path().string(), ": ", size, " tokens are too few for ", batch,
             " streams of one block of ", block, " tokens, expected at least ", str(batch, " x ", block, " + 1"));
  // Room for an offset below `block`, except where that would leave no step.
  steps_per_epoch_ = std::max<int64_t>(1, (size - block_) / (batch_ * block_));
}

int64_t StreamBatcher::offset(int64_t epoch) const {
  const int64_t slack = tokens_.size() - 1 - steps_per_epoch_ * batch_ * block_;
  return uniform_below(epoch_key(seed_, epoch, kOffset), std::min(block_, slack + 1));
}

Batch StreamBatcher::get(int64_t step, int64_t first_row, int64_t last_row) const {
  check_rows("stream batch", step, first_row, last_row, batch_);
  Batch batch = empty_batch(last_row - first_row, block_);
  batch.epoch = step / steps_per_epoch_;
  const int64_t position = step % steps_per_epoch_;
  batch.fresh = position == 0;
  const int64_t start = offset(batch.epoch) + position * block_;
  for (int64_t row = first_row; row < last_row; ++row) {
    tokens_.read(start + row * steps_per_epoch_ * block_, block_ + 1,
                 batch.tokens.data() + (row - first_row) * (block_ + 1));
  }
  return batch;
}

WindowBatcher::WindowBatcher(TokenFile tokens, int64_t batch, int64_t length, uint64_t seed)
    : tokens_(std::move(tokens)), batch_(batch), length_(length), seed_(seed) {
  RMOE_CHECK(batch > 0 && length > 0, "batches of ", batch, " x ", length, " tokens: both must be at least 1");
  const int64_t size = tokens_.size();
  RMOE_CHECK(length < size, tokens_.path().string(), ": ", size, " tokens are too few for one window of ", length,
             " tokens, expected at least ", str(length, " + 1"));
  // Room for an offset below `length`, except where that would leave no window.
  windows_per_epoch_ = std::max<int64_t>(1, (size - length_) / length_);
}

Batch WindowBatcher::get(int64_t step, int64_t first_row, int64_t last_row) const {
  check_rows("window batch", step, first_row, last_row, batch_);
  Batch batch = empty_batch(last_row - first_row, length_);
  batch.epoch = (step * batch_ + first_row) / windows_per_epoch_;
  const int64_t slack = tokens_.size() - 1 - windows_per_epoch_ * length_;
  for (int64_t row = first_row; row < last_row; ++row) {
    const int64_t index = step * batch_ + row;
    const int64_t epoch = index / windows_per_epoch_;
    const Permutation order(windows_per_epoch_, epoch_key(seed_, epoch, kOrder));
    const int64_t offset = uniform_below(epoch_key(seed_, epoch, kOffset), std::min(length_, slack + 1));
    tokens_.read(offset + order(index % windows_per_epoch_) * length_, length_ + 1,
                 batch.tokens.data() + (row - first_row) * (length_ + 1));
  }
  return batch;
}

RandomBatcher::RandomBatcher(int64_t vocab_size, int64_t batch, int64_t length, uint64_t seed)
    : vocab_size_(vocab_size), batch_(batch), length_(length), seed_(seed) {
  RMOE_CHECK(vocab_size > 0 && batch > 0 && length > 0, "random batches of ", batch, " x ", length, " tokens below ",
             vocab_size, ": all must be at least 1");
}

Batch RandomBatcher::get(int64_t step, int64_t first_row, int64_t last_row) const {
  check_rows("random batch", step, first_row, last_row, batch_);
  Batch batch = empty_batch(last_row - first_row, length_);
  batch.fresh = step == 0;
  auto draw = static_cast<uint64_t>((step * batch_ + first_row) * (length_ + 1));
  for (int64_t& token : batch.tokens) token = uniform_below(mix(seed_, kDataStream, draw++), vocab_size_);
  return batch;
}

}  // namespace rmoe::data
