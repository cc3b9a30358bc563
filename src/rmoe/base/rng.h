// Counter-based random numbers: every number is a pure function of (seed, stream, counter), so that a resumed run, any
// thread and any order of evaluation see the same ones. Not for cryptography.
#pragma once

#include <cstdint>
#include <string_view>

#include "rmoe/base/error.h"

namespace rmoe {

// Who draws. A further index (layer, step) goes into the seed: mix(mix(seed, kDropout, step), layer, i).
enum Stream : uint64_t {
  kInitStream = 1,
  kDropoutStream = 2,
  kDataStream = 3,
  kSampleStream = 4,
  kSplitStream = 5,
  kTestStream = 6,
};

namespace detail {
// Bijective scrambling of 64 bits: David Stafford's "Mix13" constants, as in splitmix64.
constexpr uint64_t scramble(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
}  // namespace detail

// 64 random bits. For a fixed seed and stream, distinct counters give distinct values.
constexpr uint64_t mix(uint64_t seed, uint64_t stream, uint64_t counter) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;
  // The key enters twice, so that two streams are not shifted copies of each other.
  const uint64_t key = detail::scramble(detail::scramble(seed + kGolden) + stream * kGolden + 1);
  return detail::scramble(detail::scramble(counter * kGolden + key) ^ detail::scramble(~key));
}

// 64 bits of a name, to key a stream by it: FNV-1a, scrambled. Stable for ever: start values depend on it.
constexpr uint64_t hash_text(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return detail::scramble(hash);
}

// Uniform in [0, 1), on a grid of 2^-53.
constexpr double uniform(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

// Uniform in 0..n-1 for n >= 1; the bias is below n / 2^64.
constexpr int64_t uniform_below(uint64_t bits, int64_t n) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<int64_t>((static_cast<Wide>(bits) * static_cast<uint64_t>(n)) >> 64);
}

// A shuffle of 0..n-1 with random access and no memory: a Feistel network keyed by `key` on the smallest 4^h >= n,
// walked along its cycle until it falls below n (fewer than 4 steps on average).
class Permutation {
 public:
  Permutation(int64_t n, uint64_t key);
  int64_t size() const { return n_; }
  int64_t operator()(int64_t i) const;  // 0 <= i < n

 private:
  int64_t n_;
  uint64_t key_;
  int half_bits_;
};

}  // namespace rmoe
