// The word tokenizer, the protocol of WikiText-103 (Merity et al. 2016; Transformer-XL, fairseq): words between white
// space, <eos> for every line, <unk> for what the vocabulary lacks. White space is not kept: the decoder writes one
// space between words and a line feed for <eos>.
#include <string>
#include <unordered_map>

#include "rmoe/base/error.h"
#include "rmoe/base/json.h"
#include "rmoe/data/tokenizer.h"
#include "rmoe/data/words.h"

namespace rmoe::data {
namespace {

constexpr size_t kLongestWord = size_t{1} << 20;

struct Hash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};

struct Table {
  std::vector<std::string> words;  // by id
  std::unordered_map<std::string, int64_t, Hash, std::equal_to<>> ids;
  int64_t end_of_line = 0, unknown = 0;
  std::optional<int64_t> separator;
};

class WordEncoder : public Encoder {
 public:
  explicit WordEncoder(const Table& table) : table_(table) {}

  void feed(std::string_view text, std::vector<int64_t>& out) override {
    // What follows the last plain white space may be half a word.
    const size_t space = text.find_last_of(" \t\n\v\f\r");
    if (space != text.npos) {
      held_.append(text.substr(0, space + 1));
      take(held_, out);
      held_.assign(text.substr(space + 1));
    } else {
      held_.append(text);
    }
    if (held_.size() > kLongestWord) {
      throw Error(Exit::kBadInput, str("word tokenizer: a word of more than ", kLongestWord, " bytes"),
                  "this text is not made of words between spaces; use the char or sentencepiece tokenizer");
    }
  }

  void finish(std::vector<int64_t>& out, bool complete_line) override {
    take(std::exchange(held_, {}), out);
    if (in_line_ && complete_line) out.push_back(table_.end_of_line);
    in_line_ = false;
  }

 private:
  void take(std::string_view text, std::vector<int64_t>& out) {
    split_words(
        text,
        [&](size_t begin, size_t length) {
          const auto found = table_.ids.find(text.substr(begin, length));
          out.push_back(found == table_.ids.end() ? table_.unknown : found->second);
        },
        [&] { out.push_back(table_.end_of_line); });
    if (!text.empty()) in_line_ = text.back() != '\n';
  }

  const Table& table_;
  std::string held_;
  bool in_line_ = false;
};

class WordDecoder : public Decoder {
 public:
  explicit WordDecoder(const Table& table) : table_(table) {}

 private:
  void bytes_of(int64_t id, std::string& out) override {
    const auto words = static_cast<int64_t>(table_.words.size());
    RMOE_CHECK(id >= 0 && (id < words || id == table_.separator), "word tokenizer: id ", id, ", expected 0 to ",
               words - 1 + table_.separator.has_value());
    if (id == table_.separator) return;
    if (id == table_.end_of_line) {
      out.push_back('\n');
      in_line_ = false;
      return;
    }
    if (in_line_) out.push_back(' ');
    out += table_.words[static_cast<size_t>(id)];
    in_line_ = true;
  }

  const Table& table_;
  bool in_line_ = false;
};

class WordTokenizer : public Tokenizer {
 public:
  WordTokenizer(std::vector<std::string> vocabulary, bool separated) {
    table_.words = std::move(vocabulary);
    table_.ids.reserve(table_.words.size());
    for (const std::string& word : table_.words) {
      const bool is_new = table_.ids.emplace(word, vocab_size_++).second;
      RMOE_CHECK(is_new && !word.empty(), "word tokenizer: the vocabulary has '", word, "' more than once, or empty");
    }
    for (const auto& [word, id] : {std::pair{kEndOfLine, &table_.end_of_line}, {kUnknownWord, &table_.unknown}}) {
      const auto found = table_.ids.find(word);
      RMOE_CHECK(found != table_.ids.end(), "word tokenizer: the vocabulary lacks ", word);
      *id = found->second;
    }
    unknown_ = table_.unknown;
    if (separated) separator_ = table_.separator = vocab_size_++;
    seal();
  }
  std::unique_ptr<Encoder> encoder() const override { return std::make_unique<WordEncoder>(table_); }
  std::unique_ptr<Decoder> decoder() const override { return std::make_unique<WordDecoder>(table_); }
  std::string kind() const override { return "word"; }
  bool needs_utf8() const override { return true; }
  std::string describe() const override {
    return str("word: ", table_.words.size(), " words with <eos> and <unk>", separator_ ? ", a separator" : "");
  }

 private:
  Json contents() const override {
    Json object = common_contents();
    object["end_of_line"] = table_.end_of_line;
    object["vocabulary"] = table_.words;
    return object;
  }

  Table table_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_word_tokenizer(std::vector<std::string> vocabulary, bool separated) {
  return std::make_unique<WordTokenizer>(std::move(vocabulary), separated);
}

}  // namespace rmoe::data
