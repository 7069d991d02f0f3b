# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The loop that all trainings share: optimizers, checkpoints, an average of the weights."""

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch


Batch = Callable[[int, torch.Generator], torch.Tensor]  # (step, generator) -> loss
MINUTES = 8  # between two checkpoints


def make_optimizers(model: torch.nn.Module, config: dict) -> dict[str, torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices inside the blocks where the configuration has a rate for it (`muon`)."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    inner = [n for n, p in trained.items() if "muon" in config and "block" in n and p.ndim == 2 and min(p.shape) > 32]
    outer = [p for name, p in trained.items() if name not in inner]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "optimizer": torch.optim.AdamW(
            outer, lr=config["lr"], betas=config.get("betas", (0.9, 0.99)), weight_decay=0.01
        )
    }
    if inner:
        optimizers["muon"] = torch.optim.Muon([trained[n] for n in inner], lr=config["muon"], weight_decay=0.0)
    return optimizers


def fit(model: torch.nn.Module, loss_fn: Batch, config: dict, folder: Path, export: Callable) -> None:
    """Minimise `loss_fn`, keep an average of the weights, and `export` it at the end and at `export_at` steps."""
    folder.mkdir(parents=True, exist_ok=True)
    if "start" in config:
        model.load_state_dict(torch.load(config["start"], weights_only=True)["average"])
    average, start, spent = copy.deepcopy(model).requires_grad_(False), 0, 0.0
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizers = make_optimizers(model, config)
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in optimizers.items()}
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(state[name])
        start, spent = state["step"], state["seconds"]
    began, saved, losses = time.time() - spent, time.time(), []
    for step in range(start, config["steps"]):
        rng = torch.Generator().manual_seed(config["seed"] * 1_000_003 + step)
        torch.manual_seed(config["seed"] * 1_000_003 + step)  # for noise drawn inside the models
        warm = min(1.0, (step + 1) / config["warmup"])
        share = warm * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / config.get("horizon", config["steps"]))))
        share *= min(1.0, (config["steps"] - step) / config.get("decay", 1))  # where a run ends before its horizon
        for name, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = rates[name] * share
        with torch.autocast("cpu", torch.bfloat16, enabled=config.get("bf16", False)):
            loss = loss_fn(step, rng)
        if not loss.isfinite():
            kept = f"{checkpoint} is from before it" if checkpoint.exists() else "nothing was written before it"
            raise FloatingPointError(f"The loss of step {step + 1} is {loss.item()}; {kept}. Try a lower `lr`.")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        model.zero_grad(set_to_none=True)
        decay = min(config["ema"], (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses.append(loss.item())
        done = step + 1
        if done % 50 == 0:
            print(f"step {done} loss {sum(losses[-50:]) / 50:.4f} seconds {time.time() - began:.0f}", flush=True)
        if time.time() - saved > MINUTES * 60 or done == config["steps"]:
            state = {"model": model.state_dict(), "average": average.state_dict()}
            state |= {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
            torch.save(state | {"step": done, "seconds": time.time() - began}, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").rename(checkpoint)
            saved = time.time()
        if done in config.get("export_at", []) or done == config["steps"]:
            for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
                mine.copy_(theirs)
            export(copy.deepcopy(average).eval())


def fingerprint(*models: torch.nn.Module) -> str:
    """Names a cached file by the weights that it was made with."""
    found = hashlib.sha256()
    for model in models:
        for tensor in model.state_dict().values():
            found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]


def load_in_float32(folder: Path) -> None:
    """Let transformers, which opens a checkpoint in the dtype of its config, open float16 weights in float32."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")


def forget_origin(folder: Path) -> None:
    """Take out of all configurations in a folder where their models were loaded from on this machine."""
    for file in folder.rglob("*config.json"):
        config = json.loads(file.read_text())
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n")


def compact(folder: Path) -> None:
    """Write the tokenizers in a folder without the spaces, which are half of their files."""
    for file in folder.rglob("tokenizer.json"):
        tokenizer = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
