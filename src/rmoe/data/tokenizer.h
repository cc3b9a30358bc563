// Tokenizers: text to token ids and back. One kind per file (byte, char, word, SentencePiece); all share this
// interface.
//
// tokenizer.json, one JSON object:
//   "format"      "rmoe-tokenizer"
//   "version"     1
//   "kind"        "byte" | "char" | "word" | "sentencepiece" | "huggingface"
//   "vocab_size"  ids are 0 .. vocab_size - 1
//   "separator"   id that ends every document, or null where documents are not separated
//   "unknown"     id for what the vocabulary lacks, or null (then such text is refused)
//   "hash"        16 hex digits: XXH3-64 (seed 0) of the object without this key, written compactly (no spaces) with
//   its
//                 keys in the order given here; token files carry it
// and by kind:
//   byte           nothing more: id = byte; the separator, if any, is 256
//   char           "unit": "character" (Unicode code points) or "byte"; "vocabulary": array of numbers in ascending
//   order,
//                  code points or bytes; the id is the index. "unknown", then "separator", follow where there are any
//   word           "end_of_line": the id of "<eos>", which ends every line; "vocabulary": array of strings, most
//   frequent
//                  first (ties by bytes), with "<eos>" and "<unk>" among them; the id is the index. "separator" follows
//   huggingface    "model": "tokenizer.hf.json", the file of Hugging Face's `tokenizers` in the same folder;
//   "model_hash";
//                  "begin": ids that every document begins with. A document is encoded whole (in parts, cut behind a
//                  line feed, beyond 16 MiB)
//   sentencepiece  "model": "tokenizer.model", the SentencePiece model in the same folder, its normalization set to
//   identity;
//                  "model_hash": 16 hex digits, XXH3-64 (seed 0) of that file. Every line, with its line feed, is
//                  encoded by itself (a line over 65536 bytes in parts); the separator is the model's </s>, or follows
//                  its pieces. With "normalization": "model" the file is as somebody else made it, and ids are those of
//                  its own conventions: "prefix" says whether a document begins with a space that is not in the text,
//                  "begin" holds the ids before that
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace rmoe::data {

// Turns the text of one document, given in pieces of any size, into ids. The ids do not depend on where the pieces are
// cut.
class Encoder {
 public:
  virtual ~Encoder() = default;
  // Appends the ids that are certain so far. Throws kBadInput on text that the tokenizer cannot take.
  virtual void feed(std::string_view text, std::vector<int64_t>& out) = 0;
  // Ends the text: appends what was held back. `complete_line`: an unfinished last line counts as a line (a file's last
  // line), which matters to the word tokenizer's <eos>; false for a prompt that is to be continued.
  virtual void finish(std::vector<int64_t>& out, bool complete_line = true) = 0;
};

// Turns ids into text one at a time. Bytes are withheld until a UTF-8 character is whole, so every returned piece is
// valid UTF-8 (bytes that cannot begin or continue a character are passed through as they are, when that is certain).
class Decoder {
 public:
  virtual ~Decoder() = default;
  Decoder() = default;
  // The text that became certain with this id; often one character, sometimes empty. The separator gives nothing.
  std::string feed(int64_t id);
  // What is still withheld (an unfinished character).
  std::string finish();

 protected:
  // Raw bytes that became certain with this id.
  virtual void bytes_of(int64_t id, std::string& out) = 0;
  // Raw bytes that were waiting for further ids.
  virtual void bytes_left(std::string& /*out*/) {}

 private:
  std::string held_;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Loads tokenizer.json from a data folder (or the file itself). Throws kBadInput / kIo naming the file.
  static std::unique_ptr<Tokenizer> load(const std::filesystem::path& folder_or_file);
  // Writes tokenizer.json (and tokenizer.model for SentencePiece) into an existing folder.
  void save(const std::filesystem::path& folder) const;

  // Both refer to the tokenizer, which must outlive them.
  virtual std::unique_ptr<Encoder> encoder() const = 0;
  virtual std::unique_ptr<Decoder> decoder() const = 0;

  // A whole text at once, as a prompt: no separator, and no <eos> after an unfinished last line.
  std::vector<int64_t> encode(std::string_view text) const;
  // Text that goes on after other text: without what only a document begins with, its first ids and a prefix.
  virtual std::vector<int64_t> encode_more(std::string_view text) const { return encode(text); }
  // A whole sequence at once; decode(encode(x)) == x for byte, char and SentencePiece with byte fallback.
  std::string decode(std::span<const int64_t> ids) const;

  virtual std::string kind() const = 0;
  int64_t vocab_size() const { return vocab_size_; }
  std::optional<int64_t> separator() const { return separator_; }
  std::optional<int64_t> unknown() const { return unknown_; }
  // Identity of the tokenizer; equal hashes mean equal ids for equal text.
  uint64_t hash() const { return hash_; }
  // True when one character of the "bits per character" count is one byte (see token_file.h).
  virtual bool characters_are_bytes() const { return false; }
  // True when text has to be valid UTF-8.
  virtual bool needs_utf8() const { return false; }
  // The same tokenizer as Hugging Face's tokenizer.json; null where there is no such form.
  virtual nlohmann::ordered_json huggingface_form() const;
  // One line for people: "char: 205 bytes", "sentencepiece: unigram, 8000 pieces".
  virtual std::string describe() const = 0;

 protected:
  // Contents of tokenizer.json without "hash": common_contents() and what is particular to the kind.
  virtual nlohmann::ordered_json contents() const = 0;
  nlohmann::ordered_json common_contents() const;
  // Further files of save().
  virtual void save_more(const std::filesystem::path& /*folder*/) const {}
  // Computes the hash; the last line of every constructor.
  void seal();

  int64_t vocab_size_ = 0;
  std::optional<int64_t> separator_, unknown_;

 private:
  uint64_t hash_ = 0;
};

// 256 byte ids, and id 256 as the separator where documents are separated.
std::unique_ptr<Tokenizer> make_byte_tokenizer(bool separated);

// One id per symbol of `vocabulary`, which is ascending and not empty: code points, or bytes when `bytes`.
std::unique_ptr<Tokenizer> make_char_tokenizer(std::vector<char32_t> vocabulary, bool bytes, bool unknown,
                                               bool separated);

// One id per word of `vocabulary`, which holds kEndOfLine and kUnknownWord.
inline constexpr std::string_view kEndOfLine = "<eos>";
inline constexpr std::string_view kUnknownWord = "<unk>";
std::unique_ptr<Tokenizer> make_word_tokenizer(std::vector<std::string> vocabulary, bool separated);

// A SentencePiece model, given as the bytes of its file; `name` names it in errors. Its normalization, dummy prefix and
// removal of spaces are switched off, so that decode(encode(x)) == x when the model has byte fallback.
std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(std::string model, const std::string& name, bool separated);

// A SentencePiece model that somebody else trained for a model, with that model's conventions: its own prefix, and with
// `begin` its <s> before every document. Equal to the ids of the SentencePiece library for the whole text. Throws
// kBadInput when the model changes its text beyond the prefix (a character map, removal of spaces).
std::unique_ptr<Tokenizer> make_foreign_sentencepiece_tokenizer(std::string model, const std::string& name, bool begin);

// A tokenizer of Hugging Face's `tokenizers`, given as the text of its tokenizer.json; `name` names it in errors. That
// package itself does the work, in a process of the Python that has it: that of the environment whose torch this
// program runs on, else python3 of the path. Throws kIo when neither has it, kBadInput for a file that it does not
// take. `separator`: the token that ends a document, as text; empty: none. With `facts`, as a file of ours has them,
// the process starts when it is first needed.
struct HuggingfaceFacts {
  int64_t size = 0;
  std::vector<int64_t> begin;  // ids before every document
  std::optional<int64_t> separator;
};
std::unique_ptr<Tokenizer> make_huggingface_tokenizer(std::string file, const std::string& name,
                                                      const std::string& separator,
                                                      std::optional<HuggingfaceFacts> facts = {});

// The tokenizer of a Hugging Face folder (its tokenizer.json before its tokenizer.model, with tokenizer_config.json for
// the special tokens), or one of those files; of an exported run, the run's own. Null when the folder has none.
std::unique_ptr<Tokenizer> load_foreign_tokenizer(const std::filesystem::path& folder_or_file);

// The text of a token, out of the contents of Hugging Face's tokenizer.json; empty where it has none of this id.
std::string token_text(const nlohmann::ordered_json& file, int64_t id);

// Trains a SentencePiece model on lines; returns the bytes of its file.
struct SentencePieceOptions {
  bool bpe = false;  // otherwise unigram
  int64_t vocab_size = 8000;
};
// `next` gives the next line, without its line feed; none at the end. Equal lines give an equal model on every machine.
// Throws kBadInput when the text is too small for the vocabulary, or the vocabulary for the text.
std::string train_sentencepiece(const SentencePieceOptions& options,
                                const std::function<std::optional<std::string>()>& next);

}  // namespace rmoe::data
