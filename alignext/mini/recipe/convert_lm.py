# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Make `alignext/mini/lm`: the 15M-parameter TinyStories Llama, its vocabulary cut from 32,000 to 4,096 tokens.

    python -m alignext.mini.recipe.convert_lm

The embedding is 60 % of the model and most of its rows are words that no story contains, so dropping them halves the
file and changes next to nothing: both sides are measured on held-out stories and the model card is written from that.
"""

import argparse
import itertools
import json
import shutil
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from alignext.mini.recipe.fitting import compact
from alignext.mini.recipe.lm_source import (
    BOS,
    BYTES,
    PACKAGE,
    PAD,
    SHA256,
    SPACE,
    VERSION,
    build_tokenizer,
    read_model,
    read_pieces,
    source,
)
from alignext.mini.recipe.measure_lm import HELD_OUT, measure


FOLDER = Path(__file__).parents[1] / "lm"
VOCABULARY = 4096
STORIES, SEED = 512, 0  # sampled from the whole model to see which tokens stories use


@torch.no_grad()
def token_usage(model: LlamaForCausalLM, stories: int, batch_size: int = 128) -> torch.Tensor:
    """How often stories use each token: next-token probabilities summed over sampled stories, shape (vocabulary,).

    Summing probabilities instead of counting samples ranks rare tokens too, and steadily.
    """
    generator = torch.Generator().manual_seed(SEED)
    usage = torch.zeros(model.config.vocab_size, dtype=torch.float64)
    for _ in range(stories // batch_size):
        tokens, cache = torch.full((batch_size, 1), BOS), None
        running = torch.ones(batch_size, 1)
        for _ in range(model.config.max_position_embeddings - 1):
            output = model(tokens, past_key_values=cache, use_cache=True)
            cache, probabilities = output.past_key_values, output.logits[:, -1].softmax(-1)
            usage += (running * probabilities).sum(0)
            tokens = torch.multinomial(probabilities, 1, generator=generator)
            running *= tokens != BOS
            if not running.any():
                break
    return usage


def merge_ancestors(piece: str, ids: dict[str, int], scores: list[float]) -> set[int]:
    """Every piece that exists on the way from single characters to `piece`; empty if merging never gets there."""
    parts, seen = list(piece), set(piece)
    while len(parts) > 1:
        unions = [(scores[ids[a + b]], -i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ids]
        if not unions:
            return set()
        left = -max(unions)[1]
        parts[left : left + 2] = [parts[left] + parts[left + 1]]
        seen.add(parts[left])
    return {ids[part] for part in seen} if seen <= ids.keys() else set()


def choose_tokens(usage: torch.Tensor, pieces: list[str], scores: list[float]) -> list[int]:
    """The ids to keep, ascending: specials, bytes, ASCII characters, then the most used with their ancestors."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    kept = {*range(BYTES[-1] + 1), *(ids[c] for c in [SPACE, *map(chr, range(33, 127))])}
    for token in usage.argsort(descending=True).tolist():
        wanted = kept | merge_ancestors(pieces[token], ids, scores)
        if len(wanted) <= VOCABULARY:
            kept = wanted
        if len(kept) == VOCABULARY:
            break
    return sorted(kept)


def cut(model: LlamaForCausalLM, kept: list[int]) -> LlamaForCausalLM:
    """The same model with only the rows `kept` of its embedding."""
    config = LlamaConfig(**{**model.config.to_dict(), "vocab_size": len(kept)})
    small = LlamaForCausalLM(config)
    state = model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][kept]
    small.load_state_dict(state)
    return small.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Half-precision weights whose config says float32: half the size on disk, full precision on the CPU."""
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=BOS, pad_token_id=PAD, max_new_tokens=200
    )
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    compact(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes files that only their owner can read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write (default: the packaged one)")
    out = parser.parse_args().out
    data = source()
    whole, (pieces, scores) = read_model(data), read_pieces(data)
    whole_tokenizer = build_tokenizer(pieces, scores)
    usage = token_usage(whole, STORIES)
    kept = choose_tokens(usage, pieces, scores)
    save(cut(whole, kept), build_tokenizer([pieces[i] for i in kept], [scores[i] for i in kept]), out)

    # What is measured is what was written, read back as a user reads it.
    before = measure(whole, whole_tokenizer, SEED)
    after = measure(AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out), SEED)
    figures = {f"whole_{name}": value for name, value in before.items()} | after
    template = Path(__file__).with_name("lm_card.md").read_text()
    card = template.format(
        **figures | {"sample": after["sample"].replace("\n", "\n> ")},
        same="the same" if after["sample"] == before["sample"] else "not the same",
        megabytes=(out / "model.safetensors").stat().st_size / 1e6,
        vocabulary=len(kept),
        package=PACKAGE,
        version=VERSION,
        sha=SHA256,
        stories=STORIES,
        seed=SEED,
        mass=usage[kept].sum().item() / usage.sum().item(),
        held_out=len(HELD_OUT),
    )
    (out / "README.md").write_text(card)
    if out != FOLDER:
        shutil.copy(FOLDER / "LICENSE.txt", out)
    print(card)


if __name__ == "__main__":
    main()
