#include "rmoe/routing/gate.h"

#include "rmoe/base/error.h"

namespace rmoe::routing {

Routing select_top_k(const Tensor& logits_TN, int64_t top_k) {
  RMOE_CHECK(logits_TN.dim() == 2, "select_top_k: logits must be [T, N], got ", logits_TN.sizes());
  const int64_t experts = logits_TN.size(1);
  RMOE_CHECK(top_k >= 1 && top_k <= experts, "select_top_k: top_k must be between 1 and ", experts, ", got ", top_k);
  Routing routing;
  routing.logits_TN = logits_TN;
  routing.probs_TN = logits_TN.softmax(-1);
  // A stable sort, not topk: topk leaves the order of equal scores open.
  routing.ids_TK =
      std::get<1>(logits_TN.detach().sort(/*stable=*/true, -1, /*descending=*/true)).narrow(1, 0, top_k).contiguous();
  routing.weights_TK = logits_TN.gather(1, routing.ids_TK).softmax(-1);
  routing.counts_N = at::bincount(routing.ids_TK.flatten(), {}, experts);
  return routing;
}

}  // namespace rmoe::routing
