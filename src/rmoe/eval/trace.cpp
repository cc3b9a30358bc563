#include "rmoe/eval/trace.h"

#include <cstring>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/base/log.h"
#include "rmoe/data/hash.h"

namespace rmoe {
namespace {

// One field of all layers of T tokens, gathered to [T, layers, width] of a type, with the source row of each token.
template <class T>
void put(std::vector<std::byte>& records, int64_t record_bytes, const io::TraceLayout::Field& field,
         const Tensor& values) {
  const Tensor packed = values.contiguous();
  const auto* from = static_cast<const std::byte*>(packed.const_data_ptr());
  const int64_t rows = packed.numel() / std::max<int64_t>(field.bytes / static_cast<int64_t>(sizeof(T)), 1);
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(records.data() + i * record_bytes + field.offset, from + i * field.bytes,
                static_cast<size_t>(field.bytes));
  }
}

template <class T>
T read(const std::byte* record, int64_t offset) {
  T value;
  std::memcpy(&value, record + offset, sizeof value);
  return value;
}

// -1 in the slots that a layer does not have.
Tensor widened(const Tensor& x_TK, int64_t slots, double fill) {
  const int64_t missing = slots - x_TK.size(1);
  RMOE_ASSERT(missing >= 0, "a choice of ", x_TK.size(1), " experts for ", slots, " slots");
  return missing == 0 ? x_TK : at::constant_pad_nd(x_TK, {0, missing}, fill);
}

}  // namespace

std::string model_hash(const ModelConfig& config) { return data::hex16(data::xxh3(to_toml(config))); }

io::TraceLayout trace_layout(const Model& model, const io::TraceFields& fields) {
  const ModelConfig& config = model.config();
  const routing::Combination& kind = model.routing().combination();
  io::TraceLayout layout;
  layout.layers = model.routing().layers();
  RMOE_CHECK(layout.layers > 0, "trace: the model has no MoE layer, so no router's choice to record");
  RMOE_CHECK(!fields.states || kind.recurrent, "trace: states: stage '", kind.stage, "' keeps no state");
  layout.experts = model.routing().experts();
  layout.slots = kind.ranks && kind.fixed_k ? config.moe.top_k : layout.experts;
  layout.fields = fields;
  return layout;
}

TraceRecorder::TraceRecorder(const TraceOptions& options, const Model& model, Json info)
    : slice_(options.tokens),
      layout_([&] {
        io::TraceLayout layout = trace_layout(model, options.fields);
        if (options.fields.states) layout.state_width = model.routing().state_width();
        return layout;
      }()),
      writer_(options.file, layout_),
      info_(std::move(info)) {
  const ModelConfig& config = model.config();
  info_["format"] = "rmoe-trace";
  info_["version"] = 1;
  info_["model"] = {{"hash", model_hash(config)},       {"family", enum_name(config.family)},
                    {"stage", config.moe.stage.kind()}, {"router", config.moe.router.kind()},
                    {"score", config.moe.score.kind()}, {"selection", config.moe.selection.kind()},
                    {"layers", config.layers},          {"top_k", config.moe.top_k},
                    {"vocab_size", config.vocab_size}};
}

void TraceRecorder::add(const routing::RoutingTrace& trace, const Tensor& tokens_T, const Tensor& positions_T,
                        int64_t step) {
  at::NoGradGuard no_grad;
  std::vector<int64_t> rows;
  const Tensor positions = positions_T.contiguous();
  const auto* position = positions.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < positions.numel(); ++i) {
    if (slice_.contains(position[i])) rows.push_back(i);
  }
  if (rows.empty()) return;
  const bool every = std::ssize(rows) == positions.numel();
  const Tensor kept = every ? Tensor() : at::tensor(rows, at::kLong);
  const auto chosen = [&](const Tensor& x) { return every ? x : x.index_select(0, kept); };
  const auto count = std::ssize(rows);
  const int64_t size = layout_.record_bytes();
  std::vector<std::byte> records(static_cast<size_t>(count * size));
  const auto layers = [&](auto&& of, at::ScalarType dtype) {
    std::vector<Tensor> all;
    for (const routing::Routing& r : trace) all.push_back(chosen(of(r).to(at::kCPU, dtype)));
    return at::stack(all, 1);  // [T, layers, ...]
  };
  const auto floats = [&](const Tensor routing::Routing::* member) {
    return layers([&](const routing::Routing& r) { return r.*member; }, at::kFloat);
  };
  for (const io::TraceLayout::Field& field : layout_.record()) {
    if (field.name == "step") {
      put<uint32_t>(records, size, field, at::full({count}, step, at::kInt));
    } else if (field.name == "position") {
      put<uint64_t>(records, size, field, chosen(positions));
    } else if (field.name == "tokens") {
      put<uint32_t>(records, size, field, chosen(tokens_T).to(at::kInt));
    } else if (field.name == "ids") {
      const Tensor ids = layers([&](const routing::Routing& r) { return widened(r.chosen_TK, layout_.slots, -1); },
                                layout_.narrow_ids() ? at::kShort : at::kInt);
      layout_.narrow_ids() ? put<int16_t>(records, size, field, ids) : put<int32_t>(records, size, field, ids);
    } else if (field.name == "weights") {
      put<float>(
          records, size, field,
          layers([&](const routing::Routing& r) { return widened(r.weights_TK, layout_.slots, 0); }, at::kFloat));
    } else {
      put<float>(records, size, field,
                 floats(field.name == "logits"   ? &routing::Routing::logits_TN
                        : field.name == "scores" ? &routing::Routing::scores_TN
                        : field.name == "probs"  ? &routing::Routing::probs_TN
                                                 : &routing::Routing::state_TP));
    }
  }
  writer_.append(records);
}

void TraceRecorder::finish() {
  writer_.finish(info_);
  log_info("trace: ", writer_.records(), " tokens through ", layout_.layers, " layers in ", writer_.path().string());
}

Replay::Replay(const std::string& file, const Model& model) : file_(io::TraceFile::open(file)) {
  const std::string what = file + ": trailer";
  const Json& recorded = json_member(file_.info(), "model", what);
  const io::TraceLayout mine = trace_layout(model, {}), &its = file_.layout();
  const std::string hash = json_string(recorded, "hash", what), expected = model_hash(model.config());
  if (its.layers == mine.layers && its.experts == mine.experts && its.slots == mine.slots && hash == expected) return;
  throw Error(Exit::kBadInput,
              str(file, ": a trace of another model: ", json_string(recorded, "family", what), ", ", its.layers,
                  " MoE layers, ", its.experts, " experts, ", its.slots, " slots, config ", hash, "; this one is ",
                  enum_name(model.config().family), ", ", mine.layers, ", ", mine.experts, ", ", mine.slots,
                  ", config ", expected),
              "replay on the run that the trace was made with, or on one of the same [model] section");
}

int64_t Replay::find(uint32_t step, uint64_t position) const {
  const auto key = [&](int64_t i) {
    return std::pair{read<uint32_t>(file_.record(i), 0), read<uint64_t>(file_.record(i), 4)};
  };
  const std::pair wanted{step, position};
  if (cursor_ < file_.records() && key(cursor_) == wanted) return cursor_;
  int64_t low = 0, high = file_.records();
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    key(middle) < wanted ? low = middle + 1 : high = middle;
  }
  return low < file_.records() && key(low) == wanted ? low : -1;
}

std::vector<Tensor> Replay::choices(const Tensor& tokens_T, const Tensor& positions_T, int64_t step) {
  const io::TraceLayout& layout = file_.layout();
  const int64_t T = positions_T.numel(), L = layout.layers, K = layout.slots;
  Tensor ids_LTK = at::empty({L, T, K}, at::kLong);
  auto* out = ids_LTK.mutable_data_ptr<int64_t>();
  const Tensor positions = positions_T.contiguous(), tokens = tokens_T.contiguous();
  const auto* position = positions.const_data_ptr<int64_t>();
  const auto* token = tokens.const_data_ptr<int64_t>();
  int64_t token_offset = -1, ids_offset = 0;
  for (const io::TraceLayout::Field& field : layout.record()) {
    if (field.name == "tokens") token_offset = field.offset;
    if (field.name == "ids") ids_offset = field.offset;
  }
  const std::string name = file_.path().string();
  for (int64_t t = 0; t < T; ++t) {
    const int64_t at = find(static_cast<uint32_t>(step), static_cast<uint64_t>(position[t]));
    if (at < 0) {
      throw Error(Exit::kBadInput, str(name, ": the trace has no record of step ", step, ", position ", position[t]),
                  "record every token (no --trace-tokens), with the same command, checkpoint and text");
    }
    cursor_ = at + 1;
    const std::byte* record = file_.record(at);
    if (token_offset >= 0) {
      const auto recorded = static_cast<int64_t>(read<uint32_t>(record, token_offset));
      RMOE_CHECK(recorded == token[t], name, ": a trace of another text: position ", position[t], " has token ",
                 recorded, " there and ", token[t], " here");
    }
    for (int64_t i = 0; i < L * K; ++i) {
      const int64_t id =
          layout.narrow_ids() ? read<int16_t>(record, ids_offset + 2 * i) : read<int32_t>(record, ids_offset + 4 * i);
      out[(i / K * T + t) * K + i % K] = id;
    }
  }
  return ids_LTK.unbind(0);
}

}  // namespace rmoe
