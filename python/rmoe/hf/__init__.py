"""llama_moe_rnn for transformers. `import rmoe` registers it with the Auto classes as soon as transformers is there."""
