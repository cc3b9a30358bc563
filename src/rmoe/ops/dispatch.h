// Moves tokens to experts and back. Rows are sorted by expert by a stable sort of the expert ids, so the order, and
// with it every sum, is the same each time.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe {

// M = T*K routed rows, row t*K + k being choice k of token t.
struct Dispatch {
  Tensor order_M;                 // int64: sorted position -> routed row
  Tensor inverse_M;               // int64: routed row -> sorted position
  std::vector<int64_t> counts_N;  // rows per expert, in the sorted order
};

// ids_TK int64, counts_N int64 (rows per expert).
Dispatch make_dispatch(const Tensor& ids_TK, const Tensor& counts_N);

// x_TD -> [M, D], the rows of each expert together. Differentiable in x.
Tensor dispatch_rows(const Tensor& x_TD, const Dispatch& dispatch);

// y_t = sum_k weights_tk * rows[inverse of (t, k)]: rows_MD in sorted order -> [T, D]. Differentiable in both.
Tensor combine_rows(const Tensor& rows_MD, const Tensor& weights_TK, const Dispatch& dispatch);

}  // namespace rmoe
