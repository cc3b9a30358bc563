"""Golden values of the two model families with both routers, stated in plain PyTorch.

An independent statement of the models' definitions, written for reading and not for speed: float64 on one CPU thread,
every expert applied to every token. The C++ models load `param.*` and must reproduce everything else. README.md beside
this file lists the contents and says how to regenerate.

Shape letters: B batch, S sequence, T = B*S tokens, D width, H heads, C head width, L span, N experts, K experts per
token, F expert width, P router state, V vocabulary.
"""

import argparse
import json
import pathlib
import struct

import torch
import torch.nn.functional as F

STEPS = 10
BALANCE_WEIGHT = 0.01
NORM_EPS = 1e-5
ROPE_THETA = 10000.0
MOE_WEIGHT = SHARE_WEIGHT = 0.5
CLIP_NORM = 1.0
MIN_MARGIN = 1e-4  # between logits whose order decides a stored value: no implementation may see a tie

CASES = {
    "span_smoe": dict(family="span", router="linear", seed=11, vocab=29, layers=3, width=20, heads=2, kv_heads=2,
                      expert_width=11, experts=5, top_k=2, span=5, block=7, dense_layers=0, dense_width=0,
                      shared_width=0, state_width=0, batch=2, seq=7, tied=False),
    "span_rmoe": dict(family="span", router="gru", seed=12, vocab=29, layers=3, width=20, heads=2, kv_heads=2,
                      expert_width=10, experts=5, top_k=2, span=11, block=7, dense_layers=0, dense_width=0,
                      shared_width=0, state_width=9, batch=2, seq=7, tied=False),
    "llama_smoe": dict(family="llama", router="linear", seed=13, vocab=29, layers=3, width=24, heads=4, kv_heads=4,
                       expert_width=11, experts=5, top_k=2, span=0, block=7, dense_layers=0, dense_width=0,
                       shared_width=0, state_width=0, batch=2, seq=7, tied=True),
    "llama_rmoe": dict(family="llama", router="gru", seed=14, vocab=29, layers=4, width=24, heads=4, kv_heads=2,
                       expert_width=9, experts=5, top_k=2, span=0, block=7, dense_layers=1, dense_width=14,
                       shared_width=7, state_width=8, batch=2, seq=7, tied=False),
}


# ---------------------------------------------------------------- parameters


def parameter_shapes(c):
    """Name -> shape of every parameter, in the names of a run's checkpoint."""
    V, D, N, W, P = c["vocab"], c["width"], c["experts"], c["expert_width"], c["state_width"]
    C = D // c["heads"]
    kv_width = c["kv_heads"] * C
    span = c["family"] == "span"
    shapes = {"model.embed_tokens.weight": (V, D)}
    if not c["tied"]:
        shapes["lm_head.weight"] = (V, D)
    if span:
        shapes["lm_head.bias"] = (V,)
        shapes["model.key_pe"] = (1, C, c["span"])
    else:
        shapes["model.norm.weight"] = (D,)
    if c["router"] == "gru":
        for gate in ("ir", "hr", "iz", "hz", "in", "hn"):
            shapes[f"model.rnn_router.weight_{gate}"] = (P, P)
            shapes[f"model.rnn_router.bias_{gate}"] = (P,)

    def gated(prefix, hidden):
        shapes[f"{prefix}.gate_proj.weight"] = (hidden, D)
        shapes[f"{prefix}.up_proj.weight"] = (hidden, D)
        shapes[f"{prefix}.down_proj.weight"] = (D, hidden)

    for i in range(c["layers"]):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.self_attn.q_proj.weight"] = (D, D)
        shapes[f"{layer}.self_attn.k_proj.weight"] = (kv_width, D)
        shapes[f"{layer}.self_attn.v_proj.weight"] = (kv_width, D)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (D, D)
        if span:
            for norm in ("norm1", "norm_moe", "norm2", "norm3"):
                shapes[f"{layer}.{norm}.weight"] = (D,)
                shapes[f"{layer}.{norm}.bias"] = (D,)
        else:
            shapes[f"{layer}.input_layernorm.weight"] = (D,)
            shapes[f"{layer}.post_attention_layernorm.weight"] = (D,)
        if i < c["dense_layers"]:
            gated(f"{layer}.mlp", c["dense_width"])
            continue
        moe = f"{layer}.block_sparse_moe"
        if c["router"] == "gru":
            shapes[f"{moe}.weight1"] = (P, D)
            shapes[f"{moe}.weight2"] = (N, P)
        else:
            shapes[f"{moe}.gate.weight"] = (N, D)
            if span:
                shapes[f"{moe}.gate.bias"] = (N,)
        for e in range(N):
            shapes[f"{moe}.experts.{e}.w1.weight"] = (W, D)
            shapes[f"{moe}.experts.{e}.w2.weight"] = (D, W)
            if span:
                shapes[f"{moe}.experts.{e}.w1.bias"] = (W,)
                shapes[f"{moe}.experts.{e}.w2.bias"] = (D,)
            else:
                shapes[f"{moe}.experts.{e}.w3.weight"] = (W, D)
        if c["shared_width"]:
            gated(f"{layer}.mlp_share", c["shared_width"])
    return shapes


def initial_parameters(c, generator):
    """No value that hides a mistake: norm weights are not 1, biases not 0, scales large enough to matter."""
    params = {}
    for name, shape in parameter_shapes(c).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if "norm" in name and name.endswith("weight"):
            value = 1 + 0.2 * noise
        elif len(shape) == 1:
            value = 0.2 * noise
        elif name.endswith(("embed_tokens.weight", "key_pe")):
            value = 0.7 * noise
        else:
            value = noise * 1.3 / shape[-1] ** 0.5
        params[name] = value.requires_grad_()
    return params


def token_stream(c, generator):
    """[STEPS, B, S+1]: consecutive blocks of B streams; a noisy affine rule, so that the loss can fall."""
    B, S, V = c["batch"], c["seq"], c["vocab"]
    stream = [torch.randint(V, (B,), generator=generator)]
    for _ in range(STEPS * S):
        stream.append((3 * stream[-1] + torch.randint(3, (B,), generator=generator)) % V)
    stream = torch.stack(stream, dim=1)
    return torch.stack([stream[:, s * S : s * S + S + 1] for s in range(STEPS)])


# ---------------------------------------------------------------- parts of both families


def gru_cell(x_TP, h_TP, p):
    """h_i = (1 - z) n + z h_{i-1}: the reference, section 1."""

    def part(gate, value):
        return F.linear(value, p[f"model.rnn_router.weight_{gate}"], p[f"model.rnn_router.bias_{gate}"])

    reset = torch.sigmoid(part("ir", x_TP) + part("hr", h_TP))
    update = torch.sigmoid(part("iz", x_TP) + part("hz", h_TP))
    candidate = torch.tanh(part("in", x_TP) + reset * part("hn", h_TP))
    return (1 - update) * candidate + update * h_TP


def router_logits(c, p, moe, x_TD, carry):
    """Logits [T, N] of one layer. carry["h"] is the state h_{i-1} on entry and h_i on return."""
    if c["router"] == "linear":
        return F.linear(x_TD, p[f"{moe}.gate.weight"], p.get(f"{moe}.gate.bias"))
    projected_TP = F.linear(x_TD, p[f"{moe}.weight1"])
    if carry.get("h") is None:
        carry["h"] = torch.zeros_like(projected_TP)
    carry["h"] = gru_cell(projected_TP, carry["h"], p)
    return F.linear(carry["h"], p[f"{moe}.weight2"])


def expert(c, p, name, x_TD):
    if c["family"] == "span":
        hidden = torch.relu(F.linear(x_TD, p[f"{name}.w1.weight"], p[f"{name}.w1.bias"]))
        return F.linear(hidden, p[f"{name}.w2.weight"], p[f"{name}.w2.bias"])
    hidden = F.silu(F.linear(x_TD, p[f"{name}.w1.weight"])) * F.linear(x_TD, p[f"{name}.w3.weight"])
    return F.linear(hidden, p[f"{name}.w2.weight"])


def moe(c, p, layer, x_TD, carry, routing):
    """Sum over the selected experts of weight * expert(x). Appends this layer's routing to `routing`."""
    prefix = f"model.layers.{layer}.block_sparse_moe"
    N, K, T = c["experts"], c["top_k"], x_TD.shape[0]
    logits_TN = router_logits(c, p, prefix, x_TD, carry)
    probs_TN = torch.softmax(logits_TN, dim=-1)

    ordered = torch.sort(logits_TN, dim=-1, descending=True)
    ids_TK = ordered.indices[:, :K]
    margin = (ordered.values[:, K - 1] - ordered.values[:, K]).min().item()
    order_margin = (ordered.values[:, :K - 1] - ordered.values[:, 1:K]).min().item()

    if c["family"] == "span":
        weights_TK = torch.softmax(ordered.values[:, :K], dim=-1)
    else:
        chosen_TK = torch.gather(probs_TN, 1, ids_TK)
        weights_TK = chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)

    y_TD = torch.zeros_like(x_TD)
    for n in range(N):
        # Zero for tokens that did not choose n, so an expert without tokens has zero gradients and not none.
        weight_T = (weights_TK * (ids_TK == n)).sum(dim=-1)
        y_TD = y_TD + weight_T[:, None] * expert(c, p, f"{prefix}.experts.{n}", x_TD)

    counts_N = torch.tensor([(ids_TK == n).sum().item() for n in range(N)], dtype=torch.float64)
    fraction_N = counts_N / (T * K)
    if c["family"] == "span":
        balance = N * (fraction_N * probs_TN.sum(dim=0) / (T * K)).sum()
    else:
        balance = N * (fraction_N * probs_TN.mean(dim=0)).sum()
    routing.append(dict(layer=layer, ids=ids_TK, weights=weights_TK, balance=balance, margin=margin,
                        order_margin=order_margin, idle=int((counts_N == 0).sum())))
    return y_TD


# ---------------------------------------------------------------- span family


def span_attention(c, p, prefix, h_BSD, cache_BLD):
    """Every query sees exactly the L positions before it, itself excluded. key_pe index l: distance L - l."""
    B, S, D = h_BSD.shape
    H, L = c["heads"], c["span"]
    C = D // H
    past_BUD = torch.cat([cache_BLD, h_BSD], dim=1)  # U = L + S; query m stands at L + m
    q = F.linear(h_BSD, p[f"{prefix}.q_proj.weight"]).view(B, S, H, C)
    k = F.linear(past_BUD, p[f"{prefix}.k_proj.weight"]).view(B, L + S, H, C)
    v = F.linear(past_BUD, p[f"{prefix}.v_proj.weight"]).view(B, L + S, H, C)
    pe_CL = p["model.key_pe"][0]
    out = []
    for m in range(S):
        seen_k, seen_v = k[:, m : m + L], v[:, m : m + L]  # [B, L, H, C]
        by_content = torch.einsum("bhc,blhc->bhl", q[:, m], seen_k)
        by_position = torch.einsum("bhc,cl->bhl", q[:, m], pe_CL)
        attention = torch.softmax((by_content + by_position) / C**0.5, dim=-1)
        out.append(torch.einsum("bhl,blhc->bhc", attention, seen_v).reshape(B, D))
    return F.linear(torch.stack(out, dim=1), p[f"{prefix}.o_proj.weight"])


def span_forward(c, p, tokens_BS, caches):
    """Returns logits [B, S, V], routing per layer, and the caches for the next block (detached)."""
    B, S = tokens_BS.shape
    D, L = c["width"], c["span"]

    def norm(x, name):
        return F.layer_norm(x, (D,), p[f"{name}.weight"], p[f"{name}.bias"], NORM_EPS)

    if caches is None:
        caches = [torch.zeros(B, L, D, dtype=torch.float64)] * c["layers"]
    carry, routing, next_caches = {}, [], []
    h = p["model.embed_tokens.weight"][tokens_BS]
    for i in range(c["layers"]):
        layer = f"model.layers.{i}"
        next_caches.append(torch.cat([caches[i], h], dim=1)[:, -L:].detach())
        h = norm(h + span_attention(c, p, f"{layer}.self_attn", h, caches[i]), f"{layer}.norm1")
        experts = moe(c, p, i, h.view(B * S, D), carry, routing).view(B, S, D)
        m = norm(h + experts, f"{layer}.norm_moe")
        h = norm(h + m, f"{layer}.norm2")
    return F.linear(h, p["lm_head.weight"], p["lm_head.bias"]), routing, next_caches


# ---------------------------------------------------------------- llama family


def rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + NORM_EPS) * weight


def rotate(x_BHSC):
    """RoPE in the Hugging Face convention: component j pairs with j + C/2."""
    S, C = x_BHSC.shape[-2:]
    frequency = ROPE_THETA ** (-2.0 * torch.arange(C // 2, dtype=torch.float64) / C)
    angle = torch.arange(S, dtype=torch.float64)[:, None] * frequency
    first, second = x_BHSC[..., : C // 2], x_BHSC[..., C // 2 :]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


def causal_attention(c, p, prefix, x_BSD):
    B, S, D = x_BSD.shape
    H, G = c["heads"], c["kv_heads"]
    C = D // H
    q = F.linear(x_BSD, p[f"{prefix}.q_proj.weight"]).view(B, S, H, C).transpose(1, 2)
    k = F.linear(x_BSD, p[f"{prefix}.k_proj.weight"]).view(B, S, G, C).transpose(1, 2)
    v = F.linear(x_BSD, p[f"{prefix}.v_proj.weight"]).view(B, S, G, C).transpose(1, 2)
    q, k = rotate(q), rotate(k)
    k = k.repeat_interleave(H // G, dim=1)  # query head h reads key head h // (H / G)
    v = v.repeat_interleave(H // G, dim=1)
    scores = q @ k.transpose(-1, -2) / C**0.5
    future = torch.ones(S, S, dtype=torch.bool).triu(1)
    attention = torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
    return F.linear((attention @ v).transpose(1, 2).reshape(B, S, D), p[f"{prefix}.o_proj.weight"])


def gated_mlp(p, prefix, x):
    gate = F.silu(F.linear(x, p[f"{prefix}.gate_proj.weight"]))
    return F.linear(gate * F.linear(x, p[f"{prefix}.up_proj.weight"]), p[f"{prefix}.down_proj.weight"])


def llama_forward(c, p, tokens_BS, caches):
    """Returns logits [B, S, V], routing per MoE layer, and None (nothing is carried between batches)."""
    del caches
    B, S = tokens_BS.shape
    D = c["width"]
    carry, routing = {}, []
    x = p["model.embed_tokens.weight"][tokens_BS]
    for i in range(c["layers"]):
        layer = f"model.layers.{i}"
        x = x + causal_attention(c, p, f"{layer}.self_attn", rms_norm(x, p[f"{layer}.input_layernorm.weight"]))
        normed = rms_norm(x, p[f"{layer}.post_attention_layernorm.weight"])
        if i < c["dense_layers"]:
            x = x + gated_mlp(p, f"{layer}.mlp", normed)
            continue
        y = moe(c, p, i, normed.view(B * S, D), carry, routing).view(B, S, D)
        if c["shared_width"]:
            y = MOE_WEIGHT * y + SHARE_WEIGHT * gated_mlp(p, f"{layer}.mlp_share", normed)
        x = x + y
    head = p["model.embed_tokens.weight"] if c["tied"] else p["lm_head.weight"]
    return F.linear(rms_norm(x, p["model.norm.weight"]), head), routing, None


# ---------------------------------------------------------------- losses, gradients, training


def run_block(c, p, tokens_BS1, caches):
    """One forward pass: logits, LM loss (mean nats per token), balance loss, their total, routing, next caches."""
    forward = span_forward if c["family"] == "span" else llama_forward
    logits, routing, caches = forward(c, p, tokens_BS1[:, :-1], caches)
    loss = F.cross_entropy(logits.reshape(-1, c["vocab"]), tokens_BS1[:, 1:].reshape(-1))
    balance = torch.stack([r["balance"] for r in routing])
    balance = balance.sum() if c["family"] == "span" else balance.mean()
    return dict(logits=logits, loss=loss, balance=balance, total=loss + BALANCE_WEIGHT * balance, routing=routing,
                caches=caches)


def check_margins(routing, order):
    """Who is selected must be clear; where the ids are stored, also in which order."""
    for r in routing:
        margin = min(r["margin"], r["order_margin"]) if order else r["margin"]
        assert margin > MIN_MARGIN, f"layer {r['layer']}: logits {margin} apart; take another seed"


def used(p):
    """Parameters that take part in the forward pass: all but the third LayerNorm of the span family."""
    return {name: value for name, value in p.items() if ".norm3." not in name}


def gradients(p, total):
    names = list(used(p))
    return dict(zip(names, torch.autograd.grad(total, [p[n] for n in names])))


@torch.no_grad()
def mean_loss(c, p, tokens):
    """LM loss over all blocks in order, weights fixed."""
    caches, losses = None, []
    for block_tokens in tokens:
        block = run_block(c, p, block_tokens, caches)
        caches = block["caches"]
        losses.append(block["loss"].item())
    return sum(losses) / len(losses)


def train(c, initial, tokens):
    """LM loss before each of the ten updates, and the global gradient norm before clipping."""
    p = {name: value.detach().clone().requires_grad_() for name, value in initial.items()}
    if c["family"] == "span":
        optimizer = torch.optim.Adam(used(p).values(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    else:
        groups = [dict(params=[v for v in p.values() if v.dim() >= 2], weight_decay=0.1),
                  dict(params=[v for v in p.values() if v.dim() < 2], weight_decay=0.0)]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    caches, losses, norms, margins = None, [], [], []
    for step in range(STEPS):
        block = run_block(c, p, tokens[step], caches)
        caches = block["caches"]
        check_margins(block["routing"], order=False)
        optimizer.zero_grad()
        block["total"].backward()
        norms.append(torch.sqrt(sum((v.grad**2).sum() for v in used(p).values())).item())
        if c["family"] == "llama":
            for v in p.values():
                v.grad *= min(1.0, CLIP_NORM / (norms[-1] + 1e-6))
        optimizer.step()
        losses.append(block["loss"].item())
        margins.append(min(r["margin"] for r in block["routing"]))
    before, after = mean_loss(c, initial, tokens), mean_loss(c, p, tokens)
    assert after < before, f"training raises the loss on its own tokens: {before} -> {after}"
    return losses, norms, min(margins)


# ---------------------------------------------------------------- checks of this file against other statements


def same(a, b, what):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12, msg=lambda m: f"{what}: {m}")


def check_gru(c, p):
    P = c["state_width"]
    cell = torch.nn.GRUCell(P, P, dtype=torch.float64)
    with torch.no_grad():
        for side, letter in (("ih", "i"), ("hh", "h")):
            for kind in ("weight", "bias"):
                parts = [p[f"model.rnn_router.{kind}_{letter}{gate}"] for gate in "rzn"]
                getattr(cell, f"{kind}_{side}").copy_(torch.cat(parts))
        x, h = torch.randn(2, 6, P, dtype=torch.float64)
        same(gru_cell(x, h, p), cell(x, h), "GRU against torch.nn.GRUCell")


def check_causal_attention(c, p):
    """RoPE by complex rotation, then torch's own attention."""
    B, S, D, H, G = c["batch"], c["seq"], c["width"], c["heads"], c["kv_heads"]
    C = D // H
    prefix = "model.layers.0.self_attn"
    x = torch.randn(B, S, D, dtype=torch.float64)
    turn = torch.polar(torch.ones(S, C // 2, dtype=torch.float64),
                       torch.arange(S, dtype=torch.float64)[:, None]
                       / ROPE_THETA ** (torch.arange(0, C, 2, dtype=torch.float64) / C))

    def heads(name, count, rotated):
        y = F.linear(x, p[f"{prefix}.{name}_proj.weight"]).view(B, S, count, C).transpose(1, 2)
        if rotated:
            z = torch.complex(y[..., : C // 2].contiguous(), y[..., C // 2 :].contiguous()) * turn
            y = torch.cat([z.real, z.imag], dim=-1)
        return y

    out = F.scaled_dot_product_attention(heads("q", H, True), heads("k", G, True), heads("v", G, False),
                                         is_causal=True, enable_gqa=True)
    out = F.linear(out.transpose(1, 2).reshape(B, S, D), p[f"{prefix}.o_proj.weight"])
    same(causal_attention(c, p, prefix, x), out, "attention against scaled_dot_product_attention")


def check_span_attention(c, p):
    """Brute force over batch, head, query and distance, in Python numbers where it matters."""
    B, S, D, H, L = c["batch"], c["seq"], c["width"], c["heads"], c["span"]
    C = D // H
    prefix = "model.layers.1.self_attn"
    h, cache = torch.randn(B, S, D, dtype=torch.float64), torch.randn(B, L, D, dtype=torch.float64)
    wq, wk, wv, wo = (p[f"{prefix}.{n}_proj.weight"].detach() for n in "qkvo")
    pe = p["model.key_pe"].detach()
    expected = torch.zeros(B, S, D, dtype=torch.float64)
    for b in range(B):
        def hidden(position):  # of the stream; negative positions lie in the cache
            return h[b, position] if position >= 0 else cache[b, L + position]
        for m in range(S):
            joined = torch.zeros(D, dtype=torch.float64)
            for head in range(H):
                rows = slice(head * C, (head + 1) * C)
                q = wq[rows] @ h[b, m]
                scores, values = [], []
                for distance in range(L, 0, -1):
                    key = wk[rows] @ hidden(m - distance) + pe[0, :, L - distance]
                    scores.append((q @ key).item() / C**0.5)
                    values.append(wv[rows] @ hidden(m - distance))
                weights = torch.tensor(scores, dtype=torch.float64).exp()
                for weight, value in zip(weights / weights.sum(), values):
                    joined[rows] += weight * value
            expected[b, m] = wo @ joined
    same(span_attention(c, p, prefix, h, cache).detach(), expected, "span attention against a loop")


def check_moe(c, p):
    """One token and one selected expert at a time, with one softmax over the selected logits for both families."""
    layer = c["layers"] - 1
    prefix = f"model.layers.{layer}.block_sparse_moe"
    x = torch.randn(6, c["width"], dtype=torch.float64)
    y = moe(c, p, layer, x, {}, [])
    logits = router_logits(c, p, prefix, x, {})
    for t in range(len(x)):
        ids = sorted(range(c["experts"]), key=lambda n: -logits[t, n].item())[: c["top_k"]]
        weights = torch.softmax(torch.stack([logits[t, n] for n in ids]), dim=0)
        token = sum(w * expert(c, p, f"{prefix}.experts.{n}", x[t]) for w, n in zip(weights, ids))
        same(y[t], token, "MoE against single tokens")


def check_norms(c, p):
    x = torch.randn(3, c["width"], dtype=torch.float64)
    w = p["model.norm.weight"]
    same(rms_norm(x, w), F.rms_norm(x, (c["width"],), w, NORM_EPS), "RMSNorm against torch's")


def check_gradient(c, p, tokens, caches, grads):
    """The derivative along the gradient's signs against a central difference of the total loss."""
    direction = {name: torch.sign(g) for name, g in grads.items()}
    step = 1e-7  # a larger one moves a ReLU of span_rmoe across its kink, where the difference means nothing

    def total(amount):
        moved = {n: (v + amount * direction[n] if n in direction else v) for n, v in p.items()}
        return run_block(c, moved, tokens, caches)["total"].item()

    with torch.no_grad():
        difference = (total(step) - total(-step)) / (2 * step)
    slope = sum((grads[n] * direction[n]).sum().item() for n in grads)
    assert abs(difference - slope) < 1e-7 * abs(slope), f"gradient: {slope} by autograd, {difference} by differences"


def check_causality(c, p, tokens):
    """The last input token changes the logits of its own position only (its own embedding reaches them)."""
    changed = tokens.clone()
    changed[:, -2] = (changed[:, -2] + 1) % c["vocab"]
    a, b = (run_block(c, p, t, None)["logits"] for t in (tokens, changed))
    same(a[:, :-1], b[:, :-1], "logits before a changed token")
    assert (a[:, -1] - b[:, -1]).abs().min() > 1e-6


def check_cache(c, p, tokens):
    """Two blocks joined by the cache give the logits of one block of twice the length."""
    with torch.no_grad():
        joined = torch.cat([tokens[0][:, :-1], tokens[1]], dim=1)
        first = run_block(c, p, tokens[0], None)
        second = run_block(c, p, tokens[1], first["caches"])
        both = torch.cat([first["logits"], second["logits"]], dim=1)
        same(run_block(c, p, joined, None)["logits"], both, "cached block against a longer block")


# ---------------------------------------------------------------- files


def write_safetensors(path, tensors, metadata):
    """The format by hand: its own library orders metadata differently in every process, and git would see changes."""
    names = {torch.float64: "F64", torch.int64: "I64"}
    header, data = {"__metadata__": metadata}, []
    at = 0
    for name, tensor in sorted(tensors.items()):
        raw = tensor.detach().contiguous().numpy().tobytes()
        header[name] = dict(dtype=names[tensor.dtype], shape=list(tensor.shape), data_offsets=[at, at + len(raw)])
        data.append(raw)
        at += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


def check_file(path, tensors, metadata):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        assert file.metadata() == metadata and set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor), name
    assert path.stat().st_size < 400_000, f"{path}: {path.stat().st_size} bytes"


def make_case(name, c, folder):
    generator = torch.Generator().manual_seed(c["seed"])
    torch.manual_seed(c["seed"])  # the checks' random inputs
    p = initial_parameters(c, generator)
    tokens = token_stream(c, generator)

    check_moe(c, p)
    check_causality(c, p, tokens[0])
    if c["router"] == "gru":
        check_gru(c, p)
    if c["family"] == "span":
        check_span_attention(c, p)
        check_cache(c, p, tokens)
    else:
        check_causal_attention(c, p)
        check_norms(c, p)

    first = run_block(c, p, tokens[0], None)
    check_margins(first["routing"], order=True)
    grads = gradients(p, first["total"])
    check_gradient(c, p, tokens[0], None, grads)
    out = {f"param.{n}": v for n, v in p.items()}
    out |= {f"grad.{n}": g for n, g in grads.items()}
    out |= {"tokens": tokens, "logits": first["logits"], "loss": first["loss"], "balance": first["balance"]}
    for r in first["routing"]:
        out[f"ids.{r['layer']}"] = r["ids"]
        out[f"weights.{r['layer']}"] = r["weights"]
    if c["family"] == "span":
        second = run_block(c, p, tokens[1], first["caches"])
        check_margins(second["routing"], order=False)
        grads = gradients(p, second["total"])
        check_gradient(c, p, tokens[1], first["caches"], grads)
        out["logits1"] = second["logits"]
        out |= {f"grad1.{n}": g for n, g in grads.items()}
    losses, norms, margin = train(c, p, tokens)
    assert losses[0] == first["loss"].item()
    out["losses"] = torch.tensor(losses, dtype=torch.float64)
    out["grad_norms"] = torch.tensor(norms, dtype=torch.float64)
    out = {n: t.detach() for n, t in out.items()}
    assert all(t.isfinite().all() for t in out.values())

    metadata = {k: (str(v).lower() if isinstance(v, bool) else str(v)) for k, v in c.items()}
    path = folder / f"{name}.safetensors"
    write_safetensors(path, out, metadata)
    check_file(path, out, metadata)
    print(f"{name}: {path.stat().st_size} bytes, {sum(v.numel() for v in p.values())} parameters, "
          f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, balance {first['balance'].item():.4f}, smallest margin "
          f"{margin:.2e}, idle experts {sum(r['idle'] for r in first['routing'])}, "
          f"gradient norm {min(norms):.3f}..{max(norms):.3f}")


def main():
    parser = argparse.ArgumentParser(description="Write the golden files of the model tests.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent, help="folder for the files")
    folder = parser.parse_args().out
    torch.set_num_threads(1)
    for name, c in CASES.items():
        make_case(name, c, folder)


if __name__ == "__main__":
    main()
