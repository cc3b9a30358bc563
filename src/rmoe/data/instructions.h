// Instruction data: files of questions with answers, one sample a line (jsonl) or all in one JSON list, as token ids
// with the answers marked. The loss is on the answers alone.
//
// A sample is an object with the fields of Alpaca,
//   {"instruction": "...", "input": "...", "output": "..."}        "input" may be left out or empty
// or a conversation,
//   {"messages": [{"role": "system" | "user" | "assistant", "content": "..."}, ...]}    "system" at the front only
// Other fields are read over. The text of a sample is its messages one after the other, each in its template
// (InstructConfig); an answer is an assistant's content and what ends it: the tokenizer's separator, or where there is
// none the text `end`. What follows the last answer is left out, and so is a question whose answer is blank. Answers
// are encoded by themselves, so the border between question and answer is one between tokens; what a tokenizer puts
// before a document comes once, at the front.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "rmoe/config/run.h"
#include "rmoe/data/batcher.h"
#include "rmoe/data/tokenizer.h"

namespace rmoe::data {

struct Instruction {
  std::vector<int32_t> ids;
  std::vector<std::pair<int32_t, int32_t>> answers;  // [begin, end) in ids, ascending, never empty, never at 0
  int64_t characters = 0;                            // of the answers' text
  int64_t answer_tokens() const;
};

struct InstructionSet {
  std::filesystem::path path;  // of the file
  std::vector<Instruction> samples;
  // Left out, with the place of the first one, "file:line".
  int64_t without_answer = 0, too_long = 0;
  std::string first_without_answer, first_too_long;
  int64_t cut = 0;  // kept, but cut to the block

  int64_t tokens() const;
  int64_t answer_tokens() const;
  // Characters of answers per token of answers, the ends among the latter.
  double characters_per_token() const;
};

// Reads a file, packed or not (file_reader.h). A sample of more than block + 1 ids is handled by config.too_long.
// Errors are kBadInput in one line that begins with "file:line: ", in a list with "file: sample n: ": no JSON object, a
// field that is missing or no string, an unknown role, a system message behind others, text that the tokenizer cannot
// take; and a file that leaves no sample.
InstructionSet read_instructions(const std::filesystem::path& path, const Tokenizer& tokenizer,
                                 const InstructConfig& config, int64_t block);

// Training and validation: two files, or one of which a share, at least one sample, is held out by the samples' hashes.
struct Instructions {
  InstructionSet train, valid;
};
Instructions read_instructions(const InstructConfig& config, const Tokenizer& tokenizer, int64_t block);

// The samples' ids up to the first answer, as text.
std::string question_text(const Instruction& sample, const Tokenizer& tokenizer);

// Rows of samples, side by side in a batch: inputs and targets as far as the longest of the given rows, rounded up.
// `rows`: the samples of each row, one after the other.
Batch instruction_batch(const InstructionSet& set, const std::vector<std::vector<int64_t>>& rows, int64_t block);

// Batches for training, stateless: a row is one sample, or with `pack` as many as fit into `block` + 1 ids; which
// samples share a row is drawn once (best fit in an order keyed by the seed). Every row is visited once per epoch, in
// an order keyed by (seed, epoch); a batch may hold the end of one epoch and the start of the next.
class InstructionBatcher {
 public:
  InstructionBatcher(std::shared_ptr<const InstructionSet> set, int64_t batch, int64_t block, bool pack, uint64_t seed);
  Batch get(int64_t step, int64_t first_row, int64_t last_row) const;
  int64_t rows_per_epoch() const { return static_cast<int64_t>(rows_.size()); }

 private:
  std::shared_ptr<const InstructionSet> set_;
  int64_t batch_, block_;
  uint64_t seed_;
  std::vector<std::vector<int64_t>> rows_;
};

}  // namespace rmoe::data
