// Loss of a model on a whole split, by the protocol of the literature, with what the routers did on the way.
//
// span:  one stream. The split is read piece by piece from its start with keys and values carried over, and every token
//        but the first is predicted exactly once. Each token sees exactly its S positions before, so the sizes of the
//        pieces decide speed and memory but not the result (up to the rounding of the compute dtype).
// llama: consecutive windows of `block` inputs, each a text of its own, and one shorter window at the end; again every
//        token but the first is predicted exactly once. The result depends on `block` but not on `batch`.
#pragma once

#include <functional>

#include "rmoe/data/instructions.h"
#include "rmoe/data/token_file.h"
#include "rmoe/models/model.h"
#include "rmoe/routing/sums.h"

namespace rmoe {

struct EvalResult {
  double nats = 0;     // summed over the predicted tokens
  int64_t tokens = 0;  // predicted
  routing::RoutingSums routing;
  double seconds = 0;
};

// One forward pass of an evaluation: T tokens in, with their positions in the split, and the loss of what follows each.
struct EvalPiece {
  const ForwardResult& forward;
  Tensor tokens_T, positions_T;  // int64
  Tensor losses_T;               // nats, fp32
};

struct EvalOptions {
  int64_t block = 0;       // llama: inputs per window. span: tokens per block, at most inference_piece(); 0: that
  int64_t batch = 0;       // windows or blocks at a time, as far as memory allows; 0: chosen for speed
  int64_t max_tokens = 0;  // predict this many tokens from the split's start on; 0: all
  at::ScalarType dtype = at::kFloat;
  // Called after each piece with the sums so far and the tokens that will have been predicted at the end.
  std::function<void(const EvalResult& so_far, int64_t total)> progress = {};
  // Called after each forward pass.
  std::function<void(const EvalPiece& piece)> watch = {};
  // Gives ForwardOptions::replay_TK of the tokens at these positions.
  std::function<std::vector<Tensor>(const Tensor& tokens_T, const Tensor& positions_T)> replay = {};
};

// Without gradients, on the CPU. Error(kBadInput) for a split of fewer than 2 tokens, for ids outside the model's
// vocabulary and for a llama model without `block`; Error(kDiverged) when the loss is not finite.
EvalResult evaluate(const Model& model, const data::TokenFile& tokens, const EvalOptions& options);

// The loss on the answers of instruction data: every sample is a text of its own, `tokens` counts answers' tokens, and
// questions are not predicted. The result does not depend on `batch` (samples at a time, 0: chosen for speed), up to
// rounding; `max_tokens` takes whole samples from the file's start until so many are reached. A sample has no position
// in a split: nothing is replayed, and `watch` gets pieces with positions_T undefined. Errors as evaluate().
EvalResult evaluate_instructions(const Model& model, const data::InstructionSet& set, const EvalOptions& options);

// The counts of a text that fall on predicted tokens: those of the whole split, scaled by the share of its tokens. (All
// of the split's tokens but the first count as all of them.) 0 where the header does not know.
double predicted_characters(const EvalResult& result, const data::TokenHeader& header);
double predicted_words(const EvalResult& result, const data::TokenHeader& header);

double bits_per_character(const EvalResult& result, const data::TokenHeader& header);  // NaN: characters are unknown
double word_perplexity(const EvalResult& result, const data::TokenHeader& header);     // NaN: words are unknown
double perplexity(const EvalResult& result);                                           // per token

// Tokens of one text that a model reads at once in inference, so that attention scores keep to a bounded size.
int64_t inference_piece(const ModelConfig& config);

}  // namespace rmoe
