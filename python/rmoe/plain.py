"""The ops' formulas in plain PyTorch: what runs where librmoe.so is missing, and the oracle of the tests.

Same arguments and results as in rmoe.ops. Dropout masks are librmoe's own: a dropout_p above 0 is refused here.
Everything is differentiable by autograd.
"""
import math

import torch
import torch.nn.functional as F


def _wide(x):
    """The dtype that routers, norms and sums are computed in: fp32, or fp64 for fp64."""
    return torch.promote_types(x.dtype, torch.float32)


def _no_dropout(p):
    if p != 0:
        raise NotImplementedError(f"rmoe.plain: dropout_p is {p}, but dropout needs librmoe.so; expected 0")


def _shape(op, **expected):
    """Refuses what PyTorch would broadcast or cut: name=(tensor or None, its shape)."""
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != tuple(shape):
            raise RuntimeError(f"{op}: {name} must be {list(shape)}, got {list(tensor.shape)}")


def linear(x, w, b=None):
    return F.linear(x, w.to(x.dtype), None if b is None else b.to(x.dtype))


def _gru_cell(x, state, w_ih, w_hh, b_ih, b_hh):
    state = x.new_zeros(x.shape[0], w_hh.shape[1]) if state is None else state
    (ir, iz, inn), (hr, hz, hn) = F.linear(x, w_ih, b_ih).chunk(3, 1), F.linear(state, w_hh, b_hh).chunk(3, 1)
    r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
    n = torch.tanh(inn + r * hn)
    return (1 - z) * n + z * state


def recurrent_stage(cell, x, state, cell_state, projection, w_ih, w_hh, b_ih, b_hh):
    if cell not in ("gru", "rnn", "lstm"):
        raise RuntimeError(f"recurrent_stage: unknown cell '{cell}', expected rnn, gru or lstm")
    if cell_state is not None and cell != "lstm":
        raise RuntimeError(f"recurrent_stage: cell '{cell}' has no cell_state")
    (T, D), (rows, P) = x.shape, w_hh.shape
    _shape("recurrent_stage", state=(state, (T, P)), cell_state=(cell_state, (T, P)), projection=(projection, (P, D)),
           w_ih=(w_ih, (rows, D if projection is None else P)), b_ih=(b_ih, (rows,)), b_hh=(b_hh, (rows,)))
    x, state, cell_state, projection, w_ih, w_hh, b_ih, b_hh = (
        None if t is None else t.to(_wide(x)) for t in (x, state, cell_state, projection, w_ih, w_hh, b_ih, b_hh))
    if projection is not None:
        x = F.linear(x, projection)
    if cell == "gru":
        return _gru_cell(x, state, w_ih, w_hh, b_ih, b_hh), x.new_empty(0)
    gates = F.linear(x, w_ih, b_ih) + (b_hh if state is None else F.linear(state, w_hh, b_hh))
    if cell == "rnn":
        return torch.tanh(gates), x.new_empty(0)
    i, f, g, o = gates.chunk(4, 1)
    c = torch.sigmoid(i) * torch.tanh(g)
    if cell_state is not None:
        c = c + torch.sigmoid(f) * cell_state
    return torch.sigmoid(o) * torch.tanh(c), c


def gate(feature, weight, bias, top_k, renormalize):
    return added_gate(feature, weight, bias, None, top_k, renormalize)


def added_gate(feature, weight, bias, added, top_k, renormalize):
    wide, N = _wide(feature), weight.shape[0]
    if not 1 <= top_k <= N:
        raise RuntimeError(f"gate: top_k is {top_k}, expected 1 to {N}")
    _shape("gate", bias=(bias, (N,)), added=(added, (feature.shape[0], N)))
    logits = F.linear(feature.to(wide), weight.to(wide), None if bias is None else bias.to(wide))
    if added is not None:
        logits = logits + added.to(wide)
    probs = logits.softmax(-1)
    ids = probs.detach().sort(stable=True, dim=-1, descending=True).indices[:, :top_k].contiguous()
    weights = logits.gather(1, ids).softmax(-1) if renormalize else probs.gather(1, ids)
    counts = ids.new_zeros(weight.shape[0]).scatter_add_(0, ids.flatten(), torch.ones_like(ids).flatten())
    return ids, weights, probs, logits, counts


def experts(x, ids, weights, w1, b1, w2, b2, w3, dropout_p=0.0, dropout_key=0):
    _no_dropout(dropout_p)
    _shape("experts", ids=(ids, (x.shape[0], ids.shape[-1])), weights=(weights, ids.shape))
    y = torch.zeros(x.shape, dtype=_wide(x), device=x.device)
    cast = lambda t, e: None if t is None else t[e].to(x.dtype)  # noqa: E731
    for e in range(w1.shape[0]):
        token, slot = (ids == e).nonzero(as_tuple=True)
        rows = x[token]
        inner = F.linear(rows, cast(w1, e), cast(b1, e))
        inner = F.relu(inner) if w3 is None else F.silu(inner) * F.linear(rows, cast(w3, e))
        answer = F.linear(inner, cast(w2, e), cast(b2, e))
        y = y.index_add(0, token, answer.to(y.dtype) * weights[token, slot].unsqueeze(1).to(y.dtype))
    return y.to(x.dtype)


def rms_norm(x, weight, eps):
    _shape("norm", weight=(weight, x.shape[-1:]))
    wide = x.to(_wide(x))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)).to(x.dtype)


def layer_norm(x, weight, bias, eps):
    wide = x.to(_wide(x))
    return F.layer_norm(wide, x.shape[-1:], weight.to(wide.dtype), bias.to(wide.dtype), eps).to(x.dtype)


def add_rms_norm(x, branch, weight, eps, dropout_p=0.0, dropout_key=0):
    _no_dropout(dropout_p)
    _shape("norm", branch=(branch, x.shape))
    return x + branch, rms_norm(x + branch, weight, eps)


def add_layer_norm(x, branch, weight, bias, eps, dropout_p=0.0, dropout_key=0):
    _no_dropout(dropout_p)
    _shape("norm", branch=(branch, x.shape))
    return x + branch, layer_norm(x + branch, weight, bias, eps)


def rotate(x, cos, sin, backwards=False):
    a, b = x.to(cos.dtype).chunk(2, -1)
    cos, sin = cos.unsqueeze(1), -sin.unsqueeze(1) if backwards else sin.unsqueeze(1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def causal_attention(q, k, v, cos=None, sin=None):
    if cos is not None:
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    Sq, Sk, group = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    if Sk < Sq:
        raise RuntimeError(f"causal_attention: {Sq} queries but {Sk} keys")
    _shape("causal_attention", v=(v, k.shape), k=(k, (q.shape[0], Sk, k.shape[2], q.shape[3])))
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    scores = torch.einsum("bqhc,bkhc->bhqk", q, k).to(_wide(q)) / math.sqrt(q.shape[3])
    hidden = torch.ones(Sq, Sk, dtype=torch.bool, device=q.device).triu(Sk - Sq + 1)
    return torch.einsum("bhqk,bkhc->bqhc", scores.masked_fill(hidden, -torch.inf).softmax(-1).to(q.dtype), v)


def span_attention(q, k, v, key_pe, dropout_p=0.0, dropout_key=0):
    _no_dropout(dropout_p)
    M, S = q.shape[2], key_pe.shape[1]
    window = torch.arange(M, device=q.device).unsqueeze(1) + torch.arange(S, device=q.device)  # [M, S]: row m + l
    scores = torch.einsum("bhmc,bhmsc->bhms", q, k[:, :, window]) + q @ key_pe.to(q.dtype)
    weights = (scores.to(_wide(q)) / math.sqrt(q.shape[3])).softmax(-1).to(q.dtype)
    return torch.einsum("bhms,bhmsc->bhmc", weights, v[:, :, window])


def linear_cross_entropy(x, w, b, targets, ignore_index=-100, z_loss=0.0, scale=1.0):
    _shape("linear_cross_entropy", targets=(targets, x.shape[:1]))
    logits = linear(x, w, b).to(_wide(x))
    counts = targets != ignore_index
    lse = logits.logsumexp(-1)
    chosen = logits.gather(1, targets.masked_fill(~counts, 0).unsqueeze(1)).squeeze(1)
    losses = (lse - chosen).masked_fill(~counts, 0)
    penalty = (z_loss * lse.square()).masked_fill(~counts, 0)
    return (losses + penalty).sum() * scale / counts.sum().clamp_min(1), losses.detach()
