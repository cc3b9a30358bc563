// Tokenizers: what all kinds share, and tokenizer.json.
#include "rmoe/data/tokenizer.h"

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/base/utf8.h"
#include "rmoe/data/hash.h"

namespace rmoe::data {
namespace {

constexpr JsonLimits kLimits{.bytes = int64_t{1} << 30, .depth = 4};

std::optional<int64_t> optional_int(const Json& object, const char* key, const std::string& what) {
  if (json_member(object, key, what).is_null()) return std::nullopt;
  return json_int(object, key, what);
}

const Json& array_member(const Json& object, const char* key, const std::string& what) {
  const Json& member = json_member(object, key, what);
  RMOE_CHECK(member.is_array() && !member.empty(), what, ": '", key, "' is not a list of at least one entry");
  return member;
}

std::unique_ptr<Tokenizer> load_char(const Json& object, const std::string& what, bool unknown, bool separated) {
  const std::string unit = json_string(object, "unit", what);
  RMOE_CHECK(unit == "character" || unit == "byte", what, ": 'unit' is '", unit, "', expected character or byte");
  const bool bytes = unit == "byte";
  std::vector<char32_t> vocabulary;
  for (const Json& entry : array_member(object, "vocabulary", what)) {
    const bool fits = entry.is_number_unsigned() && entry.get<uint64_t>() <= (bytes ? 0xFFU : 0x10FFFFU);
    RMOE_CHECK(fits && (vocabulary.empty() || entry.get<char32_t>() > vocabulary.back()), what,
               ": 'vocabulary' is not an ascending list of ", unit, "s: ", json_text(entry));
    vocabulary.push_back(entry.get<char32_t>());
  }
  return make_char_tokenizer(std::move(vocabulary), bytes, unknown, separated);
}

std::unique_ptr<Tokenizer> load_word(const Json& object, const std::string& what, bool separated) {
  std::vector<std::string> vocabulary;
  for (const Json& entry : array_member(object, "vocabulary", what)) {
    RMOE_CHECK(entry.is_string(), what, ": 'vocabulary' holds ", json_text(entry), ", expected words");
    vocabulary.push_back(entry.get<std::string>());
  }
  return make_word_tokenizer(std::move(vocabulary), separated);
}

const Json& array_or_empty(const Json& object, const char* key, const std::string& what) {
  const Json& member = json_member(object, key, what);
  RMOE_CHECK(member.is_array(), what, ": '", key, "' is not a list");
  return member;
}

// The file that "model" names, whose hash is "model_hash".
std::pair<std::filesystem::path, std::string> read_model(const Json& object, const std::string& what,
                                                         const std::filesystem::path& folder) {
  const std::string model = json_string(object, "model", what);
  RMOE_CHECK(!model.empty() && std::filesystem::path(model).filename() == model, what, ": 'model' is '", model,
             "', expected a file name");
  const std::filesystem::path path = folder / model;
  std::string bytes = read_file(path, kLimits.bytes);
  const uint64_t expected = parse_hex16(json_string(object, "model_hash", what), what);
  RMOE_CHECK(xxh3(bytes) == expected, path.string(), ": damaged: it hashes to ", hex16(xxh3(bytes)), ", expected ",
             hex16(expected));
  return {path, std::move(bytes)};
}

std::unique_ptr<Tokenizer> load_huggingface(const Json& object, const std::string& what,
                                            const std::filesystem::path& folder) {
  auto [path, bytes] = read_model(object, what, folder);
  HuggingfaceFacts facts{
      .size = json_int(object, "vocab_size", what), .begin = {}, .separator = optional_int(object, "separator", what)};
  const auto is_id = [&](int64_t id) { return id >= 0 && id < facts.size; };
  RMOE_CHECK(facts.size > 0 && is_id(facts.separator.value_or(0)), what,
             ": 'vocab_size' or 'separator' is out of range");
  for (const Json& id : array_or_empty(object, "begin", what)) {
    RMOE_CHECK(id.is_number_integer() && is_id(id.get<int64_t>()), what, ": 'begin' is not a list of ids");
    facts.begin.push_back(id.get<int64_t>());
  }
  return make_huggingface_tokenizer(std::move(bytes), path.string(), "", std::move(facts));
}

std::unique_ptr<Tokenizer> load_sentencepiece(const Json& object, const std::string& what,
                                              const std::filesystem::path& folder, bool separated) {
  auto [path, bytes] = read_model(object, what, folder);
  if (!object.contains("normalization"))
    return make_sentencepiece_tokenizer(std::move(bytes), path.string(), separated);
  const std::string normalization = json_string(object, "normalization", what);
  RMOE_CHECK(normalization == "model", what, ": 'normalization' is '", normalization, "', expected model");
  const Json& begin = array_or_empty(object, "begin", what);
  return make_foreign_sentencepiece_tokenizer(std::move(bytes), path.string(), !begin.empty());
}

}  // namespace

std::string Decoder::feed(int64_t id) {
  bytes_of(id, held_);
  std::string ready = held_.substr(0, held_.size() - static_cast<size_t>(unfinished_tail(held_)));
  held_.erase(0, ready.size());
  return ready;
}

std::string Decoder::finish() {
  bytes_left(held_);
  return std::exchange(held_, {});
}

Json Tokenizer::huggingface_form() const { return nullptr; }

std::vector<int64_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int64_t> ids;
  const auto encoder = this->encoder();
  encoder->feed(text, ids);
  encoder->finish(ids, /*complete_line=*/false);
  return ids;
}

std::string Tokenizer::decode(std::span<const int64_t> ids) const {
  std::string text;
  const auto decoder = this->decoder();
  for (const int64_t id : ids) text += decoder->feed(id);
  return text + decoder->finish();
}

Json Tokenizer::common_contents() const {
  Json object;
  object["format"] = "rmoe-tokenizer";
  object["version"] = 1;
  object["kind"] = kind();
  object["vocab_size"] = vocab_size_;
  object["separator"] = separator_ ? Json(*separator_) : Json();
  object["unknown"] = unknown_ ? Json(*unknown_) : Json();
  return object;
}

void Tokenizer::seal() { hash_ = xxh3(json_text(contents())); }

void Tokenizer::save(const std::filesystem::path& folder) const {
  save_more(folder);
  Json object = contents();
  object["hash"] = hex16(hash_);
  write_file_atomic(folder / "tokenizer.json", json_text(object) + "\n");
}

std::unique_ptr<Tokenizer> Tokenizer::load(const std::filesystem::path& folder_or_file) {
  const bool is_folder = std::filesystem::is_directory(folder_or_file);
  const std::filesystem::path path = is_folder ? folder_or_file / "tokenizer.json" : folder_or_file;
  const std::string what = path.string();
  const Json object = read_json_file(path, kLimits);
  RMOE_CHECK(object.is_object() && object.contains("format") && object["format"] == "rmoe-tokenizer", what,
             ": not a tokenizer of rmoe: \"format\" is not \"rmoe-tokenizer\"");
  const int64_t version = json_int(object, "version", what);
  RMOE_CHECK(version == 1, what, ": tokenizer of version ", version, ", expected 1");
  const std::string kind = json_string(object, "kind", what);
  const bool unknown = optional_int(object, "unknown", what).has_value();
  const bool separated = optional_int(object, "separator", what).has_value();
  std::unique_ptr<Tokenizer> tokenizer;
  if (kind == "byte") {
    tokenizer = make_byte_tokenizer(separated);
  } else if (kind == "char") {
    tokenizer = load_char(object, what, unknown, separated);
  } else if (kind == "word") {
    tokenizer = load_word(object, what, separated);
  } else if (kind == "sentencepiece") {
    tokenizer = load_sentencepiece(object, what, std::filesystem::absolute(path).parent_path(), separated);
  } else if (kind == "huggingface") {
    tokenizer = load_huggingface(object, what, std::filesystem::absolute(path).parent_path());
  } else {
    input_error(what, ": tokenizer of kind '", kind, "', expected byte, char, word, sentencepiece or huggingface");
  }
  // Every key is covered by the hash: what was rebuilt is what was written, or the file was edited.
  const uint64_t expected = parse_hex16(json_string(object, "hash", what), what);
  Json content = object;
  content.erase("hash");
  const uint64_t found = xxh3(json_text(content));
  RMOE_CHECK(found == expected && found == tokenizer->hash(), what, ": damaged or edited: the contents hash to ",
             hex16(found), ", expected ", hex16(expected));
  return tokenizer;
}

}  // namespace rmoe::data
