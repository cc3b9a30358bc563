"""Registers llama_moe_rnn with transformers' Auto classes when it is imported."""
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from rmoe.hf.configuration_llama_moe_rnn import LlamaMoERNNConfig
from rmoe.hf.modeling_llama_moe_rnn import LlamaMoERNNForCausalLM, LlamaMoERNNModel

AutoConfig.register(LlamaMoERNNConfig.model_type, LlamaMoERNNConfig, exist_ok=True)
AutoModel.register(LlamaMoERNNConfig, LlamaMoERNNModel, exist_ok=True)
AutoModelForCausalLM.register(LlamaMoERNNConfig, LlamaMoERNNForCausalLM, exist_ok=True)
