// Vocabularies: see vocabulary.h.
#include "rmoe/data/vocabulary.h"

#include <algorithm>
#include <utility>

#include "rmoe/base/error.h"
#include "rmoe/base/rng.h"
#include "rmoe/base/utf8.h"
#include "rmoe/data/words.h"

namespace rmoe::data {
namespace {

constexpr size_t kMostWords = 20'000'000;  // distinct; about 2 GB
constexpr size_t kLongestWord = size_t{1} << 20;
constexpr size_t kLongestLine = 65536;

// Sorted by falling count, ties by rising symbol; cut to what the limits allow when `reserved` ids are taken anyway.
template <class Symbol>
void select(std::vector<std::pair<Symbol, int64_t>>& counted, const VocabularyLimits& limits, int64_t reserved) {
  std::erase_if(counted, [&](const auto& entry) { return entry.second < limits.min_count; });
  std::ranges::sort(counted, [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  });
  if (limits.vocab_size == 0) return;
  RMOE_CHECK(limits.vocab_size > reserved, "a vocabulary of ", limits.vocab_size, " ids, of which ", reserved,
             " are taken by <unk>, <eos> and the like");
  counted.resize(std::min(counted.size(), static_cast<size_t>(limits.vocab_size - reserved)));
}

}  // namespace

CharCensus::CharCensus(bool bytes)
    : bytes_(bytes), counts_(bytes ? 256 : 0x110000), elsewhere_(bytes ? 256 : 0x110000) {}

void CharCensus::count(Split split, char32_t symbol) {
  if (split == kTrain) {
    ++counts_[symbol];
  } else {
    elsewhere_[symbol] = true;
  }
}

void CharCensus::text(Split split, std::string_view piece) {
  if (bytes_) {
    for (const char c : piece) count(split, static_cast<unsigned char>(c));
    return;
  }
  std::string& held = held_[split];
  std::string joined;
  if (!held.empty()) {
    joined = held;
    joined.append(piece);
    piece = joined;
  }
  const auto whole = piece.size() - static_cast<size_t>(unfinished_tail(piece));
  for (size_t i = 0; i < whole;) {
    const Utf8Char c = first_char(piece.substr(i));
    RMOE_ASSERT(c.kind == Utf8Char::kValid, "char tokenizer: text that was checked is not valid UTF-8");
    count(split, c.value);
    i += static_cast<size_t>(c.length);
  }
  held.assign(piece.substr(whole));
}

std::unique_ptr<Tokenizer> CharCensus::make(const VocabularyLimits& limits, bool separated) const {
  std::vector<std::pair<char32_t, int64_t>> counted;
  size_t in_train = 0;
  bool is_new_elsewhere = false;
  for (size_t symbol = 0; symbol < counts_.size(); ++symbol) {
    if (counts_[symbol] > 0) counted.emplace_back(static_cast<char32_t>(symbol), counts_[symbol]);
    is_new_elsewhere |= counts_[symbol] == 0 && elsewhere_[symbol];
  }
  in_train = counted.size();
  const auto all = counted;
  select(counted, limits, separated + is_new_elsewhere);
  const bool unknown = is_new_elsewhere || counted.size() < in_train;
  if (unknown && !is_new_elsewhere) {  // leaving some out takes an id for the unknown
    counted = all;
    select(counted, limits, separated + 1);
  }
  RMOE_CHECK(!counted.empty(), "char tokenizer: no symbol occurs ", limits.min_count, " times in the training split");
  std::vector<char32_t> vocabulary;
  for (const auto& entry : counted) vocabulary.push_back(entry.first);
  std::ranges::sort(vocabulary);
  return make_char_tokenizer(std::move(vocabulary), bytes_, unknown, separated);
}

void WordCensus::count(std::string_view word) {
  const auto found = counts_.find(word);
  if (found != counts_.end()) {
    ++found->second;
    return;
  }
  if (counts_.size() >= kMostWords) {
    throw Error(Exit::kBadInput, str("word tokenizer: more than ", kMostWords, " different words"),
                "the sentencepiece tokenizer takes any amount of text");
  }
  counts_.emplace(word, 1);
}

void WordCensus::take(std::string_view text) {
  split_words(
      text, [&](size_t begin, size_t length) { count(text.substr(begin, length)); }, [&] { count(kEndOfLine); });
  if (!text.empty()) in_line_ = text.back() != '\n';
}

void WordCensus::text(Split split, std::string_view piece) {
  if (split != kTrain) return;
  const size_t space = piece.find_last_of(" \t\n\v\f\r");
  if (space == piece.npos) {
    held_.append(piece);
  } else {
    held_.append(piece.substr(0, space + 1));
    take(held_);
    held_.assign(piece.substr(space + 1));
  }
  if (held_.size() > kLongestWord) {
    throw Error(Exit::kBadInput, str("word tokenizer: a word of more than ", kLongestWord, " bytes"),
                "this text is not made of words between spaces; use the char or sentencepiece tokenizer");
  }
}

void WordCensus::end_document(Split split) {
  if (split != kTrain) return;
  take(held_);
  held_.clear();
  if (in_line_) count(kEndOfLine);
  in_line_ = false;
}

std::unique_ptr<Tokenizer> WordCensus::make(const VocabularyLimits& limits, bool separated) const {
  // <eos> and <unk> are always there; both have a place by their count like every word.
  std::vector<std::pair<std::string, int64_t>> counted, fixed;
  for (const std::string_view word : {kEndOfLine, kUnknownWord}) {
    const auto found = counts_.find(word);
    fixed.emplace_back(word, found == counts_.end() ? 0 : found->second);
  }
  for (const auto& [word, count] : counts_) {
    if (word != kEndOfLine && word != kUnknownWord) counted.emplace_back(word, count);
  }
  select(counted, limits, separated + static_cast<int64_t>(fixed.size()));
  counted.insert(counted.end(), fixed.begin(), fixed.end());
  select(counted, {.vocab_size = 0, .min_count = 0}, 0);
  std::vector<std::string> vocabulary;
  for (auto& entry : counted) vocabulary.push_back(std::move(entry.first));
  return make_word_tokenizer(std::move(vocabulary), separated);
}

LineSample::LineSample(int64_t train_bytes, int64_t sample_bytes, uint64_t seed)
    : share_(static_cast<double>(sample_bytes) / static_cast<double>(std::max<int64_t>(train_bytes, 1))), seed_(seed) {}

void LineSample::take(std::string_view line) {
  const double u = uniform(mix(seed_, kSampleStream, static_cast<uint64_t>(number_++)));
  if (line.empty() || u >= share_) return;
  bytes_ += static_cast<int64_t>(line.size());
  lines_.emplace_back(line);
}

void LineSample::text(Split split, std::string_view piece) {
  if (split != kTrain) return;
  held_.append(piece);
  std::string_view rest = held_;
  while (true) {
    const size_t line_feed = rest.substr(0, kLongestLine).find('\n');
    size_t length = line_feed;
    if (line_feed == rest.npos) {
      if (rest.size() < kLongestLine) break;
      length = kLongestLine - static_cast<size_t>(unfinished_tail(rest.substr(0, kLongestLine)));
    }
    take(rest.substr(0, length));
    rest.remove_prefix(length + (line_feed != rest.npos));
  }
  held_.erase(0, held_.size() - rest.size());
}

void LineSample::end_document(Split split) {
  if (split != kTrain) return;
  take(held_);
  held_.clear();
}

std::unique_ptr<Tokenizer> LineSample::make(const SentencePieceOptions& options, bool separated) {
  size_t next = 0;
  std::string model = train_sentencepiece(options, [&]() -> std::optional<std::string> {
    if (next == lines_.size()) return std::nullopt;
    return std::move(lines_[next++]);
  });
  lines_.clear();
  return make_sentencepiece_tokenizer(std::move(model), "the trained model", separated);
}

}  // namespace rmoe::data
