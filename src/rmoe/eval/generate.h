// Generation: a prompt goes in, tokens come out one at a time, with keys and values cached.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "rmoe/base/fields.h"
#include "rmoe/data/tokenizer.h"
#include "rmoe/models/model.h"

namespace rmoe {

struct GenerateOptions {
  int64_t max_new = 200;
  double temperature = 1;  // these three as in SamplingOptions; temperature 0: greedy
  int64_t top_k = 0;
  double top_p = 1;
  uint64_t seed = 1;  // token i of the text is drawn with random number i of this seed: same seed, same text
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> ends = {};  // these ids end the text and are not handed out
  // Called after each forward pass with its tokens; replay gives ForwardOptions::replay_TK of them. Positions count
  // from the prompt's first token on.
  std::function<void(const ForwardResult&, const Tensor& tokens_T, const Tensor& positions_T)> watch = {};
  std::function<std::vector<Tensor>(const Tensor& tokens_T, const Tensor& positions_T)> replay = {};
  int64_t vocabulary = 0;  // only ids below this are drawn (a model may have more than its tokenizer); 0: all
};

enum class TextEnding {
  kLength,     // max_new tokens
  kSeparator,  // the id that ends a document
  kStop,       // a stop string
  kCaller,     // the callback wanted no more
};
template <>
struct EnumNames<TextEnding> {
  static constexpr std::array names{std::pair{TextEnding::kLength, "length"},
                                    std::pair{TextEnding::kSeparator, "separator"},
                                    std::pair{TextEnding::kStop, "stop"}, std::pair{TextEnding::kCaller, "caller"}};
};

struct Generated {
  int64_t tokens = 0;  // handed out
  TextEnding ending = TextEnding::kLength;
  double seconds = 0;  // from the first new token on; the prompt is not counted
};

// Continues `prompt` (at least one id), without gradients, and calls `on_token` with every new id until it returns
// false. A long prompt is read in pieces.
Generated generate(const Model& model, std::span<const int64_t> prompt, const GenerateOptions& options,
                   const std::function<bool(int64_t id)>& on_token);

// The ids that generation starts from: the prompt's, or for an empty prompt the start of a document: the separator, in
// a vocabulary without one a line feed, without that id 0.
std::vector<int64_t> prompt_ids(const data::Tokenizer& tokenizer, std::string_view prompt);

struct TextOptions {
  int64_t max_new = 200;  // tokens
  double temperature = 1;
  int64_t top_k = 0;
  double top_p = 1;
  uint64_t seed = 1;
  at::ScalarType dtype = at::kFloat;
  std::function<void(const ForwardResult&, const Tensor& tokens_T, const Tensor& positions_T)> watch = {};
  std::function<std::vector<Tensor>(const Tensor& tokens_T, const Tensor& positions_T)> replay = {};
  std::vector<std::string> stops = {};  // the text ends before the first of these
  std::vector<int64_t> ends = {};       // ids that end it, besides the separator
};

struct GeneratedText {
  std::string text;  // without the prompt
  int64_t prompt_tokens = 0;
  int64_t tokens = 0;  // drawn, those of a stop string included
  TextEnding ending = TextEnding::kLength;
  double seconds = 0;
};

// The same in text. `on_text` gets whole UTF-8 characters as they become certain, and returns false to end; a character
// that the last token leaves unfinished is dropped. The separator ends the text.
GeneratedText generate_text(const Model& model, const data::Tokenizer& tokenizer, std::span<const int64_t> prompt,
                            const TextOptions& options,
                            const std::function<bool(std::string_view piece)>& on_text = {});

// Several texts at once, each what generate_text gives: those of equal length, or nearly, cost little more than one.
// They are read in lock-step, from where the shortest prompt ends one id at a time. `seconds` counts prompts, too.
std::vector<GeneratedText> generate_texts(const Model& model, const data::Tokenizer& tokenizer,
                                          std::vector<std::vector<int64_t>> prompts, const TextOptions& options);

}  // namespace rmoe
