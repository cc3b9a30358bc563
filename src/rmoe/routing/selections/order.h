// What the selections share: the order of a token's experts, and choices that leave slots unused.
#pragma once

#include "rmoe/routing/router.h"

namespace rmoe::routing {

// Ids along the last dimension by falling rank; of equal ranks the lower id first: a stable sort, not topk, which
// leaves the order of equals open.
inline Tensor by_rank(const Tensor& ranking) {
  return std::get<1>(ranking.sort(/*stable=*/true, -1, /*descending=*/true));
}

// The ids where `taken` holds; the other slots stay unused.
inline Selection::Choice only(const Tensor& taken_TK, const Tensor& ids_TK) {
  return {.ids_TK = ids_TK.masked_fill(taken_TK.logical_not(), -1), .full = false};
}

}  // namespace rmoe::routing
