// XXH3-64 (seed 0) of bytes: the check sum of token files and tokenizers, and the key by which documents are split.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace rmoe::data {

uint64_t xxh3(std::string_view bytes);
uint64_t xxh3(std::span<const std::byte> bytes);

// The same hash of bytes that come in pieces.
class RunningHash {
 public:
  RunningHash();
  ~RunningHash();
  RunningHash(const RunningHash&) = delete;
  RunningHash& operator=(const RunningHash&) = delete;
  void feed(std::span<const std::byte> bytes);
  uint64_t value() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// 16 lower-case hex digits, and back (throws kBadInput, the message begins with `what`).
std::string hex16(uint64_t value);
uint64_t parse_hex16(std::string_view text, const std::string& what);

}  // namespace rmoe::data
