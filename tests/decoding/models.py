# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Tiny language models whose caches differ, for the tokenizer of the embedded one."""

from transformers import Gemma2Config, GPT2Config, Lfm2Config, LlamaConfig, Mamba2Config, MistralConfig


WIDTH = {"vocab_size": 4096, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 2}
IDS = {"bos_token_id": 1, "eos_token_id": 1}
TINY = {
    "llama": LlamaConfig(**WIDTH, **IDS, intermediate_size=64, num_key_value_heads=1),
    # positions that are learned must come from the mask
    "gpt2": GPT2Config(vocab_size=4096, n_embd=32, n_layer=2, n_head=2, n_positions=256, pad_token_id=2, **IDS),
    # windows shorter than the texts, everywhere or in every other layer
    "mistral": MistralConfig(**WIDTH, **IDS, intermediate_size=64, num_key_value_heads=1, sliding_window=12),
    "gemma2": Gemma2Config(
        **WIDTH, **IDS, intermediate_size=64, num_key_value_heads=1, head_dim=16, sliding_window=12
    ),
    # convolutions beside attention
    "lfm2": Lfm2Config(
        **WIDTH, **IDS, intermediate_size=64, num_key_value_heads=1, layer_types=["conv", "full_attention"]
    ),
    # a recurrent state instead of keys and values
    "mamba2": Mamba2Config(
        vocab_size=4096, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16, state_size=8, n_groups=1,
        pad_token_id=2, **IDS
    ),
}  # fmt: skip
