// SHA-1 and SHA-256 (FIPS 180-4) of a stream, to compare files with published checksums. Not for secrets.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace rmoe::data {

enum class DigestKind { kSha1, kSha256 };

class Digest {
 public:
  explicit Digest(DigestKind kind);
  void feed(std::string_view bytes);
  // Lower-case hex of everything fed (40 or 64 digits). Ends the digest.
  std::string hex();

 private:
  void block(const unsigned char* bytes);
  void sha1(const std::array<uint32_t, 16>& message);
  void sha256(const std::array<uint32_t, 16>& message);

  DigestKind kind_;
  std::array<uint32_t, 8> state_;
  std::string held_;  // less than a block of 64 bytes
  uint64_t bytes_ = 0;
};

}  // namespace rmoe::data
