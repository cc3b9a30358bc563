// Analyses of the choices: who is used, which paths tokens take through the layers, what each kind of token is sent to.
#pragma once

#include <string>
#include <unordered_map>

#include "rmoe/analysis/chunk.h"

namespace rmoe::analysis {

// Expert selection frequency per layer (Fig. 12).
class Selections {
 public:
  explicit Selections(const Shape& shape);
  void add(const Chunk& chunk);
  int64_t tokens() const { return tokens_; }
  const std::vector<std::vector<int64_t>>& counts() const { return counts_; }  // [L][N] rows
  Matrix fractions() const;                                                    // of a layer's rows; each sums to 1
  std::vector<int64_t> dead() const;                                           // per layer, experts that no token chose
  std::vector<double> imbalance() const;  // per layer, largest over mean; 1 is even

 private:
  Shape shape_;
  int64_t tokens_ = 0;
  std::vector<std::vector<int64_t>> counts_;
};

// A token's path is its first expert in every layer. The experts' numbers mean nothing across layers, so what counts is
// how well one layer's predicts the next one's.
class Paths {
 public:
  static constexpr size_t kMostPaths = size_t{1} << 21;  // distinct ones that are told apart

  explicit Paths(const Shape& shape);
  void add(const Chunk& chunk);

  int64_t tokens() const { return tokens_; }  // with an expert in every layer
  int64_t distinct() const { return static_cast<int64_t>(paths_.size()); }
  bool complete() const { return beyond_ == 0; }  // no path came after kMostPaths
  // Nats, of the paths that occurred; a lower bound unless complete().
  double entropy() const;
  // Nats, if each layer chose independently of the others: the sum of the layers' entropies.
  double independent_entropy() const;
  // Between layers l and l + 1, [L - 1] each:
  struct Link {
    double information = 0;  // nats, I(first expert in l; first expert in l + 1)
    double entropy = 0;      // nats, of the first expert in l + 1
    double accuracy = 0;     // share of tokens for which the commonest successor is right
    double guess = 0;        // the same without looking at layer l: the commonest expert of l + 1
    double overlap = 0;      // share of a token's experts in l that it also has (by number) in l + 1
    double chance = 0;       // what the layers' frequencies alone would give
  };
  std::vector<Link> links() const;

 private:
  Shape shape_;
  int64_t tokens_ = 0, beyond_ = 0, all_tokens_ = 0;
  std::unordered_map<uint64_t, int64_t> paths_;  // hash of the path -> tokens
  std::vector<std::vector<int64_t>> pairs_;      // [L - 1][N * N], first experts
  std::vector<std::vector<int64_t>> chosen_;     // [L][N], rows
  std::vector<int64_t> shared_, rows_;           // [L - 1]
};

// What a token is: by its text, and by how common it is.
enum TokenKind : int { kWhitespace, kPunctuation, kWordStart, kWordInside, kOther, kTextKinds };
enum TokenBand : int { kFrequent, kMiddle, kRare, kTokenBands };
inline constexpr const char* kTextKindNames[] = {"whitespace", "punctuation", "word start", "word inside", "other"};
inline constexpr const char* kTokenBandNames[] = {"frequent", "middle", "rare"};

// Tells kinds apart. `texts` holds the text of every id ("" for a part of a character, which counts as a letter, or
// for the separator), `counts` how often each occurs: the commonest ids that make up half of the text are frequent, the
// next 40 % middle, the others rare.
class TokenKinds {
 public:
  TokenKinds(const std::vector<std::string>& texts, const std::vector<int64_t>& counts, int64_t separator = -1);
  // `before`: the id before it in the text; -1: none.
  TokenKind kind(int64_t id, int64_t before) const;
  TokenBand band(int64_t id) const { return bands_[static_cast<size_t>(id)]; }
  int64_t size() const { return static_cast<int64_t>(first_.size()); }

 private:
  enum class Character : uint8_t { kSpace, kPunctuation, kLetter, kNone };
  static Character character(unsigned char byte);
  // Of each id: the first character that is no space, whether a space comes before it, and the last character.
  std::vector<Character> first_, last_;
  std::vector<bool> space_before_;
  std::vector<TokenBand> bands_;
};

// Where each kind of token goes.
class KindRouting {
 public:
  static constexpr int64_t kKinds = static_cast<int64_t>(kTextKinds) + kTokenBands;  // text kinds, then bands

  KindRouting(const Shape& shape, TokenKinds kinds);
  void add(const Chunk& chunk);  // with tokens
  static std::string name(int64_t kind);
  int64_t tokens(int64_t kind) const { return tokens_[static_cast<size_t>(kind)]; }
  Matrix fractions(int64_t kind) const;  // [L][N], rows sum to 1 (0 without tokens)
  // Nats per layer: I(text kind; expert), how much the kind says about the expert, and the same for the bands.
  std::vector<double> information(bool bands) const;

 private:
  Shape shape_;
  TokenKinds kinds_;
  int64_t last_token_ = -1, last_position_ = -2;
  std::vector<int64_t> tokens_;
  std::vector<int64_t> counts_;  // [kinds, L, N]
};

}  // namespace rmoe::analysis
