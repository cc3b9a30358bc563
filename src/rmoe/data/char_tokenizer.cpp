// The char tokenizer: one id per symbol that the training split has. Symbols are Unicode code points, or bytes, which
// is the vocabulary that the literature uses for enwik8 (204 bytes and the end of line).
#include <algorithm>

#include "rmoe/base/error.h"
#include "rmoe/base/json.h"
#include "rmoe/base/utf8.h"
#include "rmoe/data/tokenizer.h"

namespace rmoe::data {
namespace {

constexpr int64_t kNone = -1;

struct Table {
  std::vector<char32_t> symbols;  // by id
  std::vector<int32_t> ids;       // by symbol; kNone where there is none
  bool bytes = false;
  std::optional<int64_t> unknown, separator;
  int64_t size = 0;

  int64_t id(char32_t symbol) const { return symbol < ids.size() ? ids[symbol] : kNone; }
};

class CharEncoder : public Encoder {
 public:
  explicit CharEncoder(const Table& table) : table_(table) {}

  void feed(std::string_view text, std::vector<int64_t>& out) override {
    if (table_.bytes) {
      for (const char c : text) put(static_cast<unsigned char>(c), {&c, 1}, out);
      return;
    }
    if (!held_.empty()) {
      held_.append(text);
      text = held_;
    }
    const auto tail = static_cast<size_t>(unfinished_tail(text));
    take(text.substr(0, text.size() - tail), out);
    held_ = std::string(text.substr(text.size() - tail));
  }

  void finish(std::vector<int64_t>& out, bool) override { take(std::exchange(held_, {}), out); }

 private:
  void take(std::string_view text, std::vector<int64_t>& out) {
    while (!text.empty()) {
      const Utf8Char c = first_char(text);
      RMOE_CHECK(c.kind == Utf8Char::kValid, "char tokenizer: the text is not valid UTF-8");
      const auto length = static_cast<size_t>(c.length);
      put(c.value, text.substr(0, length), out);
      text.remove_prefix(length);
    }
  }

  void put(char32_t symbol, std::string_view text, std::vector<int64_t>& out) const {
    int64_t id = table_.id(symbol);
    if (id == kNone) {
      if (!table_.unknown) refuse(symbol, text);
      id = *table_.unknown;
    }
    out.push_back(id);
  }

  [[noreturn]] void refuse(char32_t symbol, std::string_view text) const {
    std::ostringstream code;
    code << std::hex << std::uppercase << static_cast<uint32_t>(symbol);
    if (table_.bytes) input_error("char tokenizer: byte 0x", code.str(), " is not in the vocabulary");
    input_error("char tokenizer: character '", text, "' (U+", code.str(), ") is not in the vocabulary");
  }

  const Table& table_;
  std::string held_;  // an unfinished character
};

class CharDecoder : public Decoder {
 public:
  explicit CharDecoder(const Table& table) : table_(table) {}

 private:
  void bytes_of(int64_t id, std::string& out) override {
    RMOE_CHECK(id >= 0 && id < table_.size, "char tokenizer: id ", id, ", expected 0 to ", table_.size - 1);
    if (id == table_.separator) return;
    if (id == table_.unknown) return append_utf8(0xFFFD, out);
    const char32_t symbol = table_.symbols[static_cast<size_t>(id)];
    table_.bytes ? out.push_back(static_cast<char>(symbol)) : append_utf8(symbol, out);
  }

  const Table& table_;
};

class CharTokenizer : public Tokenizer {
 public:
  CharTokenizer(std::vector<char32_t> vocabulary, bool bytes, bool unknown, bool separated) {
    RMOE_ASSERT(!vocabulary.empty() && std::is_sorted(vocabulary.begin(), vocabulary.end()),
                "char tokenizer: ", vocabulary.size(), " symbols, not in order");
    table_.bytes = bytes;
    table_.symbols = std::move(vocabulary);
    table_.ids.assign(table_.symbols.back() + 1, kNone);
    for (const char32_t symbol : table_.symbols) table_.ids[symbol] = static_cast<int32_t>(vocab_size_++);
    if (unknown) unknown_ = vocab_size_++;
    if (separated) separator_ = vocab_size_++;
    table_.unknown = unknown_;
    table_.separator = separator_;
    table_.size = vocab_size_;
    seal();
  }
  std::unique_ptr<Encoder> encoder() const override { return std::make_unique<CharEncoder>(table_); }
  std::unique_ptr<Decoder> decoder() const override { return std::make_unique<CharDecoder>(table_); }
  std::string kind() const override { return "char"; }
  bool characters_are_bytes() const override { return table_.bytes; }
  bool needs_utf8() const override { return !table_.bytes; }
  std::string describe() const override {
    return str("char: ", table_.symbols.size(), table_.bytes ? " bytes" : " characters",
               unknown_ ? ", one for the unknown" : "", separator_ ? ", a separator" : "");
  }

 private:
  Json contents() const override {
    Json object = common_contents();
    object["unit"] = table_.bytes ? "byte" : "character";
    object["vocabulary"] = std::vector<uint32_t>(table_.symbols.begin(), table_.symbols.end());
    return object;
  }

  Table table_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_char_tokenizer(std::vector<char32_t> vocabulary, bool bytes, bool unknown,
                                               bool separated) {
  return std::make_unique<CharTokenizer>(std::move(vocabulary), bytes, unknown, separated);
}

}  // namespace rmoe::data
