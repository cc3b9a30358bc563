"""The models of the workloads, each in two styles: `fast=False` as public code writes them (separate matrices, one
expert after another, whole logits, autocast), `fast=True` as a careful user would (fused matrices, grouped GEMMs,
explicit casts once per step, tiles). Both compute the same; selfcheck.py proves it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ops
from workloads import Shape


def _matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.02)


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))


class Router(nn.Module):
    """Linear gate, or projection, shared GRU cell and gate (RMoE). In fp32 whatever the model's dtype."""

    def __init__(self, s: Shape, recurrent: bool):
        super().__init__()
        self.k = s.top_k
        self.proj = _matrix(s.state, s.width) if recurrent else None
        self.gate = _matrix(s.experts, s.state if recurrent else s.width)
        self.gate_bias = _zeros(s.experts) if s.family == "span" and not recurrent else None

    def forward(self, x_TD: Tensor, state: Tensor | None, cell: nn.GRUCell | None):
        """Returns ids [T, K], weights [T, K] (softmax over all, renormalized), the new state and the balance loss
        N sum_n (share of choices) (mean probability)."""
        with torch.autocast(x_TD.device.type, enabled=False):
            feature = x_TD.float()
            if self.proj is not None:
                state = feature = cell(F.linear(feature, self.proj), state)
            probs_TN = F.linear(feature, self.gate, self.gate_bias).softmax(-1)
            weights_TK, ids_TK = probs_TN.topk(self.k, -1)
            weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
            balance = None
            if self.training:
                N = probs_TN.size(1)
                share_N = (ids_TK.reshape(-1, 1) == torch.arange(N, device=ids_TK.device)).float().mean(0)
                balance = N * (share_N * probs_TN.mean(0)).sum()
        return ids_TK, weights_TK, state, balance


class Experts(nn.Module):
    """SwiGLU experts, or for the span family ReLU experts with biases and dropout."""

    def __init__(self, s: Shape, fast: bool, dtype: torch.dtype, compiled: bool = False):
        super().__init__()
        N, D, W = s.experts, s.width, s.expert_width
        self.fast, self.dtype, self.compiled = fast, dtype, compiled
        self.relu, self.dropout = s.family == "span", s.dropout
        if fast:
            self.w_in, self.w_out = _matrix(N, W if self.relu else 2 * W, D), _matrix(N, D, W)
            if self.relu:
                self.b_in, self.b_out = _zeros(N, W), _zeros(N, D)
            self.lists = None  # of matrices, for a token at a time
        else:
            def many(*shape: int) -> nn.ParameterList:
                return nn.ParameterList(_matrix(*shape) for _ in range(N))

            self.w1, self.w2 = many(W, D), many(D, W)
            if self.relu:
                self.b1, self.b2 = many(W), many(D)
            else:
                self.w3 = many(W, D)

    def _expert(self, n: int, x: Tensor) -> Tensor:
        if self.relu:
            inner = F.dropout(F.linear(x, self.w1[n], self.b1[n]).relu(), self.dropout, self.training)
            return F.linear(inner, self.w2[n], self.b2[n])
        return F.linear(F.silu(F.linear(x, self.w1[n])) * F.linear(x, self.w3[n]), self.w2[n])

    def forward(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        if not self.fast:
            experts = [lambda x, n=n: self._expert(n, x) for n in range(len(self.w1))]
            return ops.experts_loop(x_TD, ids_TK, weights_TK, experts)
        if x_TD.size(0) == 1 and not torch.is_grad_enabled():
            if self.compiled or x_TD.device.type != "cpu":  # a list of the chosen ones would wait for the device
                return ops.experts_one_token_compiled(x_TD, ids_TK, weights_TK, self.w_in, self.w_out)
            if self.lists is None:
                self.lists = list(self.w_in.unbind(0)), list(self.w_out.unbind(0))
            return ops.experts_one_token(x_TD, ids_TK, weights_TK, *self.lists)
        w_in, w_out = self.w_in.to(self.dtype), self.w_out.to(self.dtype)
        if not self.relu:
            return ops.experts_grouped(x_TD, ids_TK, weights_TK, w_in, w_out)
        return ops.experts_grouped(x_TD, ids_TK, weights_TK, w_in, w_out, self.b_in.to(self.dtype),
                                   self.b_out.to(self.dtype), self.dropout if self.training else 0.0)


class MoeLayer(nn.Module):
    """Router and experts: the `layer` workload, and a part of the models."""

    def __init__(self, s: Shape, fast: bool, dtype: torch.dtype, recurrent: bool, compiled: bool = False):
        super().__init__()
        self.router = Router(s, recurrent)
        self.experts = Experts(s, fast, dtype, compiled)

    def forward(self, x_TD: Tensor, state: Tensor | None, cell: nn.GRUCell | None):
        ids_TK, weights_TK, state, balance = self.router(x_TD, state, cell)
        return self.experts(x_TD, ids_TK, weights_TK), state, balance


class LlamaLayer(nn.Module):
    def __init__(self, s: Shape, fast: bool, dtype: torch.dtype, recurrent: bool, compiled: bool):
        super().__init__()
        D = s.width
        self.heads, self.fast, self.dtype = s.heads, fast, dtype
        self.norm1, self.norm2 = nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))
        if fast:
            self.qkv = _matrix(3 * D, D)
        else:
            self.q, self.k, self.v = _matrix(D, D), _matrix(D, D), _matrix(D, D)
        self.o = _matrix(D, D)
        self.moe = MoeLayer(s, fast, dtype, recurrent, compiled)

    def _norm(self, x: Tensor, weight_D: Tensor) -> Tensor:
        if self.fast:
            return F.rms_norm(x, (x.size(-1),), weight_D.to(x.dtype), 1e-5)
        x32 = x.float()
        return weight_D * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)

    def _heads(self, x_BSD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, S, D = x_BSD.shape
        shape = (B, S, self.heads, D // self.heads)
        if not self.fast:
            q, k, v = (F.linear(x_BSD, w).view(shape).transpose(1, 2) for w in (self.q, self.k, self.v))
            return ops.rotate(q, cos, sin).to(v.dtype), ops.rotate(k, cos, sin).to(v.dtype), v
        qk, v = F.linear(x_BSD, self.qkv.to(self.dtype)).split((2 * D, D), -1)
        qk = ops.rotate(qk.view(B, S, 2 * self.heads, -1), cos.unsqueeze(1), sin.unsqueeze(1)).transpose(1, 2)
        return (*qk.chunk(2, 1), v.view(shape).transpose(1, 2))

    def forward(self, x_BSD: Tensor, state, cell, cos: Tensor, sin: Tensor, attend):
        """`attend(q, k, v)` is attention over what it remembers."""
        q, k, v = self._heads(self._norm(x_BSD, self.norm1), cos, sin)
        out = attend(q, k, v).transpose(1, 2).reshape(x_BSD.shape)
        x_BSD = x_BSD + F.linear(out, self.o.to(self.dtype) if self.fast else self.o)
        n_TD = self._norm(x_BSD, self.norm2).view(-1, x_BSD.size(-1))
        y_TD, state, balance = self.moe(n_TD, state, cell)
        return x_BSD + y_TD.view_as(x_BSD), state, balance


class GrowingCache:
    """Keys and values of one layer, concatenated token by token as public code does."""

    def __init__(self):
        self.k = self.v = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first = self.k is None
        self.k, self.v = (k, v) if first else (torch.cat([self.k, k], 2), torch.cat([self.v, v], 2))
        return F.scaled_dot_product_attention(q, self.k, self.v, is_causal=first and q.size(2) > 1)

    def reset(self, k: Tensor, v: Tensor, used: int) -> None:
        self.k, self.v = k, v


class FixedCache:
    """Keys and values of one layer in buffers of fixed size, written in place."""

    def __init__(self, s: Shape, dtype: torch.dtype):
        shape = (s.batch, s.heads, s.prompt + s.length, s.width // s.heads)
        self.k, self.v = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        self.used = 0

    def at(self, position: Tensor):
        """Attention of one token at `position` [1], masked over the whole buffer: no shape ever changes, as
        torch.compile likes it."""
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.k.index_copy_(2, position, k)
            self.v.index_copy_(2, position, v)
            scores = (self.k.float() * q.float()).sum(-1) * q.size(-1) ** -0.5  # [B, H, S]
            scores = scores.masked_fill(torch.arange(self.k.size(2), device=self.k.device) > position, float("-inf"))
            return (scores.softmax(-1).unsqueeze(-1) * self.v.float()).sum(2, keepdim=True).to(q.dtype)
        return attend

    def reset(self, k: Tensor, v: Tensor, used: int) -> None:
        self.used = used

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        begin, self.used = self.used, self.used + q.size(2)
        self.k[:, :, begin : self.used] = k
        self.v[:, :, begin : self.used] = v
        return F.scaled_dot_product_attention(q, self.k[:, :, : self.used], self.v[:, :, : self.used],
                                              is_causal=begin == 0 and q.size(2) > 1)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention within the sequence, nothing remembered."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Llama(nn.Module):
    """Llama-style MoE: RMSNorm, rotary positions, SwiGLU experts, untied embeddings."""

    def __init__(self, s: Shape, fast: bool, dtype: torch.dtype, recurrent: bool, compiled: bool = False):
        super().__init__()
        self.shape, self.fast, self.dtype = s, fast, dtype
        self.embedding, self.head = _matrix(s.vocab, s.width), _matrix(s.vocab, s.width)
        self.norm = nn.Parameter(torch.ones(s.width))
        self.cell = nn.GRUCell(s.state, s.state) if recurrent else None
        self.layers = nn.ModuleList(LlamaLayer(s, fast, dtype, recurrent, compiled) for _ in range(s.layers))
        # Rotary tables: fp32 in the public style, the model's dtype in the fast one.
        tables = ops.rotary_tables(s.prompt + s.length, s.width // s.heads, dtype if fast else torch.float32)
        self.cos, self.sin = tables

    def hidden(self, tokens_BS: Tensor, position: Tensor | int = 0, attend=None) -> tuple[Tensor, Tensor | None]:
        """Normalized output of the last layer and the mean balance loss. attend: one per layer, or None."""
        S = tokens_BS.size(1)
        if isinstance(position, int):
            cos, sin = self.cos[position : position + S], self.sin[position : position + S]
        else:
            cos, sin = self.cos[position], self.sin[position]
        x = F.embedding(tokens_BS, self.embedding)
        if self.fast:
            x = x.to(self.dtype)
        state, balances = None, []
        for i, layer in enumerate(self.layers):
            x, state, balance = layer(x, state, self.cell, cos, sin, attend[i] if attend else causal)
            balances.append(balance)
        return self.layers[0]._norm(x, self.norm), torch.stack(balances).mean() if self.training else None

    def loss(self, tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
        h, balance = self.hidden(tokens_BS)
        h, targets = h.view(-1, self.shape.width), targets_BS.view(-1)
        if self.fast:
            loss = ops.chunked_cross_entropy(h, self.head, None, targets)
        else:
            loss = F.cross_entropy(F.linear(h, self.head).float(), targets)
        return loss + 0.01 * balance

    def last_logits(self, tokens_BS: Tensor, position: Tensor | int = 0, attend=None) -> Tensor:
        """Logits after the last token of each sequence. [B, V]"""
        h, _ = self.hidden(tokens_BS, position, attend)
        return F.linear(h[:, -1], self.head)


class SpanLayer(nn.Module):
    def __init__(self, s: Shape, fast: bool, dtype: torch.dtype, recurrent: bool):
        super().__init__()
        D = s.width
        self.heads, self.fast, self.dtype, self.dropout = s.heads, fast, dtype, s.dropout
        if fast:
            self.kv = _matrix(2 * D, D)
        else:
            self.k, self.v = _matrix(D, D), _matrix(D, D)
        self.q, self.o = _matrix(D, D), _matrix(D, D)
        self.norm1, self.norm_moe, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D), nn.LayerNorm(D)
        self.moe = MoeLayer(s, fast, dtype, recurrent)

    def _heads(self, x: Tensor) -> Tensor:
        B, S, D = x.shape
        return x.view(B, S, self.heads, -1).transpose(1, 2).reshape(B * self.heads, S, -1)

    def _norm(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        if not self.fast:
            return norm(x)
        return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return ops.fast_dropout(x, self.dropout) if self.fast else F.dropout(x, self.dropout)

    def forward(self, h: Tensor, past: Tensor, key_pe: Tensor, state, cell):
        B, M, D = h.shape
        context = torch.cat([past, h], 1)
        p = self.dropout if self.training else 0.0
        if self.fast:
            k, v = F.linear(context, self.kv.to(self.dtype)).chunk(2, -1)
            q = F.linear(h, self.q.to(self.dtype))
            out = ops.span_attention(*map(self._heads, (q, k, v)), key_pe.to(self.dtype), p)
        else:
            q, k, v = F.linear(h, self.q), F.linear(context, self.k), F.linear(context, self.v)
            out = ops.span_attention_plain(*map(self._heads, (q, k, v)), key_pe, p)
        out = out.view(B, self.heads, M, -1).transpose(1, 2).reshape(B, M, D)
        h = self._norm(self.norm1, h + F.linear(out, self.o.to(self.dtype) if self.fast else self.o))
        y_TD, state, balance = self.moe(h.view(-1, D), state, cell)
        h = self._norm(self.norm2, h + self._norm(self.norm_moe, h + self._drop(y_TD.view_as(h))))
        return h, state, balance


class Span(nn.Module):
    """The paper's small-scale post-norm model: attention over the `span` positions before each token, cached block."""

    def __init__(self, s: Shape, fast: bool, dtype: torch.dtype, recurrent: bool):
        super().__init__()
        self.shape, self.fast, self.dtype = s, fast, dtype
        self.embedding, self.head = _matrix(s.vocab, s.width), _matrix(s.vocab, s.width)
        self.head_bias = _zeros(s.vocab)
        self.key_pe = _matrix(s.width // s.heads, s.span)
        self.cell = nn.GRUCell(s.state, s.state) if recurrent else None
        self.layers = nn.ModuleList(SpanLayer(s, fast, dtype, recurrent) for _ in range(s.layers))

    def loss(self, tokens_BS: Tensor, targets_BS: Tensor, pasts: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Loss and the next block's pasts: of every layer's inputs, detached, as many as the span has positions."""
        h = F.embedding(tokens_BS, self.embedding).to(self.dtype)
        state, inputs, balances = None, [], []
        for layer, past in zip(self.layers, pasts):
            span = past.size(1)
            inputs.append(h.detach() if span == h.size(1) else torch.cat([past, h.detach()], 1)[:, -span:])
            h, state, balance = layer(h, past, self.key_pe, state, self.cell)
            h = h.to(self.dtype)
            balances.append(balance)
        h, targets = h.view(-1, self.shape.width), targets_BS.view(-1)
        if self.fast:
            logits = F.linear(h, self.head.to(self.dtype), self.head_bias.to(self.dtype))
        else:
            logits = F.linear(h, self.head, self.head_bias)
        return F.cross_entropy(logits.float(), targets) + 0.01 * torch.stack(balances).mean(), inputs
