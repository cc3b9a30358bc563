// `rmoe analyze` on models: text through a model or a trace into the analyses of routing, and the analyses of weights
// and gradients.
#include "rmoe/analysis/analyze.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include <torch/csrc/autograd/autograd.h>

#include "rmoe/analysis/model/weights.h"
#include "rmoe/analysis/routing.h"
#include "rmoe/base/error.h"
#include "rmoe/base/log.h"
#include "rmoe/data/hash.h"
#include "rmoe/eval/evaluate.h"
#include "rmoe/eval/run.h"
#include "rmoe/eval/trace.h"
#include "rmoe/io/checkpoint.h"
#include "rmoe/io/metrics.h"
#include "rmoe/models/size.h"
#include "rmoe/ops/linear_cross_entropy.h"
#include "rmoe/ops/runtime.h"

namespace rmoe::analysis {
namespace {

namespace fs = std::filesystem;

Shape shape_of(const io::TraceLayout& layout, int64_t top_k) {
  return {.layers = layout.layers, .experts = layout.experts, .slots = layout.slots, .top_k = top_k};
}

// What a forward pass's routers did, [T, L, ...], in tensors that the chunk points into.
struct PassChunk {
  PassChunk(const Shape& shape, const routing::RoutingTrace& trace, const Tensor& inputs_T, const Tensor& positions)
      : positions_T(positions.contiguous()), tokens_T(inputs_T.to(at::kInt).contiguous()) {
    std::vector<Tensor> ids, probs;
    for (const routing::Routing& r : trace) {
      const int64_t missing = shape.slots - r.ids_TK.size(1);
      ids.push_back((missing > 0 ? at::constant_pad_nd(r.ids_TK, {0, missing}, -1) : r.ids_TK).to(at::kCPU, at::kInt));
      probs.push_back(r.probs_TN.to(at::kCPU, at::kFloat));
    }
    ids_TLK = at::stack(ids, 1);
    probs_TLN = at::stack(probs, 1);
    chunk = {.shape = shape,
             .tokens = positions_T.numel(),
             .ids_TLK = ids_TLK.const_data_ptr<int32_t>(),
             .probs_TLN = probs_TLN.const_data_ptr<float>(),
             .tokens_T = tokens_T.const_data_ptr<int32_t>(),
             .positions_T = positions_T.const_data_ptr<int64_t>()};
  }
  Tensor ids_TLK, probs_TLN, positions_T, tokens_T;
  Chunk chunk;
};

// Records [begin, begin + count) of a trace, unpacked.
class TraceChunk {
 public:
  TraceChunk(const io::TraceFile& file, const Shape& shape, int64_t begin, int64_t count) {
    const io::TraceLayout& layout = file.layout();
    const auto n = static_cast<size_t>(count);
    ids_.resize(n * static_cast<size_t>(layout.layers * layout.slots));
    positions_.resize(n);
    for (const io::TraceLayout::Field& field : layout.record()) {
      const auto values = static_cast<size_t>(field.bytes / 4);
      for (size_t i = 0; i < n; ++i) {
        const std::byte* at = file.record(begin + static_cast<int64_t>(i)) + field.offset;
        if (field.name == "position") {
          std::memcpy(&positions_[i], at, 8);
        } else if (field.name == "tokens") {
          tokens_.resize(n);
          std::memcpy(&tokens_[i], at, 4);
        } else if (field.name == "probs") {
          probs_.resize(n * values);
          std::memcpy(probs_.data() + i * values, at, static_cast<size_t>(field.bytes));
        } else if (field.name == "ids" && layout.narrow_ids()) {
          const size_t width = static_cast<size_t>(field.bytes / 2);
          for (size_t j = 0; j < width; ++j) {
            int16_t id = 0;
            std::memcpy(&id, at + 2 * j, 2);
            ids_[i * width + j] = id;
          }
        } else if (field.name == "ids") {
          std::memcpy(ids_.data() + i * values, at, static_cast<size_t>(field.bytes));
        }
      }
    }
    for (const int32_t id : ids_) {
      RMOE_CHECK(id >= -1 && id < shape.experts, file.path().string(), ": expert ", id, " of ", shape.experts);
    }
    chunk = {.shape = shape,
             .tokens = count,
             .ids_TLK = ids_.data(),
             .probs_TLN = probs_.empty() ? nullptr : probs_.data(),
             .tokens_T = tokens_.empty() ? nullptr : tokens_.data(),
             .positions_T = positions_.data()};
  }
  Chunk chunk;

 private:
  std::vector<int32_t> ids_, tokens_;
  std::vector<float> probs_;
  std::vector<int64_t> positions_;
};

constexpr int64_t kGradientTokens = 1024;  // of a batch that gradients are measured on, unless its block is longer
constexpr int64_t kPiece = 4096;           // records of a trace, tokens of a file at a time

// What each id looks like after another token: pieces of words that open with a space show it there.
std::vector<std::string> token_texts(const data::Tokenizer& tokenizer) {
  std::vector<std::string> texts;
  for (int64_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const auto decoder = tokenizer.decoder();
    decoder->feed(id);
    texts.push_back(decoder->feed(id));
  }
  return texts;
}

TokenKinds token_kinds(const data::Tokenizer& tokenizer, const std::vector<int64_t>& counts) {
  return {token_texts(tokenizer), counts, tokenizer.separator().value_or(-1)};
}

std::vector<int64_t> count_tokens(const data::TokenFile& tokens, int64_t total, int64_t vocabulary) {
  std::vector<int64_t> counts(static_cast<size_t>(vocabulary), 0), ids(static_cast<size_t>(kPiece));
  for (int64_t begin = 0; begin < total; begin += kPiece) {
    const int64_t count = std::min(kPiece, total - begin);
    tokens.read(begin, count, ids.data());
    for (int64_t i = 0; i < count; ++i) {
      if (ids[static_cast<size_t>(i)] < vocabulary) ++counts[static_cast<size_t>(ids[static_cast<size_t>(i)])];
    }
  }
  return counts;
}

void add_trace(RoutingAnalysis& analysis, const io::TraceFile& file, const Shape& shape) {
  for (int64_t begin = 0; begin < file.records(); begin += kPiece) {
    analysis.add(TraceChunk(file, shape, begin, std::min(kPiece, file.records() - begin)).chunk);
  }
}

std::vector<int64_t> count_tokens(const io::TraceFile& file, const Shape& shape, int64_t vocabulary) {
  std::vector<int64_t> counts(static_cast<size_t>(vocabulary), 0);
  for (int64_t begin = 0; begin < file.records(); begin += kPiece) {
    const TraceChunk piece(file, shape, begin, std::min(kPiece, file.records() - begin));
    for (int64_t i = 0; i < piece.chunk.tokens; ++i) {
      const int64_t id = piece.chunk.tokens_T[i];
      if (id >= 0 && id < vocabulary) ++counts[static_cast<size_t>(id)];
    }
  }
  return counts;
}

void append(Json& to, const Json& members) {
  for (const auto& [key, value] : members.items()) to[key] = value;
}

const Json kNoWeights = {
    {"expert_similarity", nullptr}, {"router_weights", nullptr}, {"gradients", nullptr}, {"state_gradient", nullptr}};

// The step of a record. Records are in the order of their steps.
int64_t step_of(const io::TraceFile& file, int64_t record) {
  const std::vector<io::TraceLayout::Field> fields = file.layout().record();
  const auto field = std::find_if(fields.begin(), fields.end(), [](const auto& f) { return f.name == "step"; });
  RMOE_ASSERT(field != fields.end());
  uint32_t step = 0;
  std::memcpy(&step, file.record(record) + field->offset, sizeof step);
  return step;
}

// A trace alone.
Json analyze_trace(const std::string& path) {
  const io::TraceFile file = io::TraceFile::open(path);
  const std::string what = path + ": trailer";
  const Json& model = json_member(file.info(), "model", what);
  const Shape shape = shape_of(file.layout(), json_int(model, "top_k", what));
  RMOE_CHECK(file.records() > 0, path, ": the trace holds no token");
  RoutingAnalysis analysis(shape, file.layout().fields.probs, std::nullopt);
  add_trace(analysis, file, shape);
  Json out = {{"name", fs::path(path).stem().string()},
              {"source", "trace"},
              {"path", path},
              {"first_step", step_of(file, 0)},
              {"step", step_of(file, file.records() - 1)},
              {"family", json_string(model, "family", what)},
              {"stage", json_string(model, "stage", what)},
              {"router", json_string(model, "router", what)},
              {"layers", json_int(model, "layers", what)},
              {"moe_layers", shape.layers},
              {"experts", shape.experts},
              {"top_k", shape.top_k},
              {"params", Json()},
              {"data", file.info().value("data", Json())},
              {"tokens", file.records()},
              {"loss", Json()},
              {"bits_per_character", Json()},
              {"seconds", Json()}};
  append(out, analysis.json());
  append(out, kNoWeights);
  return out;
}

// Sum of squares, as a norm.
struct Norm {
  double squares = 0;
  void add(const Tensor& x) {
    if (x.defined()) squares += x.detach().to(at::kDouble).square().sum().item<double>();
  }
  double value() const { return std::sqrt(squares); }
};

// Gradients on some batches of the text, with what is dropped for capacity in training: the routers' by source
// (Table 11), and of the LM loss by the state h_i of each layer, as it is and with the state cut between the layers.
class Gradients {
 public:
  Gradients(const LoadedRun& run, const data::TokenFile& tokens, int64_t batches) : run_(run), tokens_(tokens) {
    const TrainConfig& t = run.config.train;
    length_ = std::min(t.block, tokens.size() - 1);
    const int64_t blocks = (tokens.size() - 1) / length_;
    // Two passes' activations are in memory at once, whatever batches the run was trained with.
    rows_ = std::min(
        {std::max<int64_t>(t.batch / t.accumulate, 1), blocks, std::max<int64_t>(kGradientTokens / length_, 1)});
    batches_ = std::min(batches, blocks / rows_);
  }

  Json json() {
    const int64_t L = run_.model->routing().layers();
    for (const Param& p : run_.params.all()) {
      if (p.is_buffer() || !p.value.requires_grad() || !belongs_to_routing(p)) continue;
      parameters_.push_back(p.value);
      layer_of_.push_back(moe_layer_of(run_.config.model, p.name));
    }
    if (batches_ == 0 || parameters_.empty()) return kNoWeights;
    const auto layers = static_cast<size_t>(L);
    whole_.resize(layers + 1), lm_.resize(layers + 1), balance_.resize(layers + 1);
    std::vector<double> state(layers, 0), cut(layers, 0);
    double whole = 0, lm = 0, balance = 0;
    int64_t rows = 0, dropped = 0;
    bool states = false;
    for (int64_t batch = 0; batch < batches_; ++batch) {
      const ForwardResult forward = pass(batch, false);
      const Tensor loss = lm_loss(forward, batch), balance_loss = run_.model->routing().loss(forward.trace);
      std::vector<Tensor> inputs = parameters_;
      for (const routing::Routing& r : forward.trace) {
        if (r.state_TP.defined() && r.state_TP.requires_grad()) inputs.push_back(r.state_TP);
        rows += r.chosen_N.sum().item<int64_t>();
        if (r.dropped.defined()) dropped += r.dropped.item<int64_t>();
      }
      const auto of_loss = gradient(loss, inputs, true);
      const auto of_balance = gradient(balance_loss, parameters_, false);
      Norm whole_norm, lm_norm, balance_norm;
      std::vector<Norm> by_layer[3] = {std::vector<Norm>(layers + 1), std::vector<Norm>(layers + 1),
                                       std::vector<Norm>(layers + 1)};
      for (size_t i = 0; i < parameters_.size(); ++i) {
        const Tensor sum = of_loss[i].defined() && of_balance[i].defined() ? of_loss[i] + of_balance[i]
                           : of_loss[i].defined()                          ? of_loss[i]
                                                                           : of_balance[i];
        const auto layer = layer_of_[i] < 0 ? layers : static_cast<size_t>(layer_of_[i]);
        whole_norm.add(sum), lm_norm.add(of_loss[i]), balance_norm.add(of_balance[i]);
        by_layer[0][layer].add(sum), by_layer[1][layer].add(of_loss[i]), by_layer[2][layer].add(of_balance[i]);
      }
      const auto share = 1 / static_cast<double>(batches_);
      whole += share * whole_norm.value(), lm += share * lm_norm.value(), balance += share * balance_norm.value();
      for (size_t l = 0; l <= layers; ++l) {
        whole_[l] += share * by_layer[0][l].value();
        lm_[l] += share * by_layer[1][l].value();
        balance_[l] += share * by_layer[2][l].value();
      }
      states = inputs.size() == parameters_.size() + layers;
      if (!states) continue;
      add_states(state, std::vector<Tensor>(of_loss.begin() + std::ssize(parameters_), of_loss.end()), share);
      const ForwardResult separate = pass(batch, true);
      std::vector<Tensor> ends;
      for (const routing::Routing& r : separate.trace) ends.push_back(r.state_TP);
      add_states(cut, gradient(lm_loss(separate, batch), ends, false), share);
    }
    Json by_layer = Json::array();
    for (size_t l = 0; l < layers; ++l) {
      by_layer.push_back({{"whole", whole_[l]}, {"lm", lm_[l]}, {"balance", balance_[l]}});
    }
    Json out = {{"gradients",
                 {{"batches", batches_},
                  {"tokens", batches_ * rows_ * length_},
                  {"whole", whole},
                  {"lm", lm},
                  {"balance", balance},
                  {"shared", {{"whole", whole_[layers]}, {"lm", lm_[layers]}, {"balance", balance_[layers]}}},
                  {"layers", by_layer},
                  {"drop_ratio", rows > 0 ? static_cast<double>(dropped) / static_cast<double>(rows) : 0.0}}},
                {"state_gradient", nullptr}};
    if (states) out["state_gradient"] = {{"layers", state}, {"cut", cut}};
    return out;
  }

 private:
  static void add_states(std::vector<double>& sums, const std::vector<Tensor>& gradients, double share) {
    for (size_t l = 0; l < gradients.size(); ++l) {
      Norm norm;
      norm.add(gradients[l]);
      sums[l] += share * norm.value();
    }
  }

  static std::vector<Tensor> gradient(const Tensor& of, const std::vector<Tensor>& inputs, bool keep) {
    if (!of.requires_grad()) return std::vector<Tensor>(inputs.size());
    return torch::autograd::grad({of}, inputs, {}, keep, /*create_graph=*/false, /*allow_unused=*/true);
  }

  Tensor ids(int64_t batch) const {
    std::vector<Tensor> rows;
    for (int64_t row = 0; row < rows_; ++row) {
      Tensor ids_S = at::empty({length_ + 1}, at::kLong);
      tokens_.read((row * batches_ + batch) * length_, length_ + 1, ids_S.mutable_data_ptr<int64_t>());
      rows.push_back(std::move(ids_S));
    }
    return at::stack(rows);
  }

  ForwardResult pass(int64_t batch, bool cut) const {
    return run_.model->forward(
        ids(batch).narrow(1, 0, length_).contiguous(), {},
        {.training = true, .dropout_key = {static_cast<uint64_t>(batch)}, .hidden_only = true, .cut_state = cut});
  }

  Tensor lm_loss(const ForwardResult& forward, int64_t batch) const {
    const Linear head = run_.model->head();
    return linear_cross_entropy(forward.hidden_TD, head.weight_OI, head.bias_O,
                                ids(batch).narrow(1, 1, length_).flatten().to(forward.hidden_TD.device()))
        .loss;
  }

  const LoadedRun& run_;
  const data::TokenFile& tokens_;
  int64_t length_ = 0, rows_ = 0, batches_ = 0;
  std::vector<Tensor> parameters_;
  std::vector<int64_t> layer_of_;  // -1: shared by layers
  std::vector<double> whole_, lm_, balance_;
};

// What was measured while it trained (train.gradient_sources_every).
Json training_gradients(const fs::path& run) {
  Json points = Json::array();
  if (!fs::exists(run / "metrics.jsonl")) return points;
  for (const Json& line : io::read_metrics(run / "metrics.jsonl")) {
    if (!line.contains("router_grad_norm") || !line.at("router_grad_norm").is_number()) continue;
    points.push_back({{"step", line.at("step")},
                      {"whole", line.at("router_grad_norm")},
                      {"lm", line.at("router_grad_norm_lm")},
                      {"balance", line.at("router_grad_norm_balance")},
                      {"drop_ratio", line.at("drop_ratio")}});
  }
  return points;
}

std::string progress_line(const std::string& name, double done) {
  return str("analyze ", name, "  ", std::lround(100 * done), " %");
}

Json finite(double value) { return std::isfinite(value) ? Json(value) : Json(); }

Json analyze_run(const AnalyzeCommand& command, const std::string& path, const std::string& trace) {
  LoadedRun run = load_run(path, Which::parse(command.checkpoint), command.device);
  const ModelConfig& config = run.config.model;
  RMOE_CHECK(config.moe_layers() > 0, path, ": has no MoE layer, so no router to look into");
  const Shape shape = shape_of(trace_layout(*run.model, {}), config.moe.top_k);
  const fs::path folder = fs::path(path).lexically_normal();
  const std::string base = (folder.has_filename() ? folder : folder.parent_path()).filename().string();
  Json out = {{"name", base},
              {"source", trace.empty() ? "checkpoint" : "trace"},
              {"path", path},
              {"first_step", run.step},
              {"step", run.step},
              {"family", enum_name(config.family)},
              {"stage", config.moe.stage.kind()},
              {"router", config.moe.router.kind()},
              {"layers", config.layers},
              {"moe_layers", shape.layers},
              {"experts", shape.experts},
              {"top_k", shape.top_k},
              {"params", model_size(config, run.config.train.block).params}};
  const bool reads = trace.empty() || command.gradient_batches > 0;
  std::optional<data::TokenFile> tokens;
  if (reads) {
    const SplitFile file = find_split(run, command.data, command.split);
    tokens = data::TokenFile::open(file.path);
    check_data(run, *tokens);
    RMOE_CHECK(tokens->size() >= 2, file.path.string(), ": an analysis needs at least 2 tokens, got ", tokens->size());
    out["data"] = file.path.string();
  }
  // Before the weights are narrowed for reading text.
  Json weights = kNoWeights;
  append(weights, weight_analyses(run));
  if (command.gradient_batches > 0) append(weights, Gradients(run, *tokens, command.gradient_batches).json());
  const Json training = training_gradients(run.dir);
  if (!training.empty() && weights["gradients"].is_null()) weights["gradients"] = Json::object();
  if (!training.empty()) weights["gradients"]["training"] = training;

  const auto start = std::chrono::steady_clock::now();
  const int64_t vocabulary = run.tokenizer->vocab_size();
  std::optional<RoutingAnalysis> analysis;
  if (trace.empty()) {
    const at::ScalarType dtype = compute_in(run, command.dtype);
    int64_t total = tokens->size() - 1;
    if (command.tokens > 0) total = std::min(total, command.tokens);
    analysis.emplace(shape, true, token_kinds(*run.tokenizer, count_tokens(*tokens, total, vocabulary)));
    Progress progress;
    EvalOptions options{.block = run.config.train.block, .max_tokens = command.tokens, .dtype = dtype};
    options.progress = [&](const EvalResult& so_far, int64_t all) {
      if (progress.due()) {
        progress.update(progress_line(base, static_cast<double>(so_far.tokens) / static_cast<double>(all)));
      }
    };
    options.watch = [&](const EvalPiece& piece) {
      analysis->add(PassChunk(shape, piece.forward.trace, piece.tokens_T, piece.positions_T).chunk);
    };
    const EvalResult result = evaluate(*run.model, *tokens, options);
    out["tokens"] = result.tokens;
    out["loss"] = result.nats / static_cast<double>(result.tokens);
    out["bits_per_character"] = finite(bits_per_character(result, tokens->header()));
  } else {
    const Replay recorded(trace, *run.model);  // refuses a trace of another model
    const io::TraceFile& file = recorded.file();
    RMOE_CHECK(file.records() > 0, trace, ": the trace holds no token");
    std::optional<TokenKinds> kinds;
    if (file.layout().fields.tokens) kinds = token_kinds(*run.tokenizer, count_tokens(file, shape, vocabulary));
    analysis.emplace(shape, file.layout().fields.probs, std::move(kinds));
    add_trace(*analysis, file, shape);
    out["data"] = file.info().value("data", Json());
    out["tokens"] = file.records();
    out["loss"] = Json();
    out["bits_per_character"] = Json();
  }
  out["seconds"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  append(out, analysis->json());
  append(out, weights);
  return out;
}

// A trainer holds the lock of the folder that it writes.
void check_not_running(const std::string& path) {
  if (fs::is_directory(path) && io::is_locked(path)) {
    throw Error(Exit::kBadInput, path + ": the run is still being written: a trainer holds its lock",
                "wait until it is done, or name a checkpoint with --checkpoint STEP");
  }
}

// Names that are equal are told apart by their folders.
void tell_apart(Json& runs) {
  for (size_t i = 0; i < runs.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (runs[i].at("name") != runs[j].at("name")) continue;
      for (Json* run : {&runs[i], &runs[j]}) (*run)["name"] = (*run).at("path");
    }
  }
}

}  // namespace

Json analyze(const AnalyzeCommand& command) {
  configure_runtime(command.threads);
  RMOE_CHECK(!command.runs.empty(), "analyze: no run given");
  RMOE_CHECK(command.traces.empty() || command.traces.size() == command.runs.size(), "analyze: ", command.traces.size(),
             " traces for ", command.runs.size(), " runs; expected one for each, or none");
  Json runs = Json::array();
  for (size_t i = 0; i < command.runs.size(); ++i) {
    const std::string& path = command.runs[i];
    if (fs::is_regular_file(path)) {
      RMOE_CHECK(command.traces.empty(), path, ": a trace, with another for it; expected a run folder");
      runs.push_back(analyze_trace(path));
      continue;
    }
    if (command.checkpoint == "newest") check_not_running(path);
    runs.push_back(analyze_run(command, path, command.traces.empty() ? "" : command.traces[i]));
  }
  tell_apart(runs);
  Json depth = Json::array();
  for (const Json& run : runs) {
    if (run.at("loss").is_number()) {
      depth.push_back({{"name", run.at("name")},
                       {"stage", run.at("stage")},
                       {"router", run.at("router")},
                       {"layers", run.at("layers")},
                       {"loss", run.at("loss")},
                       {"bits_per_character", run.at("bits_per_character")}});
    }
  }
  return {{"format", "rmoe-analysis"}, {"version", 1}, {"runs", runs}, {"loss_by_depth", depth}};
}

}  // namespace rmoe::analysis
