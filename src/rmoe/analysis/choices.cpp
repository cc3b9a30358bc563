#include "rmoe/analysis/choices.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "rmoe/analysis/histogram.h"
#include "rmoe/base/rng.h"

namespace rmoe::analysis {
namespace {

Matrix shares_of(const std::vector<std::vector<int64_t>>& counts) {
  Matrix out;
  for (const auto& layer : counts) {
    const auto total = static_cast<double>(std::accumulate(layer.begin(), layer.end(), int64_t{0}));
    auto& row = out.emplace_back();
    for (const int64_t n : layer) row.push_back(total > 0 ? static_cast<double>(n) / total : 0);
  }
  return out;
}

}  // namespace

Selections::Selections(const Shape& shape)
    : shape_(shape),
      counts_(static_cast<size_t>(shape.layers), std::vector<int64_t>(static_cast<size_t>(shape.experts), 0)) {}

void Selections::add(const Chunk& chunk) {
  for (int64_t t = 0; t < chunk.tokens; ++t) {
    for (int64_t l = 0; l < shape_.layers; ++l) {
      const int32_t* ids = chunk.ids(t, l);
      for (int64_t k = 0; k < shape_.slots; ++k) {
        if (ids[k] >= 0) ++counts_[static_cast<size_t>(l)][static_cast<size_t>(ids[k])];
      }
    }
  }
  tokens_ += chunk.tokens;
}

Matrix Selections::fractions() const { return shares_of(counts_); }

std::vector<int64_t> Selections::dead() const {
  std::vector<int64_t> dead;
  for (const auto& layer : counts_) dead.push_back(std::count(layer.begin(), layer.end(), 0));
  return dead;
}

std::vector<double> Selections::imbalance() const {
  std::vector<double> out;
  for (const auto& layer : fractions()) {
    out.push_back(*std::max_element(layer.begin(), layer.end()) * static_cast<double>(layer.size()));
  }
  return out;
}

Paths::Paths(const Shape& shape)
    : shape_(shape),
      pairs_(static_cast<size_t>(std::max<int64_t>(shape.layers - 1, 0)),
             std::vector<int64_t>(static_cast<size_t>(shape.experts * shape.experts), 0)),
      chosen_(static_cast<size_t>(shape.layers), std::vector<int64_t>(static_cast<size_t>(shape.experts), 0)),
      shared_(pairs_.size(), 0),
      rows_(pairs_.size(), 0) {}

void Paths::add(const Chunk& chunk) {
  const int64_t L = shape_.layers, N = shape_.experts, K = shape_.slots;
  for (int64_t t = 0; t < chunk.tokens; ++t) {
    uint64_t path = 0;
    bool whole = true;
    for (int64_t l = 0; l < L; ++l) {
      const int32_t* ids = chunk.ids(t, l);
      whole = whole && ids[0] >= 0;
      path = mix(path, static_cast<uint64_t>(l), static_cast<uint64_t>(ids[0]));
      for (int64_t k = 0; k < K; ++k) {
        if (ids[k] >= 0) ++chosen_[static_cast<size_t>(l)][static_cast<size_t>(ids[k])];
      }
      if (l + 1 == L) break;
      const int32_t* next = chunk.ids(t, l + 1);
      const auto link = static_cast<size_t>(l);
      for (int64_t k = 0; k < K; ++k) {
        if (ids[k] < 0) continue;
        ++rows_[link];
        shared_[link] += std::find(next, next + K, ids[k]) != next + K;
      }
      if (ids[0] >= 0 && next[0] >= 0) ++pairs_[link][static_cast<size_t>(ids[0] * N + next[0])];
    }
    if (!whole) continue;
    ++tokens_;
    const auto found = paths_.find(path);
    if (found != paths_.end()) {
      ++found->second;
    } else if (paths_.size() < kMostPaths) {
      paths_.emplace(path, 1);
    } else {
      ++beyond_;
    }
  }
  all_tokens_ += chunk.tokens;
}

double Paths::entropy() const {
  std::vector<int64_t> counts;
  counts.reserve(paths_.size());
  for (const auto& [path, count] : paths_) counts.push_back(count);
  std::sort(counts.begin(), counts.end());  // for a sum that does not depend on the table's order
  return entropy_of_counts(counts);
}

double Paths::independent_entropy() const {
  const auto N = static_cast<size_t>(shape_.experts);
  double sum = 0;
  for (size_t l = 0; l < pairs_.size(); ++l) {
    std::vector<int64_t> first(N, 0), second(N, 0);
    for (size_t i = 0; i < N * N; ++i) {
      first[i / N] += pairs_[l][i];
      second[i % N] += pairs_[l][i];
    }
    if (l == 0) sum += entropy_of_counts(first);
    sum += entropy_of_counts(second);
  }
  return sum;
}

std::vector<Paths::Link> Paths::links() const {
  const auto N = static_cast<size_t>(shape_.experts);
  std::vector<Link> out;
  for (size_t l = 0; l < pairs_.size(); ++l) {
    std::vector<int64_t> first(N, 0), second(N, 0);
    int64_t right = 0;
    for (size_t a = 0; a < N; ++a) {
      int64_t best = 0;
      for (size_t b = 0; b < N; ++b) {
        const int64_t count = pairs_[l][a * N + b];
        first[a] += count;
        second[b] += count;
        best = std::max(best, count);
      }
      right += best;
    }
    const auto total = static_cast<double>(std::accumulate(first.begin(), first.end(), int64_t{0}));
    Link link;
    link.entropy = entropy_of_counts(second);
    link.information = std::max(entropy_of_counts(first) + link.entropy - entropy_of_counts(pairs_[l]), 0.0);
    if (total > 0) {
      link.accuracy = static_cast<double>(right) / total;
      link.guess = static_cast<double>(*std::max_element(second.begin(), second.end())) / total;
    }
    if (rows_[l] > 0) {
      const auto tokens = static_cast<double>(all_tokens_), rows = static_cast<double>(rows_[l]);
      link.overlap = static_cast<double>(shared_[l]) / rows;
      for (size_t n = 0; n < N; ++n) {
        link.chance += static_cast<double>(chosen_[l][n]) * static_cast<double>(chosen_[l + 1][n]) / tokens / rows;
      }
    }
    out.push_back(link);
  }
  return out;
}

TokenKinds::Character TokenKinds::character(unsigned char byte) {
  if (byte == ' ' || (byte >= '\t' && byte <= '\r')) return Character::kSpace;
  if (byte >= 0x80 || (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z')) {
    return Character::kLetter;
  }
  return byte > 0x20 && byte < 0x7f ? Character::kPunctuation : Character::kNone;
}

TokenKinds::TokenKinds(const std::vector<std::string>& texts, const std::vector<int64_t>& counts, int64_t separator) {
  for (size_t id = 0; id < texts.size(); ++id) {
    const std::string& text = texts[id];
    Character first = Character::kLetter, last = Character::kLetter;
    bool space = false;
    if (static_cast<int64_t>(id) == separator) {
      first = last = Character::kNone;
    } else if (!text.empty()) {
      size_t at = 0;
      while (at < text.size() && character(static_cast<unsigned char>(text[at])) == Character::kSpace) ++at;
      space = at > 0;
      first = at < text.size() ? character(static_cast<unsigned char>(text[at])) : Character::kSpace;
      last = character(static_cast<unsigned char>(text.back()));
    }
    first_.push_back(first);
    last_.push_back(last);
    space_before_.push_back(space);
  }
  std::vector<size_t> order(texts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return counts.at(a) > counts.at(b); });
  const auto total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  bands_.resize(texts.size(), kRare);
  double before = 0;
  for (const size_t id : order) {
    bands_[id] = before < 0.5 * total ? kFrequent : before < 0.9 * total ? kMiddle : kRare;
    before += static_cast<double>(counts[id]);
  }
}

TokenKind TokenKinds::kind(int64_t id, int64_t before) const {
  const auto i = static_cast<size_t>(id);
  switch (first_[i]) {
    case Character::kSpace:
      return kWhitespace;
    case Character::kPunctuation:
      return kPunctuation;
    case Character::kNone:
      return kOther;
    case Character::kLetter:
      break;
  }
  const bool follows = before >= 0 && last_[static_cast<size_t>(before)] == Character::kLetter && !space_before_[i];
  return follows ? kWordInside : kWordStart;
}

KindRouting::KindRouting(const Shape& shape, TokenKinds kinds)
    : shape_(shape),
      kinds_(std::move(kinds)),
      tokens_(static_cast<size_t>(kKinds), 0),
      counts_(static_cast<size_t>(kKinds * shape.layers * shape.experts), 0) {}

std::string KindRouting::name(int64_t kind) {
  return kind < kTextKinds ? kTextKindNames[kind] : kTokenBandNames[kind - kTextKinds];
}

void KindRouting::add(const Chunk& chunk) {
  const int64_t L = shape_.layers, N = shape_.experts;
  for (int64_t t = 0; t < chunk.tokens; ++t) {
    const int64_t id = chunk.tokens_T[t], position = chunk.positions_T[t];
    if (id >= kinds_.size()) continue;  // a model's vocabulary may be larger than its tokenizer's
    const int64_t before = position == last_position_ + 1 ? last_token_ : -1;
    last_token_ = id;
    last_position_ = position;
    for (const int64_t kind : {static_cast<int64_t>(kinds_.kind(id, before)), kTextKinds + int64_t{kinds_.band(id)}}) {
      ++tokens_[static_cast<size_t>(kind)];
      for (int64_t l = 0; l < L; ++l) {
        const int32_t* ids = chunk.ids(t, l);
        int64_t* counts = counts_.data() + (kind * L + l) * N;
        for (int64_t k = 0; k < shape_.slots; ++k) {
          if (ids[k] >= 0) ++counts[ids[k]];
        }
      }
    }
  }
}

Matrix KindRouting::fractions(int64_t kind) const {
  std::vector<std::vector<int64_t>> layers;
  for (int64_t l = 0; l < shape_.layers; ++l) {
    const int64_t* counts = counts_.data() + (kind * shape_.layers + l) * shape_.experts;
    layers.emplace_back(counts, counts + shape_.experts);
  }
  return shares_of(layers);
}

std::vector<double> KindRouting::information(bool bands) const {
  const int64_t L = shape_.layers, N = shape_.experts;
  const int64_t begin = bands ? int64_t{kTextKinds} : 0, end = bands ? kKinds : int64_t{kTextKinds};
  std::vector<double> out;
  for (int64_t l = 0; l < L; ++l) {
    std::vector<int64_t> joint, kinds, experts(static_cast<size_t>(N), 0);
    for (int64_t kind = begin; kind < end; ++kind) {
      int64_t sum = 0;
      for (int64_t n = 0; n < N; ++n) {
        const int64_t count = counts_[static_cast<size_t>((kind * L + l) * N + n)];
        joint.push_back(count);
        experts[static_cast<size_t>(n)] += count;
        sum += count;
      }
      kinds.push_back(sum);
    }
    out.push_back(std::max(entropy_of_counts(kinds) + entropy_of_counts(experts) - entropy_of_counts(joint), 0.0));
  }
  return out;
}

}  // namespace rmoe::analysis
