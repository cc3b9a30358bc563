// Our tokenizers as Hugging Face's tokenizer.json, for those that its `tokenizers` can be made to equal. Text that
// spells a special token, or holds U+2581, is the exception: there such a token or a space is seen. Free of torch.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "rmoe/base/json.h"

namespace rmoe::data {

// Ids are bytes; `separator` is the id behind them, where there is one.
Json huggingface_bytes(std::optional<int64_t> separator);

struct Piece {
  std::string text;  // as in the model's file, with U+2581 for spaces
  float score = 0;
  bool special = false;  // stands for no text
};
// Pieces by id. Spaces are part of the text, no line begins with one that is not there, and each line is encoded by
// itself with its line feed; what no piece covers goes by byte pieces, "<0x00>" to "<0xFF>".
Json huggingface_pieces(const std::vector<Piece>& pieces, bool bpe, int64_t unknown);

}  // namespace rmoe::data
