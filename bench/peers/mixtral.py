"""transformers' Mixtral as pip installs it, on the Llama-style workloads. Linear router only: it has no other."""

import copy

import torch

from workloads import Shape


class Unavailable(Exception):
    """This peer cannot run here; the message says why."""


def implementations() -> list[str]:
    """The experts implementations that the installed transformers offers; before version 5 only "eager"."""
    try:
        from transformers.integrations import moe
    except ImportError:
        return ["eager"]
    return ["eager", *(name for name in ("batched_mm", "grouped_mm") if hasattr(moe, f"{name}_experts_forward"))]


def make(s: Shape, implementation: str, training: bool):
    """A randomly initialized MixtralForCausalLM of the workload's shape."""
    try:
        from transformers import MixtralConfig, MixtralForCausalLM
    except ImportError as error:
        raise Unavailable(f"transformers is not installed ({error})") from None
    if implementation not in implementations():
        raise Unavailable(f"this transformers has no experts implementation {implementation!r}")
    if implementation == "batched_mm" and s.tokens > 128:
        # It copies the matrices of the chosen expert for every routed row.
        gib = s.tokens * s.top_k * 3 * s.width * s.expert_width * 2 / 2**30
        raise Unavailable(f"batched_mm copies the matrices for every routed row: {gib:.1f} GiB a layer in bf16")
    config = MixtralConfig(
        vocab_size=s.vocab, hidden_size=s.width, intermediate_size=s.expert_width, num_hidden_layers=s.layers,
        num_attention_heads=s.heads, num_key_value_heads=s.heads, num_local_experts=s.experts,
        num_experts_per_tok=s.top_k, max_position_embeddings=s.prompt + s.length,
        sliding_window=None, tie_word_embeddings=False, output_router_logits=training, router_aux_loss_coef=0.01,
        use_cache=not training)
    config._attn_implementation = "sdpa"
    if implementations() != ["eager"]:
        config._experts_implementation = implementation
    return MixtralForCausalLM(config)


class Decoder:
    """A prompt in the cache, then one token after another, greedy."""

    def __init__(self, model, prompt_BS: torch.Tensor):
        self.model = model
        out = model(input_ids=prompt_BS, use_cache=True)
        self.cache, self.first = out.past_key_values, out.logits[:, -1:].argmax(-1)

    def __call__(self, count: int) -> None:
        cache, token = copy.deepcopy(self.cache), self.first
        for _ in range(count):
            out = self.model(input_ids=token, past_key_values=cache, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)


def last_logits(model, tokens_BS: torch.Tensor) -> torch.Tensor:
    """Logits after the last token of each sequence."""
    return model(input_ids=tokens_BS, use_cache=False, logits_to_keep=1).logits[:, -1]
