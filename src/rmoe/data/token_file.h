// Token files: one split of a data set as a flat array of token ids, memory-mapped.
//
// Layout of x.tok, all numbers little-endian and unsigned:
//   offset size field
//        0    8 magic "RMOETOK\0"
//        8    4 version, 1
//       12    4 bytes per token: 1, 2 or 4 (the smallest that holds vocabulary - 1)
//       16    8 count: number of tokens
//       24    8 vocabulary: every id is below it
//       32    8 tokenizer hash: "hash" of the tokenizer.json that made the ids
//       40    8 documents
//       48    8 bytes of text (separators are not text)
//       56    8 characters: the unit of "bits per character": Unicode code points (an invalid byte counts as one), or
//       bytes
//               where one symbol is one byte by the data set's protocol (enwik8, the char tokenizer with byte units)
//       64    8 words: words between white space plus one per line, the count of the WikiText-103 protocol, whatever
//       the
//               tokenizer; perplexity per word divides by it
//       72    8 XXH3-64 (seed 0) of the tokens as stored
//       80   48 reserved, zero
//      128    . count x (bytes per token) bytes of ids, nothing after them
// Where documents are separated, every document ends with the tokenizer's separator id.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace rmoe {
class MappedFile;
}

namespace rmoe::data {

// The header of a token file as numbers; see the layout above.
struct TokenHeader {
  int64_t version = 1;
  int64_t bytes_per_token = 1;
  int64_t count = 0;
  int64_t vocab_size = 0;
  uint64_t tokenizer_hash = 0;
  int64_t documents = 0;
  int64_t bytes = 0;
  int64_t characters = 0;
  int64_t words = 0;
  uint64_t payload_hash = 0;
};

// A read-only view of a token file. Cheap to copy: copies share one mapping.
class TokenFile {
 public:
  // Maps the file and checks magic, version, sizes and reserved bytes. Throws Error naming the file: kBadInput when it
  // is not a sound token file, kIo when it cannot be read.
  static TokenFile open(const std::filesystem::path& path);

  const TokenHeader& header() const { return header_; }
  const std::filesystem::path& path() const { return path_; }
  int64_t size() const { return header_.count; }

  // Copies the ids [begin, begin + count) to `out`. Throws kBadInput when a stored id is not below the vocabulary
  // (a damaged file) and kBug when the range is outside the file.
  void read(int64_t begin, int64_t count, int64_t* out) const;

  // Reads every token once: throws kBadInput when the stored hash or an id does not fit.
  void verify() const;

 private:
  std::filesystem::path path_;
  TokenHeader header_;
  std::shared_ptr<const MappedFile> map_;
  const std::byte* tokens_ = nullptr;
};

// Writes a token file: to `path` + ".tmp" first, renamed by commit(). Without commit() nothing is left behind.
class TokenWriter {
 public:
  TokenWriter(const std::filesystem::path& path, int64_t vocab_size, uint64_t tokenizer_hash);
  ~TokenWriter();
  TokenWriter(const TokenWriter&) = delete;
  TokenWriter& operator=(const TokenWriter&) = delete;

  // Appends ids. Throws kBug for an id outside [0, vocab_size), kIo (naming the file) when the disk is full or broken.
  void append(std::span<const int64_t> ids);

  // The counts that go into the header beside the tokens.
  void set_counts(int64_t documents, int64_t bytes, int64_t characters, int64_t words);

  // Writes the header, syncs, renames and returns what was written.
  TokenHeader commit();

  int64_t size() const { return header_.count; }

 private:
  void flush();

  struct HashState;
  std::filesystem::path path_, temp_path_;
  int fd_ = -1;
  TokenHeader header_;
  std::vector<std::byte> buffer_;
  std::unique_ptr<HashState> hash_;
};

// The smallest token width in bytes that holds ids below `vocab_size`: 1, 2 or 4.
int64_t token_width(int64_t vocab_size);

}  // namespace rmoe::data
