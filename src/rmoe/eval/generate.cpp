// Generation: see generate.h.
#include "rmoe/eval/generate.h"

#include <algorithm>
#include <chrono>

#include "rmoe/base/error.h"
#include "rmoe/base/rng.h"
#include "rmoe/eval/evaluate.h"
#include "rmoe/eval/sampling.h"
#include "rmoe/eval/stop_filter.h"

namespace rmoe {
namespace {

// A text that is being read by a model: what was read so far is in its memory.
class Reader {
 public:
  Reader(const Model& model, const GenerateOptions& options) : model_(model), options_(options) {}

  // Reads more ids and returns the logits after the last, [V] in fp32.
  Tensor read(std::span<const int64_t> ids) {
    const int64_t piece = inference_piece(model_.config()), size = std::ssize(ids);
    Tensor logits_1V;
    for (int64_t begin = 0; begin < size; begin += piece) {
      const int64_t count = std::min(piece, size - begin);
      Tensor tokens = at::empty({1, count}, at::kLong);
      std::copy_n(ids.data() + begin, count, tokens.mutable_data_ptr<int64_t>());
      const Tensor tokens_T = tokens[0];
      Tensor positions_T;
      if (options_.watch || options_.replay) {
        positions_T = at::arange(memory_.position, memory_.position + count, at::kLong);
      }
      auto forward = model_.forward(
          tokens, std::move(memory_),
          {.dtype = options_.dtype,
           .remember = Remember::kKeysValues,
           .last_logits_only = true,
           .generating = true,
           .replay_TK = options_.replay ? options_.replay(tokens_T, positions_T) : std::vector<Tensor>{}});
      if (options_.watch) options_.watch(forward, tokens_T, positions_T);
      memory_ = std::move(forward.memory);
      logits_1V = forward.logits_TV;
    }
    return logits_1V[0].to(at::kCPU, at::kFloat).contiguous();
  }

 private:
  const Model& model_;
  const GenerateOptions& options_;
  Memory memory_;
};

void check_ids(std::span<const int64_t> ids, int64_t vocabulary) {
  for (const int64_t id : ids) {
    RMOE_CHECK(id >= 0 && id < vocabulary, "generate: the prompt has the id ", id, ", expected 0 to ", vocabulary - 1);
  }
}

}  // namespace

Generated generate(const Model& model, std::span<const int64_t> prompt, const GenerateOptions& options,
                   const std::function<bool(int64_t id)>& on_token) {
  const c10::InferenceMode inference;
  const int64_t V = model.config().vocab_size;
  const SamplingOptions sampling{options.temperature, options.top_k, options.top_p};
  sampling.validate();
  RMOE_CHECK(!prompt.empty(), "generate: the prompt is empty, expected at least one token");
  RMOE_CHECK(options.max_new >= 0, "generate: the number of tokens must be at least 0, got ", options.max_new);
  RMOE_CHECK(options.vocabulary >= 0 && options.vocabulary <= V, "generate: ", options.vocabulary,
             " ids to draw from, but the model has ", V);
  check_ids(prompt, V);
  Generated result;
  if (options.max_new == 0) return result;
  Reader reader(model, options);
  Tensor logits_V = reader.read(prompt);
  const auto start = std::chrono::steady_clock::now();
  while (true) {
    const auto drawable = static_cast<size_t>(options.vocabulary > 0 ? options.vocabulary : V);
    const double random = uniform(mix(options.seed, kSampleStream, static_cast<uint64_t>(result.tokens)));
    const int64_t id = sample_token({logits_V.const_data_ptr<float>(), drawable}, sampling, random);
    if (std::ranges::find(options.ends, id) != options.ends.end()) {
      result.ending = TextEnding::kSeparator;
      break;
    }
    ++result.tokens;
    if (!on_token(id)) {
      result.ending = TextEnding::kCaller;
      break;
    }
    if (result.tokens == options.max_new) break;
    logits_V = reader.read({&id, 1});
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

std::vector<int64_t> prompt_ids(const data::Tokenizer& tokenizer, std::string_view prompt) {
  std::vector<int64_t> ids = tokenizer.encode(prompt);
  if (!ids.empty()) return ids;
  if (tokenizer.separator()) return {*tokenizer.separator()};
  try {
    ids = tokenizer.encode("\n");
  } catch (const Error&) {
    return {0};  // a vocabulary of single characters that lacks it
  }
  return ids.empty() ? std::vector<int64_t>{0} : ids;
}

namespace {

// A text in the making: ids become pieces of text, until a stop string.
class TextWriter {
 public:
  TextWriter(const data::Tokenizer& tokenizer, std::span<const int64_t> prompt, const std::vector<std::string>& stops)
      : decoder_(tokenizer.decoder()), filter_(stops) {
    result_.prompt_tokens = std::ssize(prompt);
    // The decoder reads the prompt too: what a token looks like may depend on what stands before it.
    for (const int64_t id : prompt) decoder_->feed(id);
  }
  // Adds a new id's text; `on_text` gets it. Returns whether more is wanted.
  bool feed(int64_t id, const std::function<bool(std::string_view)>& on_text = {}) {
    const bool more = emit(filter_.feed(decoder_->feed(id)), on_text);
    return more && !filter_.stopped();
  }
  // The text's end, unless a stop string was it.
  GeneratedText finish(TextEnding ending, const std::function<bool(std::string_view)>& on_text = {}) {
    result_.ending = filter_.stopped() ? TextEnding::kStop : ending;
    if (result_.ending == TextEnding::kLength || result_.ending == TextEnding::kSeparator) {
      emit(filter_.finish(), on_text);
    }
    return std::move(result_);
  }

 private:
  bool emit(const std::string& piece, const std::function<bool(std::string_view)>& on_text) {
    result_.text += piece;
    return piece.empty() || !on_text || on_text(piece);
  }

  std::unique_ptr<data::Decoder> decoder_;
  StopFilter filter_;
  GeneratedText result_;
};

std::vector<int64_t> ends_of(const data::Tokenizer& tokenizer, const TextOptions& options) {
  std::vector<int64_t> ends = options.ends;
  if (tokenizer.separator()) ends.push_back(*tokenizer.separator());
  return ends;
}

}  // namespace

GeneratedText generate_text(const Model& model, const data::Tokenizer& tokenizer, std::span<const int64_t> prompt,
                            const TextOptions& options, const std::function<bool(std::string_view piece)>& on_text) {
  TextWriter writer(tokenizer, prompt, options.stops);
  const Generated generated = generate(model, prompt,
                                       {.max_new = options.max_new,
                                        .temperature = options.temperature,
                                        .top_k = options.top_k,
                                        .top_p = options.top_p,
                                        .seed = options.seed,
                                        .dtype = options.dtype,
                                        .ends = ends_of(tokenizer, options),
                                        .watch = options.watch,
                                        .replay = options.replay,
                                        .vocabulary = tokenizer.vocab_size()},
                                       [&](int64_t id) { return writer.feed(id, on_text); });
  GeneratedText result = writer.finish(generated.ending, on_text);
  result.tokens = generated.tokens;
  result.seconds = generated.seconds;
  return result;
}

std::vector<GeneratedText> generate_texts(const Model& model, const data::Tokenizer& tokenizer,
                                          std::vector<std::vector<int64_t>> prompts, const TextOptions& options) {
  const c10::InferenceMode inference;
  const SamplingOptions sampling{options.temperature, options.top_k, options.top_p};
  sampling.validate();
  RMOE_CHECK(options.max_new >= 0, "generate: the number of tokens must be at least 0, got ", options.max_new);
  RMOE_CHECK(!options.watch && !options.replay, "generate: several texts at once are neither watched nor replayed");
  const int64_t V = model.config().vocab_size;
  const auto drawable = static_cast<size_t>(std::min(tokenizer.vocab_size(), V));
  struct Row {
    std::vector<int64_t> ids;
    TextWriter writer;
    size_t text;
    int64_t drawn = 0;
  };
  const std::vector<int64_t> ends = ends_of(tokenizer, options);
  std::vector<Row> rows;
  std::vector<GeneratedText> texts(prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    std::vector<int64_t>& ids = prompts[i];
    RMOE_CHECK(!ids.empty(), "generate: prompt ", i, " is empty, expected at least one token");
    check_ids(ids, V);
    TextWriter writer(tokenizer, ids, options.stops);
    if (options.max_new == 0) {
      texts[i] = writer.finish(TextEnding::kLength);
    } else {
      rows.push_back({.ids = std::move(ids), .writer = std::move(writer), .text = i});
    }
  }
  const auto start = std::chrono::steady_clock::now();
  const auto done = [&](Row& row, TextEnding ending) {
    GeneratedText& text = texts[row.text] = row.writer.finish(ending);
    text.tokens = row.drawn;
    text.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  // All rows are at the same position: each step reads what every row has beyond it, which is one id as soon as the
  // shortest prompt is read. The longer ones go on with their own.
  Memory memory;
  for (int64_t read = 0; !rows.empty();) {
    const int64_t B = std::ssize(rows);
    int64_t count = std::max<int64_t>(1, inference_piece(model.config()) / B);
    for (const Row& row : rows) count = std::min(count, std::ssize(row.ids) - read);
    Tensor tokens_BS = at::empty({B, count}, at::kLong);
    for (int64_t b = 0; b < B; ++b) {
      std::copy_n(rows[static_cast<size_t>(b)].ids.data() + read, count,
                  tokens_BS.mutable_data_ptr<int64_t>() + b * count);
    }
    auto forward = model.forward(
        tokens_BS, std::move(memory),
        {.dtype = options.dtype, .remember = Remember::kKeysValues, .last_logits_only = true, .generating = true});
    memory = std::move(forward.memory);
    read += count;
    const Tensor logits_BV = forward.logits_TV.to(at::kCPU, at::kFloat).contiguous();
    std::vector<int64_t> going;
    for (int64_t b = 0; b < B; ++b) {
      Row& row = rows[static_cast<size_t>(b)];
      if (std::ssize(row.ids) > read) {
        going.push_back(b);
        continue;
      }
      const double random = uniform(mix(options.seed, kSampleStream, static_cast<uint64_t>(row.drawn)));
      const int64_t id = sample_token({logits_BV.const_data_ptr<float>() + b * V, drawable}, sampling, random);
      if (std::ranges::find(ends, id) != ends.end()) {
        done(row, TextEnding::kSeparator);
        continue;
      }
      ++row.drawn;
      row.ids.push_back(id);
      if (!row.writer.feed(id)) {
        done(row, TextEnding::kStop);
      } else if (row.drawn == options.max_new) {
        done(row, TextEnding::kLength);
      } else {
        going.push_back(b);
      }
    }
    if (std::ssize(going) == B) continue;
    std::vector<Row> left;
    for (const int64_t b : going) left.push_back(std::move(rows[static_cast<size_t>(b)]));
    rows = std::move(left);
    const Tensor kept = at::tensor(going, at::kLong).to(model.device());
    for (LayerMemory& layer : memory.layers) layer.kv.keep(kept);
  }
  return texts;
}

}  // namespace rmoe
