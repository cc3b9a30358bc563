"""llama_moe_rnn, RMoE's Llama-style model (arXiv 2408.06793), in plain PyTorch for transformers 4.57 and 5.

The router of layer i reads h_i = GRU(Proj_i(x_i), h_{i-1}), a state of every token that runs over the layers, with one
cell for all layers. The state is a value: it starts as None in every forward pass, goes from layer to layer beside the
hidden state, and nothing of it is cached between tokens or kept in a module; so it survives gradient checkpointing.

This file needs torch and transformers alone. Where `rmoe` is imported, its torch.ops.rmoe take over stage, gate and
experts, with the same numbers.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast

from .configuration_llama_moe_rnn import LlamaMoERNNConfig


def _fast(x):
    """Whether librmoe.so is loaded and has kernels for x. (Its schemas are there only then.)"""
    return x.device.type == "cpu" and hasattr(torch.ops.rmoe, "recurrent_stage")


class LlamaMoERNNRMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class LlamaMoERNNMLP(nn.Module):
    """down(act(gate x) * up x)"""

    def __init__(self, config, size):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, size, bias=False)
        self.down_proj = nn.Linear(size, config.hidden_size, bias=False)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x):
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class LlamaMoERNNExpert(nn.Module):
    """w2(act(w1 x) * w3 x)"""

    def __init__(self, config):
        super().__init__()
        hidden, size = config.hidden_size, config.moe_expert_intermediate_size
        self.w1 = nn.Linear(hidden, size, bias=False)
        self.w2 = nn.Linear(size, hidden, bias=False)
        self.w3 = nn.Linear(hidden, size, bias=False)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x):
        return self.w2(self.act(self.w1(x)) * self.w3(x))


class LlamaMoERNNCell(nn.Module):
    """The cell that all layers share; names and gates of the public code: reset r, update z, candidate n."""

    def __init__(self, config):
        super().__init__()
        self.kind, self.size = config.moe_router_type, config.moe_router_rnn_hidden_size
        for gate in ("r", "z", "n") if self.kind == "gru" else ("n",):
            for side in "ih":
                setattr(self, f"weight_{side}{gate}", nn.Parameter(torch.empty(self.size, self.size)))
                setattr(self, f"bias_{side}{gate}", nn.Parameter(torch.empty(self.size)))
        self.reset_parameters()

    def reset_parameters(self):
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -self.size**-0.5, self.size**-0.5)

    def packed(self, kind, dtype):
        gates = ("r", "z", "n") if self.kind == "gru" else ("n",)
        return torch.cat([getattr(self, kind + gate).to(dtype) for gate in gates])

    def forward(self, x, projection, state):
        """x [T, D], projection [P, D], state [T, P] or None for zero -> [T, P], in fp32 at least."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        w_ih, w_hh = self.packed("weight_i", dtype), self.packed("weight_h", dtype)
        b_ih, b_hh = self.packed("bias_i", dtype), self.packed("bias_h", dtype)
        if _fast(x):
            return torch.ops.rmoe.recurrent_stage(self.kind, x, state, None, projection, w_ih, w_hh, b_ih, b_hh)[0]
        with torch.autocast(x.device.type, enabled=False):
            read = F.linear(F.linear(x.to(dtype), projection.to(dtype)), w_ih, b_ih)
            state = read.new_zeros(read.shape[0], self.size) if state is None else state.to(dtype)
            held = F.linear(state, w_hh, b_hh)
            if self.kind == "rnn":
                return torch.tanh(read + held)
            (ir, iz, inn), (hr, hz, hn) = read.chunk(3, -1), held.chunk(3, -1)
            r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
            n = torch.tanh(inn + r * hn)
            return (1 - z) * n + z * state


class LlamaMoERNNSparseMoeBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.top_k, self.num_experts = config.num_experts_per_tok, config.num_local_experts
        self.recurrent = config.moe_router_type in ("gru", "rnn")
        self.silu = config.hidden_act in ("silu", "swish")
        if self.recurrent:
            state = config.moe_router_rnn_hidden_size
            self.weight1 = nn.Parameter(torch.empty(state, config.hidden_size))
            self.weight2 = nn.Parameter(torch.empty(self.num_experts, state))
            nn.init.normal_(self.weight1, std=config.initializer_range)
            nn.init.normal_(self.weight2, std=config.initializer_range)
        else:
            self.gate = nn.Linear(config.hidden_size, self.num_experts, bias=False)
        self.experts = nn.ModuleList([LlamaMoERNNExpert(config) for _ in range(self.num_experts)])
        self.bias = nn.Parameter(torch.zeros(config.hidden_size)) if config.add_moe_bias else None

    def route(self, feature):
        """softmax over all experts in fp32, the K largest, divided by their sum -> ids, weights [T, K], logits [T, N]"""
        weight = self.weight2 if self.recurrent else self.gate.weight
        if _fast(feature):
            ids, weights, _, logits, _ = torch.ops.rmoe.gate(feature, weight, None, self.top_k, True)
            return ids, weights, logits
        dtype = torch.promote_types(feature.dtype, torch.float32)
        with torch.autocast(feature.device.type, enabled=False):
            logits = F.linear(feature.to(dtype), weight.to(dtype))
        # Of equal ones the lower id, which topk leaves open.
        ids = logits.detach().sort(stable=True, dim=-1, descending=True).indices[:, : self.top_k]
        return ids, logits.gather(1, ids).softmax(-1), logits

    def run_experts(self, x, ids, weights):
        # The op reads the experts as one tensor; putting them together pays where most of them are used.
        if _fast(x) and self.silu and ids.numel() >= 2 * self.num_experts:
            stacked = [torch.stack([getattr(e, w).weight for e in self.experts]) for w in ("w1", "w2", "w3")]
            return torch.ops.rmoe.experts(x, ids, weights, stacked[0], None, stacked[1], None, stacked[2], 0.0, 0,
                                          False)[0]
        y = torch.zeros(x.shape, dtype=weights.dtype, device=x.device)
        for e, expert in enumerate(self.experts):
            token, slot = (ids == e).nonzero(as_tuple=True)
            y = y.index_add(0, token, expert(x[token]).to(y.dtype) * weights[token, slot].unsqueeze(1))
        return y.to(x.dtype)

    def forward(self, hidden, carry, cell):
        x = hidden.reshape(-1, hidden.shape[-1])
        feature = x
        if self.recurrent:
            feature = carry = cell(x, self.weight1, carry)
        ids, weights, logits = self.route(feature)
        y = self.run_experts(x, ids, weights).reshape(hidden.shape)
        return y if self.bias is None else y + self.bias, carry, logits


class LlamaMoERNNAttention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        heads, kv_heads = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.q_proj = nn.Linear(config.hidden_size, heads, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads, bias=config.attention_bias)
        self.o_proj = nn.Linear(heads, config.hidden_size, bias=config.attention_bias)

    def forward(self, x, cos, sin, mask, cache, past):
        split = lambda t: t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # noqa: E731
        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        if cache is not None:
            at = torch.arange(past, past + x.shape[1], device=x.device)
            k, v = cache.update(k, v, self.layer, {"cache_position": at})
        k, v = k.repeat_interleave(self.groups, 1), v.repeat_interleave(self.groups, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(y.transpose(1, 2).flatten(2))


def _rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return (x * cos + torch.cat((-b, a), -1) * sin).to(x.dtype)


class LlamaMoERNNDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config, layer):
        super().__init__()
        self.self_attn = LlamaMoERNNAttention(config, layer)
        self.input_layernorm = LlamaMoERNNRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LlamaMoERNNRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.moe = layer >= config.num_hidden_layers - config.moe_num_layers
        self.share = config.add_moe_share_expert
        self.moe_weight, self.share_weight = config.moe_weight, config.share_weight
        if self.moe:
            self.block_sparse_moe = LlamaMoERNNSparseMoeBlock(config)
            if self.share:
                self.mlp_share = LlamaMoERNNMLP(config, config.moe_share_expert_intermediate_size)
        else:
            self.mlp = LlamaMoERNNMLP(config, config.intermediate_size)

    # All that gradients flow through is a positional tensor: the older kind of checkpointing sees nothing else.
    def forward(self, hidden, carry, cell, cos, sin, mask, cache, past):
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin, mask, cache, past)
        x = self.post_attention_layernorm(hidden)
        logits = None
        if self.moe:
            y, carry, logits = self.block_sparse_moe(x, carry, cell)
            if self.share:
                y = self.moe_weight * y + self.share_weight * self.mlp_share(x)
        else:
            y = self.mlp(x)
        return hidden + y, carry, logits


class LlamaMoERNNPreTrainedModel(PreTrainedModel):
    config_class = LlamaMoERNNConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaMoERNNDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_cache_class = True

    def answer(self, return_dict, out):
        return out if (self.config.return_dict if return_dict is None else return_dict) else out.to_tuple()

    @torch.no_grad()
    def _init_weights(self, module):
        # Through nn.init alone: transformers 5 keeps it off what a checkpoint has already filled.
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, LlamaMoERNNRMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, LlamaMoERNNCell):
            module.reset_parameters()
        elif isinstance(module, LlamaMoERNNSparseMoeBlock):
            if module.recurrent:
                nn.init.normal_(module.weight1, std=std)
                nn.init.normal_(module.weight2, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class LlamaMoERNNModel(LlamaMoERNNPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([LlamaMoERNNDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = LlamaMoERNNRMSNorm(config.hidden_size, config.rms_norm_eps)
        recurrent = config.moe_router_type in ("gru", "rnn") and config.moe_num_layers > 0
        self.rnn_router = LlamaMoERNNCell(config) if recurrent else None
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def frequencies(self, device, dtype):
        """[C / 2], of the rotary angles, as Llama scales them."""
        C, scaling = self.config.head_dim, self.config.rope_scaling or {}
        plain = self.config.rope_theta ** -(torch.arange(0, C, 2, device=device, dtype=dtype) / C)
        kind = scaling.get("rope_type", "default")
        if kind == "default":
            return plain
        scaled = plain / scaling["factor"]
        if kind == "linear":
            return scaled
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
        share = ((turns - low) / (high - low)).clamp(0, 1)  # of the plain one: all where a text holds many turns
        return (1 - share) * scaled + share * plain

    def angles(self, positions, dtype):
        """Cosines and sines [B, 1, S, C] of the rotary angles, computed in fp32 at least."""
        wide = torch.promote_types(dtype, torch.float32)
        frequency = self.frequencies(positions.device, wide)
        angle = positions.to(wide).unsqueeze(-1) * frequency
        angle = torch.cat((angle, angle), -1).unsqueeze(1)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def mask(self, attention_mask, past, x, keys):
        """What each query sees, bool [B, 1, S, keys]; None: all before it, and there is nothing else."""
        S = x.shape[1]
        if attention_mask is not None and attention_mask.dim() == 4:
            return attention_mask.bool() if attention_mask.dtype == torch.bool else attention_mask.to(x.dtype)
        if attention_mask is None and past == 0 and keys == S:
            return None
        query = torch.arange(past, past + S, device=x.device).unsqueeze(1)
        key = torch.arange(keys, device=x.device)
        seen = (key <= query).unsqueeze(0)
        if attention_mask is not None:
            valid = F.pad(attention_mask.bool(), (0, max(keys - attention_mask.shape[1], 0)), value=True)[:, :keys]
            # A padding token sees itself: a row of nothing has no softmax.
            seen = (seen & valid.unsqueeze(1)) | (key == query).unsqueeze(0)
        return seen.unsqueeze(1)

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
                use_cache=None, output_hidden_states=None, output_router_logits=None, output_attentions=None,
                return_dict=None, **kwargs):
        if output_attentions:
            raise ValueError("llama_moe_rnn: output_attentions: attention weights are not computed")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        config = self.config
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        keys = past + hidden.shape[1]
        if past_key_values is not None:
            longest = past_key_values.get_max_cache_shape() if hasattr(past_key_values, "get_max_cache_shape") else None
            if longest is not None and longest > 0:  # a cache of fixed size hands out all of it
                keys = int(longest)
        if position_ids is None:
            position_ids = torch.arange(past, past + hidden.shape[1], device=hidden.device).unsqueeze(0)
        cos, sin = self.angles(position_ids, hidden.dtype)
        mask = self.mask(attention_mask, past, hidden, keys)

        carry, all_hidden, router_logits = None, [], []
        for layer in self.layers:
            all_hidden.append(hidden)
            hidden, carry, logits = layer(hidden, carry, self.rnn_router, cos, sin, mask, past_key_values, past)
            if logits is not None:
                router_logits.append(logits)
        hidden = self.norm(hidden)
        wanted = config.output_router_logits if output_router_logits is None else output_router_logits
        states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return self.answer(return_dict, MoeModelOutputWithPast(
            last_hidden_state=hidden, past_key_values=past_key_values if use_cache else None,
            hidden_states=(*all_hidden, hidden) if states else None,
            router_logits=tuple(router_logits) if wanted else None))


def balance_loss(router_logits, top_k, attention_mask=None):
    """N sum_n f_n P_n over the tokens of all layers as one batch, f_n the rows of expert n per token: top_k when all is
    even. The Switch loss in transformers' normalization; padding counts nowhere."""
    logits = torch.cat([t.reshape(-1, t.shape[-1]) for t in router_logits])
    N = logits.shape[1]
    probs = logits.softmax(-1)
    ids = logits.detach().sort(stable=True, dim=-1, descending=True).indices[:, :top_k]
    chosen = F.one_hot(ids, N).sum(1).to(probs.dtype)
    if attention_mask is None:
        valid = probs.new_ones(logits.shape[0], 1)
    else:
        valid = attention_mask.reshape(-1, 1).repeat(len(router_logits), 1).to(probs)
    tokens = valid.sum().clamp_min(1)
    return N * ((chosen * valid).sum(0) / tokens * ((probs * valid).sum(0) / tokens)).sum()


class LlamaMoERNNForCausalLM(LlamaMoERNNPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaMoERNNModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
                labels=None, use_cache=None, output_hidden_states=None, output_router_logits=None, output_attentions=None,
                return_dict=None, logits_to_keep=0, **kwargs):
        """labels [B, S], -100 ignored, shifted here. With output_router_logits the result has router_logits, one [T, N]
        per MoE layer, and aux_loss, which `loss` holds times router_aux_loss_coef."""
        wanted = self.config.output_router_logits if output_router_logits is None else output_router_logits
        out = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache,
                         output_hidden_states, wanted, output_attentions, return_dict=True)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, keep])
        loss = aux_loss = None
        if labels is not None:
            count = kwargs.get("num_items_in_batch")
            targets = F.pad(labels, (0, 1), value=-100)[:, 1:].reshape(-1).to(logits.device)
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).reshape(-1, logits.shape[-1])
            loss = F.cross_entropy(wide, targets, reduction="mean" if count is None else "sum")
            loss = loss if count is None else loss / count
        if wanted and out.router_logits:
            mask = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
            if mask is not None and mask.shape[1] != out.last_hidden_state.shape[1]:
                mask = mask[:, -out.last_hidden_state.shape[1]:]
            aux_loss = balance_loss(out.router_logits, self.config.num_experts_per_tok, mask)
            if loss is not None:
                loss = loss + self.config.router_aux_loss_coef * aux_loss.to(loss.device)
        return self.answer(return_dict, MoeCausalLMOutputWithPast(
            loss=loss, aux_loss=aux_loss, logits=logits, past_key_values=out.past_key_values,
            hidden_states=out.hidden_states, router_logits=out.router_logits))


# So that save_pretrained writes config.json with an auto_map and both files beside it.
LlamaMoERNNConfig.register_for_auto_class()
LlamaMoERNNModel.register_for_auto_class("AutoModel")
LlamaMoERNNForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["LlamaMoERNNForCausalLM", "LlamaMoERNNModel", "LlamaMoERNNPreTrainedModel"]
