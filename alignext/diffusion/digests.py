# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Hashes of weights, tensors and settings, by which what was computed once is found again."""

import hashlib
import json
from typing import Any

import torch


def weights_digest(module: torch.nn.Module, ignored_adapter: str | None = None) -> str:
    """A hash of all weights and buffers, the same with and without that peft adapter."""
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in module.state_dict().items()
        if ignored_adapter not in name.split(".")
    }
    return digest(*(item for name in sorted(state) for item in (name, state[name])))


def digest(*items: Any) -> str:
    """SHA-256 of tensors, by type, shape and bytes, and of JSON values."""
    total = hashlib.sha256()
    for item in items:
        if isinstance(item, torch.Tensor):
            total.update(f"{item.dtype}{tuple(item.shape)}".encode())
            total.update(item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            total.update(json.dumps(item, sort_keys=True, default=str).encode())
        total.update(b"\0")
    return total.hexdigest()
