"""Modules: the recurrent router, grouped experts, and the MoE layer made of both."""
from typing import NamedTuple, Optional

import torch
from torch import nn

from rmoe import ops

GATES = {"gru": ("r", "z", "n"), "rnn": ("n",), "lstm": ("i", "f", "g", "o")}


class Routing(NamedTuple):
    """The choice of one layer: T tokens, K slots each, N experts."""

    ids: torch.Tensor  #: [T, K] int64, by falling probability
    weights: torch.Tensor  #: [T, K], what the experts' outputs are multiplied by
    probs: torch.Tensor  #: [T, N], softmax over all experts
    logits: torch.Tensor  #: [T, N]
    counts: torch.Tensor  #: [N] int64, tokens per expert; not differentiable


class RecurrentCell(nn.Module):
    """The cell of the layer recurrence, which all layers of a model share: the parameters of torch.nn.GRUCell, RNNCell
    or LSTMCell of width P.

    stage: "gru", "rnn" or "lstm"; width: P; input_width: of what it reads, P by default.
    """

    def __init__(self, stage="gru", width=128, input_width=None, device=None, dtype=None):
        super().__init__()
        if stage not in GATES:
            raise ValueError(f"RecurrentCell: stage is {stage!r}, expected one of {', '.join(GATES)}")
        if width < 1:
            raise ValueError(f"RecurrentCell: width is {width}, expected at least 1")
        self.stage, self.width, self.input_width = stage, width, input_width or width
        rows, kind = len(GATES[stage]) * width, {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(rows, self.input_width, **kind))
        self.weight_hh = nn.Parameter(torch.empty(rows, width, **kind))
        self.bias_ih = nn.Parameter(torch.empty(rows, **kind))
        self.bias_hh = nn.Parameter(torch.empty(rows, **kind))
        self.reset_parameters()

    def reset_parameters(self):
        """As torch.nn's cells: uniform within 1 / sqrt(P)."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -self.width**-0.5, self.width**-0.5)

    def extra_repr(self):
        return f"{self.stage}, width={self.width}"


class RecurrentRouter(nn.Module):
    """RMoE's router: h_i = Cell(Proj_i(x_i), h_{i-1}), logits = W h_i, the top_k experts.

    hidden: D, model width; experts: N; top_k: K; stage: "gru", "rnn", "lstm", or "none" for a router without memory,
    whose gate reads x; width: P, of the state; cell: the RecurrentCell to use, so that the layers of a model share one
    (None: an own one); project: with the layer's own Proj_i [P, D], without it the cell reads x; bias: of the gate;
    renormalize: weights of the chosen experts sum to 1; detach_state: no gradient flows to earlier layers through the
    state; pass_state: False starts every layer from zero (the paper's "NP").

    forward(x, carry) -> (routing, carry). x [..., D] of T tokens in all. carry [T, P], for the lstm [T, 2P] (h, then c),
    is None at the first MoE layer of every forward pass and whatever the layer before returned at the others; dense
    layers pass it by. It is a plain tensor, and nothing of it is kept. Stage and gate compute in fp32 whatever x is.
    """

    def __init__(self, hidden, experts, top_k, stage="gru", width=128, *, cell: Optional[RecurrentCell] = None,
                 project=True, bias=False, renormalize=True, detach_state=False, pass_state=True, device=None,
                 dtype=None):
        super().__init__()
        if not 1 <= top_k <= experts:
            raise ValueError(f"RecurrentRouter: top_k is {top_k}, expected 1 to experts = {experts}")
        self.hidden, self.experts, self.top_k, self.renormalize = hidden, experts, top_k, renormalize
        self.detach_state, self.pass_state = detach_state, pass_state
        kind = {"device": device, "dtype": dtype}
        self.cell = self.projection = None
        feature = hidden
        if stage != "none":
            reads = width if project else hidden
            self.cell = RecurrentCell(stage, width, reads, **kind) if cell is None else cell
            if (self.cell.stage, self.cell.width, self.cell.input_width) != (stage, width, reads):
                raise ValueError(f"RecurrentRouter: the cell is {self.cell.stage} {self.cell.input_width} ->"
                                 f" {self.cell.width}, expected {stage} {reads} -> {width}")
            if project:
                self.projection = nn.Parameter(torch.empty(width, hidden, **kind))
            feature = width
        elif cell is not None:
            raise ValueError("RecurrentRouter: stage 'none' has no use for a cell")
        self.weight = nn.Parameter(torch.empty(experts, feature, **kind))
        self.bias = nn.Parameter(torch.empty(experts, **kind)) if bias else None
        self.reset_parameters()

    def reset_parameters(self):
        """As torch.nn.Linear: uniform within 1 / sqrt(inputs). A given cell is left as it is."""
        for parameter in (self.projection, self.weight, self.bias):
            if parameter is not None:
                bound = (self.weight if parameter is self.bias else parameter).shape[1] ** -0.5
                nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x, carry=None):
        x = x.reshape(-1, x.shape[-1])
        if self.cell is None:
            return Routing(*ops.gate(x, self.weight, self.bias, self.top_k, self.renormalize)), carry
        cell, state, cell_state = self.cell, None, None
        if carry is not None and self.pass_state:
            carry = carry.detach() if self.detach_state else carry
            state, cell_state = carry.chunk(2, 1) if cell.stage == "lstm" else (carry, None)
        h, c = ops.recurrent_stage(cell.stage, x, state, cell_state, self.projection, cell.weight_ih, cell.weight_hh,
                                   cell.bias_ih, cell.bias_hh)
        routing = Routing(*ops.gate(h, self.weight, self.bias, self.top_k, self.renormalize))
        return routing, torch.cat((h, c), 1) if cell.stage == "lstm" else h

    def extra_repr(self):
        return f"hidden={self.hidden}, experts={self.experts}, top_k={self.top_k}"


class GroupedExperts(nn.Module):
    """The N experts of a layer as one operator: W2 (silu(W1 x) * W3 x), or W2 relu(W1 x) with gated=False.

    hidden: D; width: F; experts: N; bias: b1 [N, F] and b2 [N, D]. forward(x, routing) -> y: x [..., D] of T tokens,
    y like x, y_t = sum_k weights_tk E_{ids_tk}(x_t). No token is dropped.
    """

    def __init__(self, hidden, width, experts, *, gated=True, bias=False, device=None, dtype=None):
        super().__init__()
        kind = {"device": device, "dtype": dtype}
        self.w1 = nn.Parameter(torch.empty(experts, width, hidden, **kind))
        self.w2 = nn.Parameter(torch.empty(experts, hidden, width, **kind))
        self.w3 = nn.Parameter(torch.empty(experts, width, hidden, **kind)) if gated else None
        self.b1 = nn.Parameter(torch.empty(experts, width, **kind)) if bias else None
        self.b2 = nn.Parameter(torch.empty(experts, hidden, **kind)) if bias else None
        self.reset_parameters()

    def reset_parameters(self):
        """As torch.nn.Linear: uniform within 1 / sqrt(inputs)."""
        for parameter, weight in ((self.w1, self.w1), (self.w2, self.w2), (self.w3, self.w3), (self.b1, self.w1),
                                  (self.b2, self.w2)):
            if parameter is not None:
                nn.init.uniform_(parameter, -weight.shape[2] ** -0.5, weight.shape[2] ** -0.5)

    def forward(self, x, routing):
        rows = x.reshape(-1, x.shape[-1])
        y = ops.experts(rows, routing.ids, routing.weights, self.w1, self.b1, self.w2, self.b2, self.w3)
        return y.reshape(x.shape)


class MoELayer(nn.Module):
    """A router and its experts: y, carry, routing = layer(x, carry).

    hidden, experts, top_k and the further arguments as in RecurrentRouter; expert_width, gated as in GroupedExperts. The
    routings of all layers are what the functions in rmoe.balance take.
    """

    def __init__(self, hidden, experts, top_k, expert_width, stage="gru", width=128, *, gated=True, device=None,
                 dtype=None, **router):
        super().__init__()
        self.router = RecurrentRouter(hidden, experts, top_k, stage, width, device=device, dtype=dtype, **router)
        self.experts = GroupedExperts(hidden, expert_width, experts, gated=gated, device=device, dtype=dtype)

    def forward(self, x, carry=None):
        routing, carry = self.router(x, carry)
        return self.experts(x, routing), carry, routing
