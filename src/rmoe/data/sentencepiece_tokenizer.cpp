// The SentencePiece tokenizer (Kudo and Richardson 2018): a unigram or BPE model, trained here or given, made lossless.
// Text is encoded line by line, so that files of any size stream. What the model would change is encoded as byte pieces
// by us: U+2581, which stands for a space inside the model, the zero byte, and bytes that are not UTF-8.
// (libtorch exports protobuf types of its own, but none of those that libsentencepiece uses; FLAGS_minloglevel, which
// both define, decides the link order in CMakeLists.txt. sentencepiece_test.cpp runs in a program with libtorch
// loaded.)
#include <algorithm>
#include <array>
#include <unordered_map>

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/base/utf8.h"
#include "rmoe/data/hash.h"
#include "rmoe/data/huggingface_form.h"
#include "rmoe/data/tokenizer.h"

namespace rmoe::data {
namespace {

constexpr size_t kLongestPart = 65536;
constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581
constexpr char kModelName[] = "tokenizer.model";

// ModelProto { normalizer_spec { precompiled_charsmap: "" add_dummy_prefix: false remove_extra_whitespaces: false
// escape_whitespaces: true } } in protobuf's wire format. Protobuf merges a message that follows another, so appending
// this to a model sets these fields and leaves all others.
constexpr std::string_view kIdentity("\x1A\x08\x12\x00\x18\x00\x20\x00\x28\x01", 10);

// The same of add_dummy_prefix alone: the prefix is put before the first part of a text, by us.
constexpr std::string_view kNoPrefix("\x1A\x02\x18\x00", 4);

// What a model does to its text, out of ModelProto.normalizer_spec (field 3); absent fields have protobuf's defaults.
struct Normalizer {
  bool maps = false;  // precompiled_charsmap
  bool prefix = true, removes_spaces = true, escapes = true;
};

// Reads the wire format of protobuf: number of the field, its number and its bytes.
template <class F>
bool for_each_field(std::string_view text, F&& f) {
  const auto varint = [&](uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 64 && !text.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(text.front());
      text.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  };
  while (!text.empty()) {
    uint64_t tag = 0, value = 0;
    std::string_view bytes;
    if (!varint(tag)) return false;
    const uint64_t type = tag & 7;
    if (type == 0) {
      if (!varint(value)) return false;
    } else {
      uint64_t size = type == 1 ? 8 : 4;
      if (type == 2 && !varint(size)) return false;
      if ((type != 1 && type != 2 && type != 5) || size > text.size()) return false;
      bytes = text.substr(0, size);
      text.remove_prefix(size);
    }
    f(tag >> 3, value, bytes);
  }
  return true;
}

// Of a whole model: TrainerSpec.model_type is 2.
bool is_bpe(std::string_view model) {
  bool bpe = false;
  for_each_field(model, [&](uint64_t field, uint64_t, std::string_view spec) {
    if (field != 2) return;
    for_each_field(spec, [&](uint64_t part, uint64_t value, std::string_view) {
      if (part == 3) bpe = value == 2;
    });
  });
  return bpe;
}

Normalizer read_normalizer(std::string_view model) {
  Normalizer n;
  for_each_field(model, [&](uint64_t field, uint64_t, std::string_view spec) {
    if (field != 3) return;
    for_each_field(spec, [&](uint64_t part, uint64_t value, std::string_view bytes) {
      if (part == 2) n.maps = !bytes.empty();
      if (part == 3) n.prefix = value != 0;
      if (part == 4) n.removes_spaces = value != 0;
      if (part == 5) n.escapes = value != 0;
    });
  });
  return n;
}

struct Model {
  std::string file;  // bytes of tokenizer.model
  std::string name;
  sentencepiece::SentencePieceProcessor processor;
  std::vector<std::string> bytes;     // of every id, as decoded
  std::array<int64_t, 256> byte_ids;  // byte pieces; -1 where the model has none
  std::optional<int64_t> unknown, separator;
  int64_t size = 0;
  // With the model's own conventions: what a document begins with.
  bool own = false, prefix = false;
  std::optional<int64_t> begin;
  bool by_lines = true;  // no piece reaches over a line feed

  std::vector<int> encode(std::string_view text) const {
    std::vector<int> ids;
    const auto status = processor.Encode(text, &ids);
    RMOE_ASSERT(status.ok(), name, ": SentencePiece cannot encode: ", status.ToString());
    return ids;
  }
};

class PieceEncoder : public Encoder {
 public:
  // `more`: the text goes on after other text.
  explicit PieceEncoder(const Model& model, bool more = false) : model_(model), started_(more) {}

  void feed(std::string_view text, std::vector<int64_t>& out) override {
    start(out);
    prefixed_ = prefixed_ && text.empty();
    held_.append(text);
    std::string_view rest = held_;
    while (const size_t length = next_part(rest)) {
      take(rest.substr(0, length), out);
      rest.remove_prefix(length);
    }
    held_.erase(0, held_.size() - rest.size());
  }

  void finish(std::vector<int64_t>& out, bool) override {
    start(out);
    take(held_ == " " && prefixed_ ? std::string_view() : held_, out);
    held_.clear();
    started_ = prefixed_ = false;
  }

 private:
  void start(std::vector<int64_t>& out) {
    if (std::exchange(started_, true) || !model_.own) return;
    if (model_.begin) out.push_back(*model_.begin);
    if (model_.prefix) held_ = " ";
    prefixed_ = model_.prefix;
  }

  // Bytes of the first part of `text` that is encoded by itself; 0 when its end is not in sight. Depends on what the
  // text says, not on how much of it is here.
  size_t next_part(std::string_view text) const {
    const size_t line_feed = text.substr(0, kLongestPart).find('\n');
    if (model_.by_lines && line_feed != text.npos) return line_feed + 1;
    if (text.size() < kLongestPart) return 0;
    return kLongestPart - static_cast<size_t>(unfinished_tail(text.substr(0, kLongestPart)));
  }

  void take(std::string_view text, std::vector<int64_t>& out) const {
    size_t begin = 0;
    const auto flush = [&](size_t end) {
      if (end == begin) return;
      for (const int id : model_.encode(text.substr(begin, end - begin))) out.push_back(id);
    };
    for (size_t i = 0; i < text.size();) {
      const Utf8Char c = first_char(text.substr(i));
      const auto length = static_cast<size_t>(c.length);
      if (c.kind != Utf8Char::kValid || c.value == 0 || (c.value == 0x2581 && !model_.own)) {
        flush(i);
        for (const char byte : text.substr(i, length)) put_byte(static_cast<unsigned char>(byte), out);
        begin = i + length;
      }
      i += length;
    }
    flush(text.size());
  }

  void put_byte(unsigned char byte, std::vector<int64_t>& out) const {
    const int64_t id = model_.byte_ids[byte];
    if (id >= 0) return out.push_back(id);
    RMOE_CHECK(model_.unknown, model_.name, ": the model has no piece for byte ", static_cast<int>(byte));
    out.push_back(*model_.unknown);
  }

  const Model& model_;
  std::string held_;
  bool started_ = false, prefixed_ = false;  // held_ is the space in front and nothing else
};

class PieceDecoder : public Decoder {
 public:
  explicit PieceDecoder(const Model& model) : model_(model) {}

 private:
  void bytes_of(int64_t id, std::string& out) override {
    RMOE_CHECK(id >= 0 && id < model_.size, model_.name, ": id ", id, ", expected 0 to ", model_.size - 1);
    if (id >= static_cast<int64_t>(model_.bytes.size())) return;
    std::string_view bytes = model_.bytes[static_cast<size_t>(id)];
    if (bytes.empty()) return;
    if (!std::exchange(started_, true) && model_.prefix && bytes.front() == ' ') bytes.remove_prefix(1);
    out += bytes;
  }

  const Model& model_;
  bool started_ = false;
};

class SentencePieceTokenizer : public Tokenizer {
 public:
  enum class Conventions { kOurs, kModels, kModelsWithBegin };

  SentencePieceTokenizer(std::string file, const std::string& name, bool separated, Conventions conventions) {
    model_.own = conventions != Conventions::kOurs;
    if (!model_.own && !file.ends_with(kIdentity)) file += kIdentity;
    model_.file = std::move(file);
    model_.name = name;
    const auto& processor = model_.processor;
    const auto status =
        model_.processor.LoadFromSerializedProto(model_.own ? model_.file + std::string(kNoPrefix) : model_.file);
    RMOE_CHECK(status.ok() && processor.GetPieceSize() > 0, name, ": not a SentencePiece model");
    read_pieces();
    if (model_.own) {
      const Normalizer normalizer = read_normalizer(model_.file);
      if (normalizer.maps || normalizer.removes_spaces || !normalizer.escapes) {
        throw Error(Exit::kBadInput,
                    str(name, ": changes its text by ", normalizer.maps ? "a map of characters" : "its spaces",
                        ", which is not supported"),
                    "give the model's tokenizer.json; transformers' AutoTokenizer writes one from tokenizer.model");
      }
      model_.prefix = normalizer.prefix;
      if (conventions == Conventions::kModelsWithBegin && processor.bos_id() >= 0) model_.begin = processor.bos_id();
      for (int id = 0; id < processor.GetPieceSize(); ++id) {
        if (!processor.IsByte(id) && processor.IdToPiece(id).find('\n') != std::string::npos) model_.by_lines = false;
      }
    }
    vocab_size_ = processor.GetPieceSize();
    if (processor.unk_id() >= 0) unknown_ = processor.unk_id();
    if (processor.eos_id() >= 0) {
      separator_ = processor.eos_id();
    } else if (separated) {
      separator_ = vocab_size_++;
    }
    model_.unknown = unknown_;
    model_.separator = separator_;
    model_.size = vocab_size_;
    seal();
  }
  std::unique_ptr<Encoder> encoder() const override { return std::make_unique<PieceEncoder>(model_); }
  std::unique_ptr<Decoder> decoder() const override { return std::make_unique<PieceDecoder>(model_); }
  std::vector<int64_t> encode_more(std::string_view text) const override {
    std::vector<int64_t> ids;
    PieceEncoder encoder(model_, /*more=*/true);
    encoder.feed(text, ids);
    encoder.finish(ids, /*complete_line=*/false);
    return ids;
  }
  std::string kind() const override { return "sentencepiece"; }
  bool needs_utf8() const override { return true; }
  // A model of somebody else has its own files for that.
  Json huggingface_form() const override {
    if (model_.own || !lossless() || !model_.unknown) return nullptr;
    const auto& processor = model_.processor;
    std::vector<Piece> pieces;
    for (int id = 0; id < processor.GetPieceSize(); ++id) {
      pieces.push_back(
          {processor.IdToPiece(id), processor.GetScore(id), processor.IsControl(id) || processor.IsUnknown(id)});
    }
    if (separator_ && *separator_ == std::ssize(pieces)) pieces.push_back({.text = "<|end|>", .special = true});
    return huggingface_pieces(pieces, is_bpe(model_.file), *model_.unknown);
  }
  std::string describe() const override {
    return str("sentencepiece: ", model_.bytes.size(), " pieces", lossless() ? "" : ", no byte fallback");
  }

 private:
  bool lossless() const {
    return std::ranges::none_of(model_.byte_ids, [](int64_t id) { return id < 0; });
  }

  void read_pieces() {
    const auto& processor = model_.processor;
    model_.byte_ids.fill(-1);
    for (int id = 0; id < processor.GetPieceSize(); ++id) {
      std::string text = processor.IdToPiece(id);
      if (processor.IsByte(id)) {  // "<0x0A>"
        const int byte = std::stoi(text.substr(1, text.size() - 2), nullptr, 16);
        RMOE_CHECK(byte >= 0 && byte < 256, model_.name, ": '", text, "' is not a byte piece");
        model_.byte_ids[static_cast<size_t>(byte)] = id;
        text = std::string(1, static_cast<char>(byte));
      } else if (processor.IsControl(id)) {
        text.clear();
      } else if (processor.IsUnknown(id)) {
        text = "\xEF\xBF\xBD";  // U+FFFD
      } else {
        for (size_t at = 0; (at = text.find(kSpaceMark, at)) != text.npos; ++at)
          text.replace(at, kSpaceMark.size(), 1, ' ');
      }
      model_.bytes.push_back(std::move(text));
    }
  }

  Json contents() const override {
    Json object = common_contents();
    object["model"] = kModelName;
    object["model_hash"] = hex16(xxh3(model_.file));
    if (!model_.own) return object;
    object["normalization"] = "model";
    object["prefix"] = model_.prefix;
    object["begin"] = model_.begin ? Json::array({*model_.begin}) : Json::array();
    return object;
  }
  void save_more(const std::filesystem::path& folder) const override {
    write_file_atomic(folder / kModelName, model_.file);
  }

  Model model_;
};

// Hands lines to the trainer; long ones in parts, since it leaves out what is longer than its limit.
class Lines : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::function<std::optional<std::string>()>& next) : next_(next) { Next(); }
  bool done() const override { return done_; }
  const std::string& value() const override { return value_; }
  sentencepiece::util::Status status() const override { return {}; }

  void Next() override {
    while (rest_.empty()) {
      auto line = next_();
      if (!line) {
        done_ = true;
        return;
      }
      rest_ = std::move(*line);
    }
    size_t length = std::min(rest_.size(), kLongestLine);
    length -= static_cast<size_t>(unfinished_tail(std::string_view(rest_).substr(0, length)));
    value_ = rest_.substr(0, length);
    rest_.erase(0, length);
  }

  static constexpr size_t kLongestLine = 4096;

 private:
  const std::function<std::optional<std::string>()>& next_;
  std::string rest_, value_;
  bool done_ = false;
};

}  // namespace

std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(std::string model, const std::string& name, bool separated) {
  return std::make_unique<SentencePieceTokenizer>(std::move(model), name, separated,
                                                  SentencePieceTokenizer::Conventions::kOurs);
}

std::unique_ptr<Tokenizer> make_foreign_sentencepiece_tokenizer(std::string model, const std::string& name,
                                                                bool begin) {
  using Conventions = SentencePieceTokenizer::Conventions;
  return std::make_unique<SentencePieceTokenizer>(std::move(model), name, /*separated=*/false,
                                                  begin ? Conventions::kModelsWithBegin : Conventions::kModels);
}

std::string train_sentencepiece(const SentencePieceOptions& options,
                                const std::function<std::optional<std::string>()>& next) {
  // Besides 256 byte pieces, <unk> and </s> at least two more.
  RMOE_CHECK(options.vocab_size >= 260 && options.vocab_size <= 1'000'000, "sentencepiece: a vocabulary of ",
             options.vocab_size, ", expected 260 to 1000000");
  Lines lines(next);
  RMOE_CHECK(!lines.done(), "sentencepiece: no text to train on");
  std::string model;
  sentencepiece::SetRandomGeneratorSeed(1);
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      {
          {"model_type", options.bpe ? "bpe" : "unigram"},
          {"vocab_size", std::to_string(options.vocab_size)},
          {"byte_fallback", "true"},
          {"normalization_rule_name", "identity"},
          {"remove_extra_whitespaces", "false"},
          {"add_dummy_prefix", "false"},
          {"allow_whitespace_only_pieces", "true"},
          {"unk_id", "0"},
          {"eos_id", "1"},
          {"bos_id", "-1"},
          {"pad_id", "-1"},
          {"max_sentence_length", std::to_string(Lines::kLongestLine)},
          {"num_threads", "4"},  // constant: the sums of training depend on it
          {"minloglevel", "2"},
      },
      &lines, &model);
  if (!status.ok()) {
    // "file(line) [condition] message"
    std::string message = status.message();
    if (const size_t at = message.rfind("] "); at != message.npos) message.erase(0, at + 2);
    throw Error(Exit::kBadInput, str("sentencepiece: cannot train ", options.vocab_size, " pieces: ", message),
                "try another --vocab-size");
  }
  return model;
}

}  // namespace rmoe::data
