// Plug-ins by name, and routings made by hand.
#pragma once

#include "rmoe/base/config.h"
#include "rmoe/routing/balance.h"
#include "tests/support/gradcheck.h"

namespace rmoe::routing {

using rmoe::testing::expect_gradients;
using rmoe::testing::randn;

// make<ScoreRegistry>("sigmoid", "scale = 2")
template <class R, class... Args>
auto make(const std::string& kind, const std::string& options, Args&&... args) {
  Choice<R> choice(kind);
  bind_section(choice.section(), parse_toml(options, "options"));
  return choice.create(args...);
}

inline std::vector<int64_t> numbers(const Tensor& x) {
  const Tensor flat = x.contiguous().to(at::kLong);
  return {flat.const_data_ptr<int64_t>(), flat.const_data_ptr<int64_t>() + flat.numel()};
}

inline double at_tn(const Tensor& x_TN, int64_t t, int64_t n) { return x_TN[t][n].item<double>(); }

// How often each id occurs; -1 is none.
inline Tensor count_ids(const Tensor& ids_TK, int64_t experts) {
  return at::bincount((ids_TK + 1).flatten(), {}, experts + 1).narrow(0, 1, experts);
}

inline Tensor best_ids(const Tensor& ranking_TN, int64_t top_k) {
  return std::get<1>(ranking_TN.detach().sort(/*stable=*/true, -1, /*descending=*/true)).narrow(1, 0, top_k);
}

// The K best by score; tokens that do not count go nowhere.
inline Routing route(const Tensor& logits_TN, int64_t top_k, const Tensor& valid_T = {}, int64_t sequences = 1,
                     const std::string& score = "softmax_selected") {
  const auto function = make<ScoreRegistry>(score, "");
  Routing r;
  r.logits_TN = logits_TN;
  r.scores_TN = function->scores(logits_TN);
  r.probs_TN = function->probs(logits_TN, r.scores_TN);
  r.ids_TK = best_ids(r.scores_TN, top_k);
  if (function->sparse()) r.ids_TK = r.ids_TK.masked_fill(r.scores_TN.detach().gather(1, r.ids_TK) <= 0, -1);
  if (valid_T.defined()) r.ids_TK = r.ids_TK.masked_fill(valid_T.logical_not().unsqueeze(1), -1);
  r.full = !r.ids_TK.lt(0).any().item<bool>();
  r.weights_TK = function->weights(logits_TN, r.scores_TN, r.ids_TK, r.full);
  r.chosen_TK = r.ids_TK;
  r.counts_N = r.chosen_N = count_ids(r.ids_TK, logits_TN.size(1));
  r.valid_T = valid_T;
  r.sequences = sequences;
  return r;
}

// The values of all buffers and parameters, to see what has changed.
inline std::vector<Tensor> values(const ParamTable& table) {
  std::vector<Tensor> copies;
  for (const Param& param : table.all()) copies.push_back(param.value.detach().clone());
  return copies;
}

inline bool same(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](auto& x, auto& y) { return x.equal(y); });
}

}  // namespace rmoe::routing
