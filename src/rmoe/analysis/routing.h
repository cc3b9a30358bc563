// All analyses of routing at once: chunks in, their part of analysis.json out. Free of torch.
#pragma once

#include <optional>

#include "rmoe/analysis/choices.h"
#include "rmoe/analysis/gates.h"
#include "rmoe/base/json.h"

namespace rmoe::analysis {

class RoutingAnalysis {
 public:
  // `probs`: the chunks hold them; `kinds`: of the tokens, which the chunks then hold.
  RoutingAnalysis(const Shape& shape, bool probs, std::optional<TokenKinds> kinds);
  void add(const Chunk& chunk);
  // The members mutual_information, gate_entropy, balance, selection, paths and token_kinds; null where the chunks
  // did not hold what an analysis reads.
  Json json() const;
  int64_t tokens() const { return selections_.tokens(); }

 private:
  Shape shape_;
  std::optional<MutualInformation> information_;
  std::optional<GateEntropy> entropy_;
  std::optional<InnerOuterBalance> balance_;
  Selections selections_;
  Paths paths_;
  std::optional<KindRouting> kinds_;
};

}  // namespace rmoe::analysis
