"""Configuration of llama_moe_rnn, RMoE's Llama-style model (arXiv 2408.06793). Needs transformers alone."""
from transformers import PretrainedConfig


class LlamaMoERNNConfig(PretrainedConfig):
    """The fields of the public RMoE code beside Llama's.

    moe_num_layers: the LAST so many layers are MoE, those before are dense (default: all); num_local_experts: N;
    num_experts_per_tok: K; moe_expert_intermediate_size: width of an expert (default: intermediate_size);
    moe_router_type: "gru", "rnn", or anything else for a linear router without memory; moe_router_rnn_hidden_size: width
    of the state; add_moe_bias: a learned vector is added to the experts' sum; add_moe_share_expert: an expert that every
    token uses, moe_share_expert_intermediate_size wide, y = moe_weight * experts + share_weight * shared;
    router_aux_loss_coef: weight of the balance loss where output_router_logits asks for it. rope_scaling: None, or Llama's
    "linear" or "llama3".
    """

    model_type = "llama_moe_rnn"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                 num_attention_heads=32, num_key_value_heads=None, head_dim=None, hidden_act="silu",
                 max_position_embeddings=2048, initializer_range=0.02, rms_norm_eps=1e-6, use_cache=True,
                 rope_theta=10000.0, rope_scaling=None, attention_bias=False, num_experts_per_tok=2, num_local_experts=8,
                 router_aux_loss_coef=0.001, output_router_logits=False, moe_num_layers=None,
                 moe_expert_intermediate_size=None, add_moe_share_expert=False,
                 moe_share_expert_intermediate_size=None, share_weight=0.5, moe_weight=0.5, add_moe_bias=False,
                 moe_router_type="gru", moe_router_rnn_hidden_size=256, pad_token_id=None, bos_token_id=1,
                 eos_token_id=2, tie_word_embeddings=False, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.head_dim = hidden_size // num_attention_heads if head_dim is None else head_dim
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        parameters = kwargs.pop("rope_parameters", None) or {}  # how transformers 5 writes it
        theta = parameters.get("rope_theta", rope_theta)
        scaling = {key: value for key, value in (rope_scaling or parameters).items() if key != "rope_theta"}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ("default", "linear", "llama3"):
            raise ValueError(f"llama_moe_rnn: rope_type is {kind!r}, expected 'default', 'linear' or 'llama3'")
        self.attention_bias = attention_bias
        self.num_experts_per_tok = num_experts_per_tok
        self.num_local_experts = num_local_experts
        self.router_aux_loss_coef = router_aux_loss_coef
        self.output_router_logits = output_router_logits
        self.moe_num_layers = num_hidden_layers if moe_num_layers is None else moe_num_layers
        if not 0 <= self.moe_num_layers <= num_hidden_layers:
            raise ValueError(f"llama_moe_rnn: moe_num_layers is {moe_num_layers}, expected 0 to {num_hidden_layers}")
        self.moe_expert_intermediate_size = moe_expert_intermediate_size or intermediate_size
        self.add_moe_share_expert = add_moe_share_expert
        self.moe_share_expert_intermediate_size = moe_share_expert_intermediate_size or intermediate_size
        self.share_weight = share_weight
        self.moe_weight = moe_weight
        self.add_moe_bias = add_moe_bias
        self.moe_router_type = moe_router_type
        self.moe_router_rnn_hidden_size = moe_router_rnn_hidden_size
        super().__init__(pad_token_id=pad_token_id, bos_token_id=bos_token_id, eos_token_id=eos_token_id,
                         tie_word_embeddings=tie_word_embeddings, **kwargs)
        # Below super(): transformers 5 would fold them into a table of its own.
        self.rope_theta = theta
        self.rope_scaling = None if kind == "default" else {**scaling, "rope_type": kind}


__all__ = ["LlamaMoERNNConfig"]
