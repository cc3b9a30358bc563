#include "rmoe/data/huggingface_form.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "rmoe/base/utf8.h"

namespace rmoe::data {
namespace {

constexpr const char* kSpaceMark = "\xE2\x96\x81";  // U+2581

Json special_token(int64_t id, const std::string& text) {
  return {{"id", id},        {"content", text},     {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

Json whole_file(Json special, Json normalizer, Json pre_tokenizer, Json decoder, Json model) {
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", std::move(special)},
          {"normalizer", std::move(normalizer)},
          {"pre_tokenizer", std::move(pre_tokenizer)},
          {"post_processor", nullptr},
          {"decoder", std::move(decoder)},
          {"model", std::move(model)}};
}

// As member of an object that does not have it: Json looks through all members before it adds one.
void append(Json& object, std::string key, Json value) {
  object.get_ref<Json::object_t&>().emplace_back(std::move(key), std::move(value));
}

Json bpe_model(Json vocabulary, Json merges, Json unknown) {
  const bool bytes = !unknown.is_null();
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", std::move(unknown)},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", bytes},
          {"byte_fallback", bytes},
          {"ignore_merges", false},
          {"vocab", std::move(vocabulary)},
          {"merges", std::move(merges)}};
}

// A piece of SentencePiece is made of any two others, the one of the best score first; ties by the longer parts.
Json merges_of(const std::vector<Piece>& pieces) {
  std::unordered_map<std::string, size_t> ids;
  for (size_t i = 0; i < pieces.size(); ++i) ids.emplace(pieces[i].text, i);
  struct Merge {
    std::string left, right;
    float score;
    std::pair<size_t, size_t> parts;
  };
  std::vector<Merge> merges;
  for (const Piece& piece : pieces) {
    if (piece.special) continue;
    for (size_t at = 1; at < piece.text.size(); ++at) {
      if ((static_cast<unsigned char>(piece.text[at]) & 0xC0) == 0x80) continue;
      const auto left = ids.find(piece.text.substr(0, at)), right = ids.find(piece.text.substr(at));
      if (left == ids.end() || right == ids.end()) continue;
      merges.push_back({left->first, right->first, piece.score, {left->second, right->second}});
    }
  }
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.parts < b.parts;
  });
  Json list = Json::array();
  for (const Merge& merge : merges) list.push_back({merge.left, merge.right});
  return list;
}

}  // namespace

Json huggingface_bytes(std::optional<int64_t> separator) {
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  Json vocabulary = Json::object();
  // ByteLevel's letters: a byte that can be printed is itself in Latin-1, the others follow from U+0100 on.
  char32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printed = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    std::string letter;
    append_utf8(printed ? static_cast<char32_t>(byte) : next++, letter);
    append(vocabulary, letter, byte);
  }
  Json special = Json::array();
  if (separator) special.push_back(special_token(*separator, "<|end|>"));
  return whole_file(std::move(special), nullptr, byte_level, byte_level,
                    bpe_model(std::move(vocabulary), Json::array(), nullptr));
}

Json huggingface_pieces(const std::vector<Piece>& pieces, bool bpe, int64_t unknown) {
  Json special = Json::array(), vocabulary = bpe ? Json::object() : Json::array();
  for (size_t id = 0; id < pieces.size(); ++id) {
    const Piece& piece = pieces[id];
    if (piece.special) special.push_back(special_token(static_cast<int64_t>(id), piece.text));
    bpe ? append(vocabulary, piece.text, id) : vocabulary.push_back({piece.text, piece.score});
  }
  const Json normalizer = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpaceMark}};
  const Json lines = {
      {"type", "Split"}, {"pattern", {{"String", "\n"}}}, {"behavior", "MergedWithPrevious"}, {"invert", false}};
  const Json decoder = {{"type", "Sequence"},
                        {"decoders",
                         {{{"type", "Replace"}, {"pattern", {{"String", kSpaceMark}}}, {"content", " "}},
                          {{"type", "ByteFallback"}},
                          {{"type", "Fuse"}}}}};
  Json model =
      bpe ? bpe_model(std::move(vocabulary), merges_of(pieces), pieces.at(static_cast<size_t>(unknown)).text)
          : Json{{"type", "Unigram"}, {"unk_id", unknown}, {"vocab", std::move(vocabulary)}, {"byte_fallback", true}};
  return whole_file(std::move(special), normalizer, lines, decoder, std::move(model));
}

}  // namespace rmoe::data
