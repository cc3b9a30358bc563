// Evaluation: see evaluate.h.
#include "rmoe/eval/evaluate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numbers>

#include "rmoe/base/error.h"
#include "rmoe/ops/linear_cross_entropy.h"

namespace rmoe {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
// Tokens per call at most, whatever batch or window is asked for: bounds the memory of hidden states.
constexpr int64_t kMostTokens = int64_t{1} << 15;
// Tokens per call of the llama family, unless its window is longer.
constexpr int64_t kBatchTokens = 2048;

// Collects losses and routing of one forward pass after the other.
class Sums {
 public:
  Sums(const Model& model, const EvalOptions& options, int64_t total)
      : head_(model.head()), options_(options), total_(total) {}

  // `positions_T` of the inputs.
  void add(const ForwardResult& forward, const Tensor& inputs_T, const Tensor& targets_T, const Tensor& positions_T) {
    const Tensor targets = targets_T.to(forward.hidden_TD.device());
    const Tensor losses_T = linear_cross_entropy(forward.hidden_TD, head_.weight_OI, head_.bias_O, targets).losses_T;
    result_.nats += losses_T.sum(at::kDouble).item<double>();
    result_.tokens += targets_T.ne(-100).sum().item<int64_t>();
    if (!std::isfinite(result_.nats)) {
      throw Error(Exit::kDiverged, str("evaluate: the loss is ", result_.nats, " among the first ", result_.tokens,
                                       " tokens: the weights are damaged or the training diverged"));
    }
    result_.routing.add(forward.trace);
    if (options_.watch) options_.watch({forward, inputs_T, positions_T, losses_T});
    if (options_.progress) options_.progress(result(), total_);
  }

  EvalResult result() const {
    EvalResult result = result_;
    result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    return result;
  }

 private:
  const Linear head_;
  const EvalOptions& options_;
  const int64_t total_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  EvalResult result_;
};

// Tokens [begin, begin + count]: count inputs, and their targets one further.
Tensor read_tokens(const data::TokenFile& tokens, int64_t begin, int64_t count) {
  Tensor ids = at::empty({count + 1}, at::kLong);
  tokens.read(begin, count + 1, ids.mutable_data_ptr<int64_t>());
  return ids;
}

std::vector<Tensor> recorded(const EvalOptions& options, const Tensor& tokens_T, const Tensor& positions_T) {
  return options.replay ? options.replay(tokens_T, positions_T) : std::vector<Tensor>{};
}

void evaluate_stream(const Model& model, const data::TokenFile& tokens, const EvalOptions& options, int64_t total,
                     Sums& sums) {
  const int64_t longest = inference_piece(model.config());
  const int64_t block = std::min(options.block > 0 ? options.block : longest, longest);
  const int64_t fitting = longest / block;
  const int64_t piece = block * (options.batch > 0 ? std::min(options.batch, fitting) : fitting);
  Memory memory;
  for (int64_t begin = 0; begin < total; begin += piece) {
    const int64_t count = std::min(piece, total - begin);
    const Tensor ids = read_tokens(tokens, begin, count), inputs = ids.narrow(0, 0, count);
    const Tensor positions = at::arange(begin, begin + count, at::kLong);
    auto forward = model.forward(inputs.view({1, count}), std::move(memory),
                                 {.dtype = options.dtype,
                                  .remember = Remember::kKeysValues,
                                  .hidden_only = true,
                                  .replay_TK = recorded(options, inputs, positions)});
    sums.add(forward, inputs, ids.narrow(0, 1, count), positions);
    memory = std::move(forward.memory);
  }
}

// `rows` windows of `length` inputs, side by side, the first at `start` of the split. A window that is too long for one
// call is read in pieces.
void evaluate_windows(const Model& model, const Tensor& ids, int64_t start, int64_t rows, int64_t length,
                      const EvalOptions& options, Sums& sums) {
  const Tensor inputs = ids.narrow(0, 0, rows * length).view({rows, length});
  const Tensor targets = ids.narrow(0, 1, rows * length).view({rows, length});
  const Tensor positions = at::arange(start, start + rows * length, at::kLong).view({rows, length});
  const int64_t piece = std::min(length, std::max<int64_t>(kMostTokens / rows, 1));
  Memory memory;
  for (int64_t begin = 0; begin < length; begin += piece) {
    const int64_t count = std::min(piece, length - begin);
    const Tensor piece_BS = inputs.narrow(1, begin, count).contiguous(), inputs_T = piece_BS.flatten();
    const Tensor positions_T = positions.narrow(1, begin, count).flatten();
    auto forward = model.forward(piece_BS, std::move(memory),
                                 {.dtype = options.dtype,
                                  .remember = piece < length ? Remember::kKeysValues : Remember::kNothing,
                                  .hidden_only = true,
                                  .replay_TK = recorded(options, inputs_T, positions_T)});
    sums.add(forward, inputs_T, targets.narrow(1, begin, count).flatten(), positions_T);
    memory = std::move(forward.memory);
  }
}

void evaluate_texts(const Model& model, const data::TokenFile& tokens, const EvalOptions& options, int64_t total,
                    Sums& sums) {
  const int64_t block = options.block;
  RMOE_CHECK(block > 0, "evaluate: the llama family needs a block length, got ", block);
  const int64_t fitting = std::max<int64_t>(kMostTokens / block, 1);
  const int64_t wanted = options.batch > 0 ? options.batch : std::max<int64_t>(kBatchTokens / block, 1);
  const int64_t batch = std::min(wanted, fitting), windows = total / block;
  for (int64_t window = 0; window < windows; window += batch) {
    const int64_t rows = std::min(batch, windows - window);
    evaluate_windows(model, read_tokens(tokens, window * block, rows * block), window * block, rows, block, options,
                     sums);
  }
  if (const int64_t rest = total % block; rest > 0) {
    evaluate_windows(model, read_tokens(tokens, windows * block, rest), windows * block, 1, rest, options, sums);
  }
}

double scaled(const EvalResult& result, const data::TokenHeader& header, int64_t count) {
  const int64_t predictable = header.count - 1;
  if (predictable < 1) return 0;
  return static_cast<double>(count) * static_cast<double>(result.tokens) / static_cast<double>(predictable);
}

}  // namespace

EvalResult evaluate(const Model& model, const data::TokenFile& tokens, const EvalOptions& options) {
  const c10::InferenceMode inference;
  const ModelConfig& config = model.config();
  RMOE_CHECK(options.block >= 0 && options.batch >= 0 && options.max_tokens >= 0,
             "evaluate: block, batch and max_tokens must not be negative, got ", options.block, ", ", options.batch,
             " and ", options.max_tokens);
  RMOE_CHECK(tokens.size() >= 2, tokens.path().string(), ": evaluation needs at least 2 tokens, got ", tokens.size());
  RMOE_CHECK(tokens.header().vocab_size <= config.vocab_size, tokens.path().string(), ": its vocabulary has ",
             tokens.header().vocab_size, " ids, the model's ", config.vocab_size);
  int64_t total = tokens.size() - 1;
  if (options.max_tokens > 0) total = std::min(total, options.max_tokens);
  Sums sums(model, options, total);
  if (config.family == Family::kSpan) {
    evaluate_stream(model, tokens, options, total, sums);
  } else {
    evaluate_texts(model, tokens, options, total, sums);
  }
  return sums.result();
}

EvalResult evaluate_instructions(const Model& model, const data::InstructionSet& set, const EvalOptions& options) {
  const c10::InferenceMode inference;
  RMOE_CHECK(options.batch >= 0 && options.max_tokens >= 0, "evaluate: batch and max_tokens must not be negative, got ",
             options.batch, " and ", options.max_tokens);
  std::vector<int64_t> order;
  int64_t total = 0, longest = 1;
  for (const data::Instruction& sample : set.samples) {
    if (options.max_tokens > 0 && total >= options.max_tokens) break;
    for (const int32_t id : sample.ids) {
      RMOE_CHECK(id < model.config().vocab_size, set.path.string(), ": id ", id,
                 " is not in the model's vocabulary of ", model.config().vocab_size);
    }
    order.push_back(std::ssize(order));
    total += sample.answer_tokens();
    longest = std::max<int64_t>(longest, std::ssize(sample.ids));
  }
  // Samples of like lengths side by side: less padding.
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return set.samples[static_cast<size_t>(a)].ids.size() > set.samples[static_cast<size_t>(b)].ids.size();
  });
  Sums sums(model, options, total);
  for (auto next = order.begin(); next != order.end();) {
    const auto size = std::ssize(set.samples[static_cast<size_t>(*next)].ids);
    const int64_t wanted = options.batch > 0 ? options.batch : std::max<int64_t>(kBatchTokens / size, 1);
    const int64_t count =
        std::min({wanted, std::max<int64_t>(kMostTokens / size, 1), std::distance(next, order.end())});
    std::vector<std::vector<int64_t>> rows;
    for (int64_t i = 0; i < count; ++i) rows.push_back({*next++});
    data::Batch batch = data::instruction_batch(set, rows, longest);
    const Tensor ids = at::from_blob(batch.tokens.data(), {batch.batch, batch.length + 1}, at::kLong);
    const Tensor valid = at::from_blob(batch.valid.data(), {batch.batch, batch.length}, at::kByte).to(at::kBool);
    const Tensor inputs = ids.narrow(1, 0, batch.length).contiguous();
    sums.add(model.forward(inputs, {}, {.dtype = options.dtype, .hidden_only = true, .valid_BS = valid}),
             inputs.flatten(), at::from_blob(batch.targets.data(), {batch.batch * batch.length}, at::kLong), {});
  }
  return sums.result();
}

double predicted_characters(const EvalResult& result, const data::TokenHeader& header) {
  return scaled(result, header, header.characters);
}

double predicted_words(const EvalResult& result, const data::TokenHeader& header) {
  return scaled(result, header, header.words);
}

double bits_per_character(const EvalResult& result, const data::TokenHeader& header) {
  const double count = predicted_characters(result, header);
  return count > 0 ? result.nats / count / std::numbers::ln2 : kNaN;
}

double word_perplexity(const EvalResult& result, const data::TokenHeader& header) {
  const double count = predicted_words(result, header);
  return count > 0 ? std::exp(result.nats / count) : kNaN;
}

double perplexity(const EvalResult& result) { return std::exp(result.nats / static_cast<double>(result.tokens)); }

int64_t inference_piece(const ModelConfig& config) {
  // The span kernel multiplies each query with all keys of its piece: much longer than the span is waste, much shorter
  // leaves too few rows to each expert.
  const int64_t span_piece = std::clamp<int64_t>(config.span.span, 256, 1024);
  return config.family == Family::kSpan ? span_piece : 2 * kBatchTokens;
}

}  // namespace rmoe
