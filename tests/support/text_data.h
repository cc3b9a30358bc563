// A small data folder with text-like bytes.
#pragma once

#include <filesystem>
#include <string>

#include "rmoe/base/rng.h"
#include "rmoe/data/token_file.h"
#include "rmoe/data/tokenizer.h"

namespace rmoe::testing {

// Words drawn at random from a short list: predictable within words, open between them.
inline std::string random_text(int64_t bytes, uint64_t seed) {
  static const char* kWords[] = {"the ", "router ", "remembers ", "a token ", "and ", "its layers.\n", "experts "};
  std::string text;
  for (uint64_t i = 0; static_cast<int64_t>(text.size()) < bytes; ++i) {
    text += kWords[uniform_below(mix(seed, kTestStream, i), std::size(kWords))];
  }
  return text.substr(0, static_cast<size_t>(bytes));
}

// Up to 89 different characters: each tells the next, so a model can learn the text by heart.
inline std::string distinct_text(int64_t bytes) {
  std::string text;
  for (int64_t i = 0; i < bytes; ++i) text += static_cast<char>('!' + i * 17 % 89);
  return text;
}

// {train,valid,test}.tok and tokenizer.json with byte tokens; `bytes` for training and half as many for the others,
// or the same few distinct characters in all three.
inline void write_text_data(const std::filesystem::path& dir, int64_t bytes, bool splits_alike = false) {
  std::filesystem::create_directories(dir);
  const auto tokenizer = data::make_byte_tokenizer(false);
  tokenizer->save(dir);
  uint64_t seed = 1;
  for (const char* split : {"train", "valid", "test"}) {
    const std::string text = splits_alike ? distinct_text(bytes) : random_text(seed == 1 ? bytes : bytes / 2, seed);
    const auto ids = tokenizer->encode(text);
    data::TokenWriter writer(dir / (std::string(split) + ".tok"), tokenizer->vocab_size(), tokenizer->hash());
    writer.append(ids);
    const auto size = static_cast<int64_t>(text.size());
    writer.set_counts(1, size, size, size / 5);
    writer.commit();
    ++seed;
  }
}

}  // namespace rmoe::testing
