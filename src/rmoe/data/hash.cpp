// XXH3-64 by the xxHash library.
#include "rmoe/data/hash.h"

#include <charconv>

#include "rmoe/base/error.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace rmoe::data {

struct RunningHash::State {
  XXH3_state_t xxh;
};

uint64_t xxh3(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }
uint64_t xxh3(std::span<const std::byte> bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

RunningHash::RunningHash() : state_(std::make_unique<State>()) { XXH3_64bits_reset(&state_->xxh); }
RunningHash::~RunningHash() = default;
void RunningHash::feed(std::span<const std::byte> bytes) {
  XXH3_64bits_update(&state_->xxh, bytes.data(), bytes.size());
}
uint64_t RunningHash::value() const { return XXH3_64bits_digest(&state_->xxh); }

std::string hex16(uint64_t value) {
  std::string text(16, '0');
  for (size_t i = 0; i < 16; ++i) text[i] = "0123456789abcdef"[(value >> (60 - 4 * i)) & 0xF];
  return text;
}

uint64_t parse_hex16(std::string_view text, const std::string& what) {
  uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value, 16);
  RMOE_CHECK(text.size() == 16 && error == std::errc() && stop == end, what, ": '", text,
             "' is not a hash, expected 16 hex digits");
  return value;
}

}  // namespace rmoe::data
