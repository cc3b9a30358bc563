"""The ops of librmoe.so, one function each: `torch.ops.rmoe` with defaults, or the plain formula where it is missing.

T tokens, D model width, P state width, R width of what a router reads (D or P), N experts, K experts per token, F
expert width, V vocabulary, B batch, S sequence, H heads, C head width. "Any float" means fp32, bf16 or fp64; others go by
the formula in ATen. All tensors of a call are on one device and may have any strides; T may be 0. Results are
contiguous unless said otherwise. Weights may stay fp32 masters beside bf16 hidden states: they are read in the hidden
states' dtype, and their gradients are summed in fp32.

Each op has a schema, kernels for the CPU and a formula for other devices, a meta kernel (so torch.compile and
torch.export trace it, with dynamic shapes too), a backward of its own (first derivatives only) and an autocast rule.
Arguments that do not fit raise RuntimeError with the op, the argument, its shape and what was expected.

The formulas cited as "paper" are those of arXiv 2408.06793.
"""
import torch

from rmoe import plain

__all__ = ["add_layer_norm", "add_rms_norm", "added_gate", "causal_attention", "experts", "gate", "layer_norm", "linear",
           "linear_cross_entropy", "recurrent_stage", "rms_norm", "rotate", "span_attention"]


def _has_ops():
    import rmoe
    return rmoe.ops_available


def linear(x, w, b=None):
    """x W^T + b.

    x [..., D] any float; w [O, D]; b [O] or None. Returns [..., O] in x's dtype. Autocast: x goes to its dtype.
    Source: torch.nn.functional.linear.
    """
    return torch.ops.rmoe.linear(x, w, b) if _has_ops() else plain.linear(x, w, b)


def recurrent_stage(cell, x, state, cell_state, projection, w_ih, w_hh, b_ih, b_hh):
    """The recurrent stage of a router in one op, (h_i, c_i) = Cell(Proj_i(x_i), (h_{i-1}, c_{i-1})).

    cell "gru", "rnn" or "lstm"; x [T, D] any float; state and, for the lstm, cell_state [T, P], or None for zero;
    projection [P, D], or None: the cell reads x; w_ih [GP, P] ([GP, D] without a projection), w_hh [GP, P], biases
    [GP], G = 3, 1 and 4 gates in torch.nn's order. Returns h_i [T, P] and c_i [T, P] (empty but for the lstm), in fp32,
    for an fp64 x in fp64. Autocast changes nothing. Backward computes projection and gates again.
    Source: paper, section 3 and Table 6.
    """
    op = torch.ops.rmoe.recurrent_stage if _has_ops() else plain.recurrent_stage
    return op(cell, x, state, cell_state, projection, w_ih, w_hh, b_ih, b_hh)


def gate(feature, weight, bias, top_k, renormalize=True):
    """Router head: logits = feature W^T + b, probs = softmax(logits), the top_k experts and their weights.

    feature [T, R] any float; weight [N, R]; bias [N] or None; 1 <= top_k <= N. Returns ids [T, K] int64 by falling
    probability, of equal ones the lower id first; weights [T, K], the chosen probabilities, with renormalize divided by
    their sum; probs [T, N]; logits [T, N]; counts [N] int64, tokens per expert. Floats are fp32, for an fp64 feature
    fp64, under autocast too. Differentiable through weights, probs and logits.
    Source: paper, equation 1; Shazeer et al. 2017.
    """
    op = torch.ops.rmoe.gate if _has_ops() else plain.gate
    return op(feature, weight, bias, top_k, renormalize)


def added_gate(feature, weight, bias, added, top_k, renormalize=True):
    """gate with logits = feature W^T + b + added: for a router that reads x, beside a gate on the recurrent state.

    added [T, N] any float, read in fp32 (fp64 for an fp64 feature); the rest as in gate. Returns what gate does; zeros in
    added leave every result as gate gives it, bit for bit. Differentiable in added, too.
    Source: rmoe's own, for `rmoe retrofit` (model.moe.state_gate).
    """
    op = torch.ops.rmoe.added_gate if _has_ops() else plain.added_gate
    return op(feature, weight, bias, added, top_k, renormalize)


def experts(x, ids, weights, w1, b1, w2, b2, w3=None, dropout_p=0.0, dropout_key=0):
    """y_t = sum_k weights_tk E_{ids_tk}(x_t), without capacity: no token is dropped.

    E(x) = W2 dropout(silu(W1 x + b1) * W3 x) + b2, or W2 dropout(relu(W1 x + b1)) + b2 without w3.
    x [T, D] any float; ids [T, K] int64, an id outside [0, N) is an unused slot; weights [T, K]; w1, w3 [N, F, D]; w2
    [N, D, F]; b1 [N, F], b2 [N, D] or None; 0 <= dropout_p < 1, whose mask is a function of dropout_key alone. Returns
    [T, D] in x's dtype. Differentiable in x, weights and the parameters. Autocast: x goes to its dtype.
    Source: paper, section 2; MegaBlocks, Gale et al. 2022.
    """
    if not _has_ops():
        return plain.experts(x, ids, weights, w1, b1, w2, b2, w3, dropout_p, dropout_key)
    return torch.ops.rmoe.experts(x, ids, weights, w1, b1, w2, b2, w3, dropout_p, dropout_key, False)[0]


def rms_norm(x, weight, eps=1e-6):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    x [..., D] any float, D > 0; weight [D]. Returns x's shape and dtype, computed in fp32 at least.
    Source: Zhang and Sennrich 2019.
    """
    return torch.ops.rmoe.rms_norm(x, weight, eps) if _has_ops() else plain.rms_norm(x, weight, eps)


def layer_norm(x, weight, bias, eps=1e-5):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last dimension.

    x [..., D] any float, D > 0; weight, bias [D]. Returns x's shape and dtype, computed in fp32 at least.
    Source: Ba et al. 2016.
    """
    return torch.ops.rmoe.layer_norm(x, weight, bias, eps) if _has_ops() else plain.layer_norm(x, weight, bias, eps)


def add_rms_norm(x, branch, weight, eps=1e-6, dropout_p=0.0, dropout_key=0):
    """s = x + dropout(branch) and rms_norm(s), in one pass. branch has x's shape and dtype. Returns (s, normed).
    Autocast: x and branch go to the wider of their dtypes."""
    op = torch.ops.rmoe.add_rms_norm if _has_ops() else plain.add_rms_norm
    return op(x, branch, weight, eps, dropout_p, dropout_key)


def add_layer_norm(x, branch, weight, bias, eps=1e-5, dropout_p=0.0, dropout_key=0):
    """s = x + dropout(branch) and layer_norm(s), in one pass. branch has x's shape and dtype. Returns (s, normed).
    Autocast: x and branch go to the wider of their dtypes."""
    op = torch.ops.rmoe.add_layer_norm if _has_ops() else plain.add_layer_norm
    return op(x, branch, weight, bias, eps, dropout_p, dropout_key)


def rotate(x, cos, sin, backwards=False):
    """Rotary positions: channels c and c + C/2 as a pair, turned by the angle at [position, c]; backwards: turned back.

    x [B, S, H, C] any float, C even; cos, sin [S, C/2] fp32 (fp64 for an fp64 x). Returns x's shape and dtype.
    Differentiable in x. Source: Su et al. 2021, in transformers' order of channels.
    """
    return (torch.ops.rmoe.rotate if _has_ops() else plain.rotate)(x, cos, sin, backwards)


def causal_attention(q, k, v, cos=None, sin=None):
    """softmax(q k^T / sqrt(C)) v, where query i sees the keys 0 .. Sk - Sq + i.

    q [B, Sq, H, C]; k, v [B, Sk, Hkv, C] with Sk >= Sq and H a multiple of Hkv; one float dtype. With cos and sin
    [Sq, C/2] q and k are turned first, and Sk must be Sq. Returns [B, Sq, H, C]. Autocast: q, k, v go to its dtype.
    Source: Dao et al. 2022.
    """
    if not _has_ops():
        return plain.causal_attention(q, k, v, cos, sin)
    return torch.ops.rmoe.causal_attention(q, k, v, cos, sin)[0]


def span_attention(q, k, v, key_pe, dropout_p=0.0, dropout_key=0):
    """Attention of the paper's small models: a query sees exactly the S positions before it, not itself,
    score(m, l) = (q_m . k_{m+l} + q_m . key_pe_l) / sqrt(C).

    q [B, H, M, C]; k, v [B, H, S + M, C]: the S positions before the block, then the block; key_pe [C, S]. Returns
    [B, H, M, C] in the memory order [B, M, H, C]. Autocast: q, k, v go to its dtype.
    Source: paper, section 4.1; Sukhbaatar et al. 2019.
    """
    if not _has_ops():
        return plain.span_attention(q, k, v, key_pe, dropout_p, dropout_key)
    return torch.ops.rmoe.span_attention(q, k, v, key_pe, dropout_p, dropout_key)[0]


def linear_cross_entropy(x, w, b, targets, ignore_index=-100, z_loss=0.0, scale=1.0):
    """Cross-entropy of a language model's head without its logits: they are made for a few tokens at a time.

    x [T, D] any float; w [V, D]; b [V] or None; targets [T] int64 in [0, V), or ignore_index. Returns loss, scale times
    the mean over the tokens that count of lse - logit of the target + z_loss lse^2 (0 where none counts), and losses
    [T] of each token without scale and z-loss, which are not differentiable; both in fp32, for an fp64 x in fp64.
    Gradients are made in the forward pass. Autocast: x goes to its dtype.
    Source: Wijmans et al. 2024; z-loss: PaLM, section 5.
    """
    op = torch.ops.rmoe.linear_cross_entropy if _has_ops() else plain.linear_cross_entropy
    return op(x, w, b, targets, ignore_index, z_loss, scale)
