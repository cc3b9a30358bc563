// Which text is for training, validation and test: a pure function of the text and the options, the same in every pass.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "rmoe/data/corpus.h"

namespace rmoe::data {

enum Split : size_t { kTrain = 0, kValid = 1, kTest = 2 };
inline constexpr size_t kSplits = 3;
inline constexpr std::array<const char*, kSplits> kSplitNames{"train", "valid", "test"};

// Receives the documents of all splits; within a split they come in order.
class SplitSink {
 public:
  virtual ~SplitSink() = default;
  virtual void text(Split split, std::string_view piece) = 0;
  virtual void end_document(Split split) = 0;
};

// How to divide one corpus.
struct SplitRule {
  enum class By {
    kWhole,      // everything belongs to `whole`
    kRanges,     // contiguous ranges of the text, in the order train, valid, test, as the literature does
    kDocuments,  // each document by the hash of its beginning, so that copies of a document stay together
  };
  By by = By::kRanges;
  Split whole = kTrain;
  // kRanges: bytes of text where valid and test begin; the same place twice leaves valid out. The cut is made just
  // there (kByte), before the next character (kCharacter), or after the next line feed or document end (kLine; a line
  // of more than 64 KiB is cut before a character).
  enum class Cut { kByte, kCharacter, kLine };
  int64_t valid_at = 0, test_at = 0;
  Cut cut = Cut::kLine;
  // kDocuments: the share of documents, and the key of the choice.
  double valid = 0, test = 0;
  uint64_t seed = 0;
};

// Reads the corpus and hands every piece of text to its split.
void read_split(const Corpus& corpus, const SplitRule& rule, SplitSink& sink, const ReadProgress& progress = {});

}  // namespace rmoe::data
