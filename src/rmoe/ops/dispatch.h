// Moves tokens to experts and back. Rows are sorted by expert by a stable sort of the expert ids, so the order, and
// with it every sum, is the same each time.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe {

// Of T*K slots, slot t*K + k being choice k of token t, the M that go to one of the experts.
struct Dispatch {
  Tensor order_M;                 // int64: sorted position -> slot
  Tensor inverse_M;               // int64: slot -> sorted position; undefined unless every slot is used
  std::vector<int64_t> counts_N;  // rows per expert, in the sorted order
};

// ids_TK int64, counts_N int64 (rows per expert). Slots whose id is not in [0, N) are left out.
Dispatch make_dispatch(const Tensor& ids_TK, const Tensor& counts_N);

// x_TD -> [M, D], the rows of each expert together. `top_k` is K. Differentiable in x.
Tensor dispatch_rows(const Tensor& x_TD, const Dispatch& dispatch, int64_t top_k);

// y_t = sum over the used slots (t, k) of weights_tk * row of (t, k): rows_MD in sorted order -> [T, D]. Differentiable
// in both.
Tensor combine_rows(const Tensor& rows_MD, const Tensor& weights_TK, const Dispatch& dispatch);

}  // namespace rmoe
