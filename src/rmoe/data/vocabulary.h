// What a tokenizer learns from the training split: sinks that read all splits once, then make the tokenizer.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "rmoe/data/splits.h"
#include "rmoe/data/tokenizer.h"

namespace rmoe::data {

// Which symbols become ids: those that occur at least `min_count` times in the training split, at most `vocab_size` ids
// in all (0: no limit), the most frequent first, ties in the order of the symbols.
struct VocabularyLimits {
  int64_t vocab_size = 0;
  int64_t min_count = 1;
};

// Characters or bytes. There is an unknown id when the training split has symbols that were left out, or the other
// splits have some that it lacks.
class CharCensus : public SplitSink {
 public:
  explicit CharCensus(bool bytes);
  void text(Split split, std::string_view piece) override;
  void end_document(Split) override {}
  std::unique_ptr<Tokenizer> make(const VocabularyLimits& limits, bool separated) const;

 private:
  void count(Split split, char32_t symbol);

  bool bytes_;
  std::array<std::string, kSplits> held_;  // an unfinished character
  std::vector<int64_t> counts_;            // in the training split, by symbol
  std::vector<bool> elsewhere_;            // occurs in another split
};

// Words of the WikiText-103 protocol; <eos> counts once per line.
class WordCensus : public SplitSink {
 public:
  void text(Split split, std::string_view piece) override;
  void end_document(Split split) override;
  std::unique_ptr<Tokenizer> make(const VocabularyLimits& limits, bool separated) const;

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  void take(std::string_view text);
  void count(std::string_view word);

  std::string held_;  // perhaps half a word
  bool in_line_ = false;
  std::unordered_map<std::string, int64_t, Hash, std::equal_to<>> counts_;
};

// Lines of the training split for SentencePiece: all of them, or a part keyed by (seed, line), chosen so that about
// `sample_bytes` of the `train_bytes` are kept.
class LineSample : public SplitSink {
 public:
  LineSample(int64_t train_bytes, int64_t sample_bytes, uint64_t seed);
  void text(Split split, std::string_view piece) override;
  void end_document(Split split) override;
  std::unique_ptr<Tokenizer> make(const SentencePieceOptions& options, bool separated);
  int64_t bytes() const { return bytes_; }

 private:
  void take(std::string_view line);

  double share_;
  uint64_t seed_;
  int64_t number_ = 0, bytes_ = 0;
  std::string held_;
  std::vector<std::string> lines_;
};

}  // namespace rmoe::data
