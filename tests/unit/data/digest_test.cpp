// SHA-1 and SHA-256 against the examples that NIST publishes with FIPS 180.
#include "rmoe/data/digest.h"

#include <string>

#include <gtest/gtest.h>

namespace rmoe::data {
namespace {

std::string digest(DigestKind kind, const std::string& text, size_t step = 1 << 20) {
  Digest digest(kind);
  for (size_t i = 0; i < text.size(); i += step) digest.feed(std::string_view(text).substr(i, step));
  return digest.hex();
}

TEST(Digest, MatchesPublishedExamples) {
  const std::string two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  EXPECT_EQ(digest(DigestKind::kSha1, ""), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
  EXPECT_EQ(digest(DigestKind::kSha1, "abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
  EXPECT_EQ(digest(DigestKind::kSha1, two_blocks), "84983e441c3bd26ebaae4aa1f95129e5e54670f1");
  EXPECT_EQ(digest(DigestKind::kSha1, std::string(1'000'000, 'a')), "34aa973cd4c4daa4f61eeb2bdbad27316534016f");
  EXPECT_EQ(digest(DigestKind::kSha256, ""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(digest(DigestKind::kSha256, "abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(digest(DigestKind::kSha256, two_blocks),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(digest(DigestKind::kSha256, std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Digest, DoesNotDependOnWhereTheBytesAreCut) {
  const std::string text(1000, 'q');
  for (const size_t step : {1, 7, 55, 56, 63, 64, 65, 119, 128, 999}) {
    EXPECT_EQ(digest(DigestKind::kSha1, text, step), digest(DigestKind::kSha1, text)) << step;
    EXPECT_EQ(digest(DigestKind::kSha256, text, step), digest(DigestKind::kSha256, text)) << step;
  }
}

}  // namespace
}  // namespace rmoe::data
