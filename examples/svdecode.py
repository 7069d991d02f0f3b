# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Teach a story model to answer questions by a short LoRA training, then extrapolate that while it answers.

Runs offline in about a minute on a CPU, on the model that comes with the package:

    python examples/svdecode.py

A story names the colours of two things; a question asks for one of them.
"""

import argparse
import random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList

from alignext import SVDecodeLogitsProcessor, calibrate_svdecode, mini


NAMES = "Tom Lily Ben Mia Sam Anna Max Sue Jack Sara Tim Lucy Amy Bob Jane Leo".split()
COLOURS = "red blue green yellow white black pink brown".split()
THINGS = "ball hat box car book cup kite boat bag doll".split()


def questions(count: int, seed: int) -> list[dict[str, str]]:
    """Prompts with their answers."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        name, (first, second), (one, other) = draw.choice(NAMES), draw.sample(THINGS, 2), draw.sample(COLOURS, 2)
        asked, answer = draw.choice([(first, one), (second, other)])
        prompt = f"{name} had a {one} {first} and a {other} {second}. What color was the {asked}? It was"
        found.append({"prompt": prompt, "completion": f" {answer}."})
    return found


def encoded(tokenizer: Any, rows: list[dict[str, str]]) -> dict[str, torch.Tensor]:
    """What a model reads in training; only answers count."""
    texts = [[*tokenizer(row["prompt"] + row["completion"]).input_ids, tokenizer.eos_token_id] for row in rows]
    starts, width = [len(tokenizer(row["prompt"]).input_ids) for row in rows], max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    labels = ids.masked_fill(mask == 0, -100)
    for row, start in zip(labels, starts, strict=True):
        row[:start] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def warm_start(name: str, tokenizer: Any, rows: list[dict[str, str]], seed: int, steps: int, rate: float) -> Any:
    """A LoRA, trained for a few steps of 8 questions."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(name)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear"))
    optimizer = torch.optim.AdamW((w for w in model.parameters() if w.requires_grad), lr=rate)
    for step in range(steps):
        batch = [rows[(step * 8 + i) % len(rows)] for i in range(8)]
        model(**encoded(tokenizer, batch)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def exact(model: Any, tokenizer: Any, rows: list[dict[str, str]], **settings: Any) -> list[float]:
    """1 where the greedy answer is the right one, word for word; with settings, by SVDecode."""
    batch = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True, padding_side="left")
    processors = LogitsProcessorList()
    if settings:
        processors.append(SVDecodeLogitsProcessor(model, prompt_attention_mask=batch.attention_mask, **settings))
    ids = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        do_sample=False,
        max_new_tokens=3,
        logits_processor=processors,
    )
    texts = tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return [
        float(t.partition(".")[0].strip() == r["completion"].strip(" .")) for t, r in zip(texts, rows, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(mini.path("lm")), help="any causal language model with a tokenizer")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps of 8 questions")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    train, held_out, test = questions(256, 0), questions(64, 1), questions(64, 2)
    model = warm_start(args.model, tokenizer, train, 0, args.steps, args.learning_rate)
    found = calibrate_svdecode(model, held_out, tokenizer, grid=(), batch_size=32)
    print(f"strength {found.strength:.2f}: {found.nll[found.strength]:.3f} nats a token, {found.nll[0.0]:.3f} at 0")
    print(f"right answers: {sum(exact(model, tokenizer, test)):.0f} of {len(test)} by the warm start,", end=" ")
    print(f"{sum(exact(model, tokenizer, test, strength=found.strength)):.0f} by SVDecode")


if __name__ == "__main__":
    main()
