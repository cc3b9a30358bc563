#include "rmoe/base/rng.h"

namespace rmoe {

Permutation::Permutation(int64_t n, uint64_t key) : n_(n), key_(key), half_bits_(1) {
  RMOE_CHECK(n >= 0, "permutation: size is ", n, ", expected at least 0");
  while (half_bits_ < 31 && (int64_t{1} << (2 * half_bits_)) < n) ++half_bits_;
  RMOE_CHECK(n <= int64_t{1} << 62, "permutation: size is ", n, ", expected at most 2^62");
}

int64_t Permutation::operator()(int64_t i) const {
  RMOE_ASSERT(i >= 0 && i < n_, "permutation: index ", i, " outside 0..", n_ - 1);
  // Four rounds give a pseudo-random permutation from random round functions; two more for halves of a few bits.
  constexpr uint64_t kRounds = 6;
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  auto x = static_cast<uint64_t>(i);
  do {
    uint64_t left = x >> half_bits_, right = x & mask;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const uint64_t next = left ^ (mix(key_, round, right) >> 32 & mask);
      left = right;
      right = next;
    }
    x = left << half_bits_ | right;
  } while (x >= static_cast<uint64_t>(n_));
  return static_cast<int64_t>(x);
}

}  // namespace rmoe
