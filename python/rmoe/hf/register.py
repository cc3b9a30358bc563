"""Registers llama_moe_rnn with transformers' Auto classes when it is imported. The model's code is read when it is used."""
from transformers import AutoConfig

from rmoe.hf.configuration_llama_moe_rnn import LlamaMoERNNConfig

AutoConfig.register(LlamaMoERNNConfig.model_type, LlamaMoERNNConfig, exist_ok=True)


def _models():
    from transformers import AutoModel, AutoModelForCausalLM

    from rmoe.hf.modeling_llama_moe_rnn import LlamaMoERNNForCausalLM, LlamaMoERNNModel
    AutoModel.register(LlamaMoERNNConfig, LlamaMoERNNModel, exist_ok=True)
    AutoModelForCausalLM.register(LlamaMoERNNConfig, LlamaMoERNNForCausalLM, exist_ok=True)


_models()
