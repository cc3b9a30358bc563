// Hash layers (Roller et al. 2021): a fixed table gives the experts of each token id, whatever the feature is. Nothing
// is learned, so the K experts of a token weigh the same.
#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>
#include <tuple>

#include "rmoe/base/rng.h"
#include "rmoe/routers/parts.h"

namespace rmoe {
namespace routing {
enum class HashAssign { kRandom, kBalanced };
}  // namespace routing

template <>
struct EnumNames<routing::HashAssign> {
  static constexpr std::array names{std::pair{routing::HashAssign::kRandom, "random"},
                                    std::pair{routing::HashAssign::kBalanced, "balanced"}};
};
}  // namespace rmoe

namespace rmoe::routing {
namespace {

// Both tables: int64 [V, K] on the CPU, the K experts of a token distinct.

Tensor random_table(int64_t vocab_size, int64_t experts, int64_t top_k, uint64_t key) {
  Tensor table_VK = at::empty({vocab_size, top_k}, at::kLong);
  auto* expert = table_VK.mutable_data_ptr<int64_t>();
  for (int64_t token = 0; token < vocab_size; ++token) {
    const Permutation shuffled(experts, mix(key, 0, static_cast<uint64_t>(token)));
    for (int64_t k = 0; k < top_k; ++k) *expert++ = shuffled(k);
  }
  return table_VK;
}

// Greedy: by falling count, each token goes to the experts with the fewest rows so far; among these to those with the
// fewest tokens, so that tokens that never occurred spread as well; ties by id. The experts' loads end up within one
// count of the most frequent token of each other.
Tensor balanced_table(const Tensor& counts_V, int64_t experts, int64_t top_k) {
  const auto* count = counts_V.const_data_ptr<int64_t>();
  std::vector<int64_t> tokens(static_cast<size_t>(counts_V.numel()));
  std::iota(tokens.begin(), tokens.end(), 0);
  std::stable_sort(tokens.begin(), tokens.end(), [&](int64_t a, int64_t b) { return count[a] > count[b]; });

  using Load = std::tuple<int64_t, int64_t, int64_t>;  // rows, tokens, expert
  std::priority_queue<Load, std::vector<Load>, std::greater<>> least_loaded;
  for (int64_t expert = 0; expert < experts; ++expert) least_loaded.emplace(0, 0, expert);
  Tensor table_VK = at::empty({counts_V.numel(), top_k}, at::kLong);
  auto* table = table_VK.mutable_data_ptr<int64_t>();
  std::vector<Load> taken;
  for (const int64_t token : tokens) {
    taken.clear();
    for (int64_t k = 0; k < top_k; ++k) {
      taken.push_back(least_loaded.top());
      least_loaded.pop();
    }
    for (int64_t k = 0; k < top_k; ++k) {
      const auto [rows, held, expert] = taken[static_cast<size_t>(k)];
      table[token * top_k + k] = expert;
      least_loaded.emplace(rows + count[token], held + 1, expert);
    }
  }
  return table_VK;
}

class HashRouter : public Router {
 public:
  struct Options {
    HashAssign assign = HashAssign::kRandom;
    int64_t seed = 0;

    static constexpr auto fields() {
      using C = Options;
      return std::tuple{
          Field{"assign", &C::assign,
                "random: each layer draws its own table; balanced: by the tokens' frequency in the training data"},
          Field{"seed", &C::seed, "of the random tables", {.min = 0}}};
    }
  };

  HashRouter(const Options& options, const RouterShape& s, const ParamScope& scope)
      : assign_(options.assign),
        experts_(s.experts),
        table_VK_(scope.add_buffer("hash.table", {s.vocab_size, s.top_k}, at::kLong)) {
    RMOE_CHECK(s.top_k <= s.experts, "router 'hash': top_k is ", s.top_k, ", expected at most ", s.experts, " experts");
    if (!table_VK_.defined()) return;
    const uint64_t key = mix(static_cast<uint64_t>(options.seed), hash_text("hash"), static_cast<uint64_t>(s.layer));
    // Until the data are known, every token counts the same.
    table_VK_.copy_(assign_ == HashAssign::kRandom
                        ? random_table(s.vocab_size, s.experts, s.top_k, key)
                        : balanced_table(at::zeros({s.vocab_size}, at::kLong), s.experts, s.top_k));
  }

  Tensor score(const RouterInput& in) const override {
    return in.feature_TR.new_zeros({in.feature_TR.size(0), experts_});
  }

  RouterOutput route(const RouterInput& in) const override {
    const Tensor& tokens_T = in.context.tokens_T;
    RMOE_CHECK(tokens_T.defined(), "router 'hash': experts follow from token ids, but the call has none (tokens_T)");
    const Tensor logits_TN = score(in), experts_TK = table_VK_.index_select(0, tokens_T);
    // The table's first expert ranks K, the last 1, all others 0.
    const Tensor ranks_K = at::arange(table_VK_.size(1), 0, -1, logits_TN.options());
    return {.logits_TN = logits_TN, .ranking_TN = logits_TN.scatter(1, experts_TK, ranks_K.expand_as(experts_TK))};
  }

  bool reads_feature() const override { return false; }

  bool wants_token_counts() const override { return assign_ == HashAssign::kBalanced; }

  void fit(const Tensor& counts_V) override {
    if (assign_ != HashAssign::kBalanced) return;
    RMOE_CHECK(counts_V.numel() == table_VK_.size(0), "router 'hash': counts of ", counts_V.numel(),
               " token ids, expected ", table_VK_.size(0));
    table_VK_.copy_(balanced_table(counts_V.to(at::kCPU, at::kLong).contiguous(), experts_, table_VK_.size(1)));
  }

  bool own_ranking() const override { return true; }

  void check(const Combination& c) const override {
    RMOE_CHECK(!c.recurrent, "router 'hash' reads token ids only, so the state of stage '", c.stage,
               "' would be computed for nothing; expected stage 'none'");
    RMOE_CHECK(c.selection == "top_k", "router 'hash' decides the experts itself and needs selection 'top_k', got '",
               c.selection, "'");
    RMOE_CHECK(c.fixed_k, "router 'hash' has a table of K experts per token, so K cannot grow (selection.grow_to)");
  }

 private:
  HashAssign assign_;
  int64_t experts_;
  Tensor table_VK_;
};

}  // namespace

RMOE_REGISTER(RouterRegistry, "hash", HashRouter,
              "a fixed table of experts per token id (Hash layers, Roller et al. 2021)");

}  // namespace rmoe::routing
