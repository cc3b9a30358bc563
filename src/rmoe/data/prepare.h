// Text to token files: the whole of `rmoe data prepare`.
//
// The text is streamed three times: to check and count it, to make the vocabulary of the training split, and to encode
// it. Nothing is kept of it but the vocabulary, so it may be larger than memory.
//
// data.json, one JSON object:
//   "format"     "rmoe-data";  "version" 1
//   "command"    how it was made;  "preset" a name or null
//   "sources"    [{"path": file, address or command, "stored_bytes"}]
//   "tokenizer"  {"kind", "vocab_size", "hash", "description"}
//   "split"      {"by": "ranges" | "documents" | "files" | "none", "valid", "test", "seed"}
//   "splits"     {"train": {"file", "tokens", "documents", "bytes", "characters", "words"}, "valid": ..., "test": ...};
//                the counts are those of the token files' headers
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "rmoe/base/json.h"

namespace rmoe::data {

// Empty strings: the preset's choice, or the first of those named.
struct PrepareOptions {
  std::vector<std::string> inputs;  // files, folders, addresses
  std::filesystem::path out;
  std::string preset;
  std::string tokenizer;              // byte, char, word, sentencepiece
  std::string unit;                   // of char: character, byte
  std::string algorithm = "unigram";  // of sentencepiece: unigram, bpe
  std::string model;                  // a SentencePiece model, or tokenizer.json (or its folder) of prepared data
  int64_t vocab_size = 0;             // 0: no limit; 8000 for sentencepiece
  int64_t min_count = 1;
  int64_t sample_bytes = int64_t{8} << 20;  // of training text that a SentencePiece model is made from
  std::string text_key = "text";
  std::vector<std::string> extensions;
  std::string document_end;
  std::string valid = "0.05", test = "0.05";  // a share of the text, or a file
  std::string split = "auto";                 // auto, ranges, documents
  uint64_t seed = 0;                          // of the choice of documents and of the sample
  std::string invalid_utf8;                   // refuse, replace
  std::string sha256;                         // of the one input, as stored
  bool overwrite = false;
  std::string command;  // for data.json
};

// From this many documents on, `auto` splits by documents.
inline constexpr int64_t kManyDocuments = 1000;

// Makes options.out and returns what its data.json holds. Throws Error; then the folder is as it was before.
Json prepare(const PrepareOptions& options);

}  // namespace rmoe::data
