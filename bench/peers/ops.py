"""Building blocks of the peers. `*_loop` and `*_plain` are what public MoE code does, the others what a careful user
of PyTorch would write: nothing here needs more than PyTorch itself.

Shapes: B batch, S sequence, T = B*S tokens, M = T*K routed rows, D width, N experts, F expert width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# ---------------------------------------------------------------- grouped linear


@torch.library.custom_op("peers::segment_mm", mutates_args=())
def segment_mm(x_MD: Tensor, w_NFD: Tensor, ends_N: Tensor) -> Tensor:
    """Rows [ends[n-1], ends[n]) of x times w[n] transposed. [M, F]"""
    out = x_MD.new_empty(x_MD.size(0), w_NFD.size(1))
    begin = 0
    for w, end in zip(w_NFD.unbind(0), ends_N.tolist()):
        if end > begin:
            torch.mm(x_MD[begin:end], w.t(), out=out[begin:end])
        begin = end
    return out


@segment_mm.register_fake
def _(x_MD: Tensor, w_NFD: Tensor, ends_N: Tensor) -> Tensor:
    return x_MD.new_empty(x_MD.size(0), w_NFD.size(1))


@torch.library.custom_op("peers::segment_mm_backward", mutates_args=())
def segment_mm_backward(grad_MF: Tensor, x_MD: Tensor, w_NFD: Tensor, ends_N: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of segment_mm in x and w."""
    dx, dw = torch.empty_like(x_MD), torch.empty_like(w_NFD)
    begin = 0
    for n, end in enumerate(ends_N.tolist()):
        if end > begin:
            torch.mm(grad_MF[begin:end], w_NFD[n], out=dx[begin:end])
            torch.mm(grad_MF[begin:end].t(), x_MD[begin:end], out=dw[n])
        else:
            dw[n].zero_()
        begin = end
    return dx, dw


@segment_mm_backward.register_fake
def _(grad_MF: Tensor, x_MD: Tensor, w_NFD: Tensor, ends_N: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_MD), torch.empty_like(w_NFD)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


segment_mm.register_autograd(
    lambda ctx, grad: (*segment_mm_backward(grad.contiguous(), *ctx.saved_tensors), None), setup_context=_save)


def grouped_linear(x_MD: Tensor, w_NFD: Tensor, ends_N: Tensor) -> Tensor:
    """torch._grouped_mm in bf16; in fp32, where it is no faster and does not compile, one mm per expert."""
    if x_MD.dtype == torch.bfloat16:
        return torch._grouped_mm(x_MD, w_NFD.transpose(1, 2), offs=ends_N)
    return segment_mm(x_MD, w_NFD, ends_N)


# ---------------------------------------------------------------- experts


class _FanOut(torch.autograd.Function):
    """Copies every token's row to its K places; backward gathers, with no index_add."""

    @staticmethod
    def forward(ctx, x_TD: Tensor, source_R: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(place_TK)
        return x_TD.index_select(0, source_R)

    @staticmethod
    def backward(ctx, grad_RD: Tensor):
        (place_TK,) = ctx.saved_tensors
        first, *others = place_TK.unbind(1)
        dx_TD = grad_RD.index_select(0, first)
        for place_T in others:
            dx_TD += grad_RD.index_select(0, place_T)
        return dx_TD, None, None


class _Combine(torch.autograd.Function):
    """y_t = sum_k weights[t, k] rows[place[t, k]]; the gradient of a row with no token is zero."""

    @staticmethod
    def forward(ctx, rows_RD: Tensor, weights_TK: Tensor, place_TK: Tensor) -> Tensor:
        rows_TKD = rows_RD.index_select(0, place_TK.view(-1)).view(*place_TK.shape, -1)
        ctx.save_for_backward(rows_TKD, weights_TK, place_TK)
        ctx.rows = rows_RD.size(0)
        y_TD = rows_TKD[:, 0] * weights_TK[:, :1]
        for k in range(1, place_TK.size(1)):
            y_TD.addcmul_(rows_TKD[:, k], weights_TK[:, k : k + 1])
        return y_TD

    @staticmethod
    def backward(ctx, grad_TD: Tensor):
        rows_TKD, weights_TK, place_TK = ctx.saved_tensors
        grads_TKD = weights_TK.unsqueeze(-1) * grad_TD.unsqueeze(1)
        drows_RD = grad_TD.new_zeros(ctx.rows, grad_TD.size(1))
        drows_RD.index_copy_(0, place_TK.view(-1), grads_TKD.flatten(0, 1))
        return drows_RD, torch.bmm(rows_TKD, grad_TD.unsqueeze(2)).squeeze(2), None


ROW_BLOCK = 64  # oneDNN generates code for every new number of rows: experts get whole blocks


def dispatch(ids_TK: Tensor, N: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows sorted by expert, each expert's filled up to whole blocks, in a buffer of fixed size R. Returns the token
    of every row [R] (of a filler any token: nothing of it is used), the place of every choice [T, K], the expert of
    every row [R] (N: none) and the end of every expert's rows [N]."""
    T, K = ids_TK.shape
    M = T * K
    R = -(-(M + N * (ROW_BLOCK - 1)) // ROW_BLOCK) * ROW_BLOCK
    expert_M, order_M = ids_TK.reshape(-1).sort(stable=True)
    device = ids_TK.device
    experts_N = torch.arange(N, device=device)
    ends_N = torch.searchsorted(expert_M, experts_N, right=True)
    counts_N = ends_N.diff(prepend=ends_N.new_zeros(1))
    blocks_N = (counts_N + ROW_BLOCK - 1) // ROW_BLOCK
    block_ends_N = (blocks_N * ROW_BLOCK).cumsum(0)
    shift_N = (block_ends_N - blocks_N * ROW_BLOCK) - (ends_N - counts_N)
    row_M = torch.arange(M, device=device) + shift_N.index_select(0, expert_M)
    source_R = torch.zeros(R, dtype=torch.int64, device=device).scatter_(0, row_M, order_M // K)
    expert_R = torch.full((R,), N, device=device).scatter_(0, row_M, expert_M)
    place_TK = torch.empty_like(row_M).scatter_(0, order_M, row_M).view(T, K)
    return source_R, place_TK, expert_R, block_ends_N.int()


def keep_mask(shape: torch.Size, p: float, device: torch.device) -> Tensor:
    """True with probability 1 - p, from 16 random bits per element: several times faster than bernoulli_ on a CPU."""
    count = shape.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None).view(torch.int16)
    return bits[:count].view(shape) >= round(p * 65536) - 32768


def fast_dropout(x: Tensor, p: float) -> Tensor:
    """Dropout with `keep_mask`. torch.compile gets the plain one, which it generates in the loop that uses it."""
    if p == 0:
        return x
    if torch.compiler.is_compiling():
        return F.dropout(x, p, training=True)
    return x * keep_mask(x.shape, p, x.device).to(x.dtype).mul_(1 / (1 - p))


def experts_grouped(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, w_in: Tensor, w_out: Tensor,
                    b_in: Tensor | None = None, b_out: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Sorted dispatch and grouped GEMMs; rows past the last block are neither computed nor read. SwiGLU with w_in
    [N, 2F, D] (gate, then up); with biases ReLU, w_in [N, F, D]."""
    N = w_in.size(0)
    source_R, place_TK, expert_R, ends_N = dispatch(ids_TK, N)
    inner = grouped_linear(_FanOut.apply(x_TD, source_R, place_TK), w_in, ends_N)
    if b_in is None:
        gate, up = inner.chunk(2, -1)
        rows_RD = grouped_linear(F.silu(gate) * up, w_out, ends_N)
    else:
        # The bias as a thin GEMM: its gradient too is one, and no scatter.
        member_RN = F.one_hot(expert_R, N + 1)[:, :N].to(x_TD.dtype)
        inner = fast_dropout(torch.addmm(inner, member_RN, b_in).relu(), dropout)
        rows_RD = torch.addmm(grouped_linear(inner, w_out, ends_N), member_RN, b_out)
    return _Combine.apply(rows_RD, weights_TK.to(rows_RD.dtype), place_TK)


def experts_one_token(x_1D: Tensor, ids_1K: Tensor, weights_1K: Tensor, w_in: list[Tensor],
                      w_out: list[Tensor]) -> Tensor:
    """SwiGLU experts of a single token: only the K chosen matrices are read. Lists of [2F, D] and [D, F]."""
    y = None
    for n, weight in zip(ids_1K[0].tolist(), weights_1K[0].tolist()):
        gate, up = F.linear(x_1D, w_in[n]).chunk(2, -1)
        out = F.linear(F.silu(gate).mul_(up), w_out[n])
        y = out.mul_(weight) if y is None else y.add_(out, alpha=weight)
    return y


def experts_one_token_compiled(x_1D: Tensor, ids_1K: Tensor, weights_1K: Tensor, w_in: Tensor,
                               w_out: Tensor) -> Tensor:
    """The same as products and sums over gathered weights, which torch.compile turns into loops that read them once."""
    ids = ids_1K[0]
    gate, up = (w_in[ids].float() * x_1D.float()).sum(-1).chunk(2, -1)  # [K, F] each
    out_KD = (w_out[ids].float() * (F.silu(gate) * up).unsqueeze(1)).sum(-1)
    return (weights_1K[0].unsqueeze(1) * out_KD).sum(0, keepdim=True).to(x_1D.dtype)


def experts_loop(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, experts) -> Tensor:
    """One expert after another with index lists, as public MoE code does. `experts`: list of callables on rows."""
    y_TD = torch.zeros_like(x_TD)
    chosen_NKT = F.one_hot(ids_TK, len(experts)).permute(2, 1, 0)
    for expert, chosen_KT in zip(experts, chosen_NKT):
        rank, token = torch.where(chosen_KT)
        out = expert(x_TD[token]) * weights_TK[token, rank, None]
        y_TD.index_add_(0, token, out.to(y_TD.dtype))
    return y_TD


# ---------------------------------------------------------------- attention


def rotary_tables(length: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [length, width], channel c turning with c + width/2."""
    frequency = 10000.0 ** (-torch.arange(0, width, 2).float() / width)
    angle = torch.arange(length).float().unsqueeze(1) * frequency
    both = torch.cat([angle, angle], 1)
    return both.cos().to(dtype), both.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions; cos and sin broadcast over x [..., C]."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def _band(full: Tensor, S: int) -> Tensor:
    """Row m of `full` [G, M, W] at columns m .. m+S-1, as [G, M, S]; W >= S + M - 1."""
    G, M, W = full.shape
    return F.pad(full.reshape(G, M * W), (0, M)).view(G, M, W + 1)[..., :S]


def _unband(band: Tensor, W: int) -> Tensor:
    """The transpose of _band: zero elsewhere. [G, M, W]"""
    G, M, S = band.shape
    return F.pad(band, (0, W + 1 - S)).view(G, M * (W + 1))[:, : M * W].view(G, M, W)


def span_attention_plain(q: Tensor, k: Tensor, v: Tensor, key_pe: Tensor, dropout: float) -> Tensor:
    """Attention to the S positions before each token, in the way of the literature's code: all products of a block
    with its past and itself, then the band. q [G, M, C]; k, v [G, S+M, C], G = B*H; key_pe [C, S]."""
    S, W = key_pe.size(1), k.size(1)
    scores = (_band(q @ k.transpose(1, 2), S) + q @ key_pe) / q.size(2) ** 0.5
    weights = F.dropout(scores.softmax(-1), dropout, training=True)
    return _unband(weights, W) @ v


def _tile_rows(M: int) -> int:
    return next(r for r in range(min(128, M), 0, -1) if M % r == 0)


def _tiles(q: Tensor, S: int):
    """Tiles of r queries with the S + r keys that their bands cover: (rows, window, band(full), skewed buffer)."""
    G, M, _ = q.shape
    r = _tile_rows(M)
    W = S + r

    def band(full: Tensor) -> Tensor:  # row m of [G, r, W] at columns m .. m+S-1, without a copy
        return full.as_strided((G, r, S), (r * W, W + 1, 1))

    skewed = q.new_zeros(G, r, W)  # zero outside the band, always
    return [(slice(m, m + r), slice(m, m + W), band, skewed) for m in range(0, M, r)]


def _span_saved(q: Tensor, S: int, p: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the softmax weights and of the dropout mask, tile by tile; no mask without dropout."""
    (G, M, _), r = q.shape, _tile_rows(q.size(1))
    shape = (M // r, G, r, S)
    return shape, shape if p > 0 else (M // r, 1, 1, 1)


@torch.library.custom_op("peers::span_attention", mutates_args=())
def _span_attention(q: Tensor, k: Tensor, v: Tensor, key_pe: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Output [G, M, C], and for backward the softmax weights and what dropout kept (in q's dtype: no conversions)."""
    S = key_pe.size(1)
    shape, mask_shape = _span_saved(q, S, p)
    out, weights = torch.empty_like(q), q.new_empty(shape)
    keep = keep_mask(torch.Size(mask_shape), p, q.device).to(q.dtype) if p > 0 else q.new_ones(mask_shape)
    for (rows, window, band, skewed), weights_tile, keep_tile in zip(_tiles(q, S), weights, keep):
        q_tile = q[:, rows] * q.size(2) ** -0.5
        scores = band(q_tile @ k[:, window].transpose(1, 2)) + q_tile @ key_pe
        torch.softmax(scores, -1, out=weights_tile)
        torch.mul(weights_tile, keep_tile, out=band(skewed))
        out[:, rows] = skewed @ v[:, window]
    return out.mul_(1 / (1 - p)), weights, keep


@_span_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, key_pe: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor]:
    shape, mask_shape = _span_saved(q, key_pe.size(1), p)
    return torch.empty_like(q), q.new_empty(shape), q.new_empty(mask_shape)


@torch.library.custom_op("peers::span_attention_backward", mutates_args=())
def _span_attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, key_pe: Tensor, weights: Tensor,
                             keep: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients in q, k, v and key_pe; those of overlapping windows are summed in fp32."""
    dq = torch.empty_like(q)
    dk, dv, dkey_pe = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v, key_pe))
    scale = q.size(2) ** -0.5
    for (rows, window, band, skewed), weights_tile, keep_tile in zip(_tiles(q, key_pe.size(1)), weights, keep):
        g = grad[:, rows] * (1 / (1 - p))
        torch.mul(weights_tile, keep_tile, out=band(skewed))
        dv[:, window] += skewed.transpose(1, 2) @ g
        dw = band(g @ v[:, window].transpose(1, 2)) * keep_tile
        ds = torch.ops.aten._softmax_backward_data(dw, weights_tile, -1, dw.dtype)
        band(skewed).copy_(ds)
        q_tile = q[:, rows] * scale
        dq[:, rows] = torch.baddbmm(ds @ key_pe.t(), skewed, k[:, window]).mul_(scale)
        dk[:, window] += skewed.transpose(1, 2) @ q_tile
        dkey_pe += q_tile.flatten(0, 1).t() @ ds.flatten(0, 1)
    return dq, dk.to(k.dtype), dv.to(v.dtype), dkey_pe.to(key_pe.dtype)


@_span_attention_backward.register_fake
def _(grad, q, k, v, key_pe, weights, keep, p):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.empty_like(key_pe)


def _save_span(ctx, inputs, output):
    *tensors, ctx.p = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


_span_attention.register_autograd(
    lambda ctx, grad, *_: (*_span_attention_backward(grad.contiguous(), *ctx.saved_tensors, ctx.p), None),
    setup_context=_save_span)


def span_attention(q: Tensor, k: Tensor, v: Tensor, key_pe: Tensor, dropout: float) -> Tensor:
    """The same in tiles of queries, whose window is little wider than the span: fewer products outside the band, the
    band as a view of them, a backward pass of its own. Opaque to torch.compile, whose own loops over bands are slow."""
    return _span_attention(q, k, v, key_pe, dropout)[0]


# ---------------------------------------------------------------- loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Linear + mean cross-entropy, a chunk of tokens at a time; the gradients are made in the forward pass, so that
    nothing is computed twice and no more than one chunk of logits exists."""

    @staticmethod
    def forward(ctx, h_TD: Tensor, w_VD: Tensor, b_V: Tensor | None, targets_T: Tensor, chunk: int):
        T = h_TD.size(0)
        w = w_VD.to(h_TD.dtype)
        dh, dw = torch.empty_like(h_TD), None
        db = None if b_V is None else torch.zeros_like(b_V)
        loss = torch.zeros((), dtype=torch.float32, device=h_TD.device)
        for begin in range(0, T, chunk):
            h, targets = h_TD[begin : begin + chunk], targets_T[begin : begin + chunk].unsqueeze(1)
            logits = (h @ w.t()).float()
            if b_V is not None:
                logits = logits + b_V
            chosen = logits.gather(1, targets)
            top = logits.amax(1, keepdim=True)
            logits = logits.sub_(top).exp_()
            total = logits.sum(1, keepdim=True)
            loss = loss + (total.log() + top - chosen).sum() / T
            grad = logits.mul_(1 / (total * T))
            grad.scatter_add_(1, targets, torch.full_like(chosen, -1 / T))
            if db is not None:
                db += grad.sum(0)
            grad = grad.to(h.dtype)
            dh[begin : begin + chunk] = grad @ w
            part = grad.t() @ h
            dw = part.to(w_VD.dtype) if dw is None else dw.add_(part)
        ctx.save_for_backward(dh, dw, db)
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):
        dh, dw, db = ctx.saved_tensors
        # On a GPU, to look would be to wait.
        if not torch.compiler.is_compiling() and grad.device.type == "cpu" and grad.item() == 1:
            return dh, dw, db, None, None
        return dh * grad.to(dh.dtype), dw * grad, None if db is None else db * grad, None, None


def chunked_cross_entropy(h_TD: Tensor, w_VD: Tensor, b_V: Tensor | None, targets_T: Tensor,
                          chunk: int = 512) -> Tensor:
    """Mean cross-entropy of linear(h, w, b) in chunks of tokens. w and its gradient keep their own dtype."""
    return _ChunkedCrossEntropy.apply(h_TD, w_VD, b_V, targets_T, chunk)
