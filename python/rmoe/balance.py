"""Balance losses as functions of the layers' routings; docs/balance.md has the formulas side by side.

Each takes `routings`, a list with one rmoe.Routing (or anything with ids [T, K], probs [T, N] and logits [T, N]) per
MoE layer, and `valid`, bool [T] or None: tokens that are False (padding) count nowhere. Each returns a scalar, 0 without
layers or without tokens that count; gradients go through probs and logits only. f_n is the share of the rows that expert
n got, P_n the mean of its probability.
"""
import torch

__all__ = ["concatenated", "global_batch", "relu_l1", "sequence", "small_scale", "switch", "z", "counts"]


def _mask(valid, tokens):
    """valid as [T]. Anything else of a fitting size would broadcast, and count what it should not."""
    if valid.dtype != torch.bool or valid.numel() != tokens:
        raise ValueError(f"balance: valid is {valid.dtype} {list(valid.shape)}, expected bool [{tokens}]")
    return valid.reshape(-1)


def counts(routing, valid=None):
    """Rows per expert of one layer, int64 [N]: what global_batch adds up over micro-batches and ranks."""
    ids = routing.ids
    used = (ids >= 0) if valid is None else (ids >= 0) & _mask(valid, ids.shape[0]).unsqueeze(1)
    total = ids.new_zeros(routing.probs.shape[1])
    return total.scatter_add_(0, ids.clamp_min(0).flatten(), used.to(ids.dtype).flatten())


def _sum(x, valid):
    if valid is None:
        return x.sum(0)
    return (x * _mask(valid, x.shape[0]).view(-1, *[1] * (x.dim() - 1)).to(x.dtype)).sum(0)


def _tokens(x, valid):
    return max(x.shape[0], 1) if valid is None else valid.sum().clamp_min(1).to(x.dtype)


def _share(c, dtype):
    return c.to(dtype) / c.sum().clamp_min(1).to(dtype)


def _product(routing, c, valid):
    probs = routing.probs
    return (_share(c, probs.dtype) * (_sum(probs, valid) / _tokens(probs, valid))).sum() * probs.shape[1]


def _mean(losses):
    losses = list(losses)
    return sum(losses) / len(losses) if losses else torch.zeros(())


def switch(routings, valid=None):
    """N sum_n f_n P_n per layer, mean over layers: 1 at uniform routing. Fedus et al. 2021, Lepikhin et al. 2020."""
    return _mean(_product(r, counts(r, valid), valid) for r in routings)


def small_scale(routings, valid=None):
    """N/K sum_n f_n P_n per layer, summed over layers: L/K at uniform routing. The code of CompeteSMoE."""
    total = torch.zeros(())
    for r in routings:
        c = counts(r, valid)
        rows = c.sum().clamp_min(1).to(r.probs.dtype)
        total = total + (_share(c, r.probs.dtype) * _sum(r.probs, valid) / rows).sum() * r.probs.shape[1]
    return total


def global_batch(routings, batch_counts, valid=None):
    """As switch, with f_n from `batch_counts`, one int64 [N] per layer: the counts() of all micro-batches and ranks of
    the optimizer step, added up. 1 at uniform routing; the mean over micro-batches is the whole batch's. Qiu et al. 2025."""
    for r, c in zip(routings, batch_counts, strict=True):
        if c.shape != r.probs.shape[1:]:
            raise ValueError(f"balance.global_batch: batch_counts has {list(c.shape)}, expected"
                             f" {list(r.probs.shape[1:])}")
    return _mean(_product(r, c, valid) for r, c in zip(routings, batch_counts, strict=True))


def concatenated(routings, valid=None):
    """N sum_n (C_n / M) Q_n, the tokens of all layers as one batch of M: K at uniform routing. transformers'
    load_balancing_loss_func."""
    if not routings:
        return torch.zeros(())
    c = sum(counts(r, valid) for r in routings)
    probs = sum(_sum(r.probs, valid) for r in routings)
    tokens = sum(_tokens(r.probs, valid) for r in routings)
    return (c.to(probs.dtype) / tokens * (probs / tokens)).sum() * probs.shape[0]


def sequence(routings, sequences, valid=None):
    """N sum_n f_n P_n of every sequence on its own, mean over the sequences that hold a token that counts and over
    layers: 1 at uniform routing. The T tokens are `sequences` texts of equal length. DeepSeek-V3, equations 17 to 20."""

    def of_layer(r):
        T, N = r.probs.shape
        if sequences < 1 or T % sequences:
            raise ValueError(f"balance.sequence: {T} tokens are not {sequences} sequences of equal length")
        used = (r.ids >= 0) if valid is None else (r.ids >= 0) & _mask(valid, T).unsqueeze(1)
        c = r.ids.new_zeros(sequences, N).scatter_add_(1, r.ids.clamp_min(0).reshape(sequences, -1),
                                                       used.to(r.ids.dtype).reshape(sequences, -1))
        share = c.to(r.probs.dtype) / c.sum(1, keepdim=True).clamp_min(1)
        mask = r.probs.new_ones(sequences, T // sequences) if valid is None else \
            valid.reshape(sequences, -1).to(r.probs.dtype)
        mean = (r.probs.view(sequences, -1, N) * mask.unsqueeze(2)).sum(1) / mask.sum(1).clamp_min(1).unsqueeze(1)
        return (share * mean).sum() * N / (mask.sum(1) > 0).sum().clamp_min(1)

    return _mean(of_layer(r) for r in routings)


def z(routings, valid=None):
    """(log sum_n exp logit_n)^2, mean over tokens and layers: (ln N)^2 at logits 0. ST-MoE, Zoph et al. 2022."""
    return _mean(_sum(r.logits.logsumexp(-1).square(), valid) / _tokens(r.logits, valid) for r in routings)


def relu_l1(scores, strength, top_k, balanced=True, valid=None):
    """strength * sum_n g_n s_n, mean over tokens and layers, of ReLU scores: a list of [T, N] per layer. g_n = N c_n /
    (K T) with c_n the tokens whose score is above 0, or 1 without `balanced`. `strength` is adapted by the caller: up
    when tokens use more than top_k experts, down when fewer. ReMoE, Wang et al. 2024."""

    def of_layer(s):
        tokens = _tokens(s, valid)
        g = _sum((s > 0).to(s.dtype), valid) * s.shape[1] / (top_k * tokens) if balanced else torch.ones_like(s[0])
        return (g.detach() * _sum(s, valid)).sum() / tokens * strength

    return _mean(of_layer(s) for s in scores)
