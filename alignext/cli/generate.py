# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext generate`: let a language model write, as it is or by a decoding method, its objective heads mixed."""

import argparse
import json
from pathlib import Path
from typing import Any

from alignext.cli.arguments import at_least_one, between, device_of, file_of
from alignext.cli.decoding import add_options, check_rewards, method_of, write_with
from alignext.cli.inputs import prompts_of
from alignext.files import check_output, replacing


_DTYPES = ("auto", "float32", "float16", "bfloat16")


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext generate`."""
    parser = subparsers.add_parser(
        "generate",
        help="write with any language model, its objective heads mixed, or by a decoding method",
        description="Continue prompts with a language model. One of `alignext mah-dpo` writes with its heads mixed by "
        "weights. With --method, any model writes towards a reward, or away from what it was before fine-tuning.",
        epilog="Example: alignext generate --model trained --objective-weights honest=.7,helpful=.3 --prompt Once",
    )
    parser.add_argument(
        "--model",
        required=True,
        help="folder or Hub id of a language model or adapter, with or without objective heads",
    )
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    parser.add_argument("--prompts", type=Path, help="a file with one prompt per line")
    parser.add_argument(
        "--objective-weights",
        type=parse_weights,
        metavar="NAME=WEIGHT,...",
        help="for example honest=.7,helpful=.3; names left out count 0 (default: the model's own, or equal weights)",
    )
    parser.add_argument(
        "--reward",
        action="append",
        metavar="MODEL",
        help="folder or Hub id of a process reward (of `alignext process-reward`) or another reward model that "
        "decoding follows, or file.py:function; may be given several times, the scores are added up",
    )
    add_options(parser)
    parser.add_argument("--chat", action="store_true", help="apply the chat template, each prompt a user's turn")
    parser.add_argument("--max-new-tokens", type=at_least_one, default=128, help="(default: %(default)s)")
    parser.add_argument("--temperature", type=between(0, 100), default=1.0, help="0 for greedy (default: %(default)s)")
    parser.add_argument("--top-p", type=between(0, 1), default=1.0, help="(default: %(default)s)")
    parser.add_argument("--top-k", type=int, default=50, help="0 for all tokens (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--dtype", choices=_DTYPES, default="auto", help="of the model (default: as saved)")
    parser.add_argument("--device", help="(default: cuda if there is one, else cpu)")
    parser.add_argument("--merge-to", type=Path, help="also save the mixture as a plain model into this new folder")
    parser.set_defaults(
        func=run,
        words_of={
            "num_candidates": "--candidates",
            "num_chains": "--chains",
            "num_rollouts": "--rollouts",
            "num_steps": "--steps",
        },
    )


def parse_weights(text: str) -> dict[str, float]:
    """`honest=.7,helpful=.3` as a dictionary."""
    weights = {}
    for part in text.split(","):
        name, equals, value = part.rpartition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise argparse.ArgumentTypeError(f"{part!r} is not NAME=WEIGHT, such as honest=.7")
    return weights


def run(args: argparse.Namespace) -> None:
    """Write, and print each prompt with its continuation."""
    chosen = method_of(args)
    prompts = [*args.prompt, *prompts_of(args.prompts)]
    if not prompts and args.merge_to is None:
        raise ValueError("There is no prompt. Pass --prompt TEXT, or --prompts FILE with one per line.")
    if args.merge_to is not None and args.merge_to.exists():
        raise ValueError(f"--merge-to {args.merge_to} is there already. Name a new folder.")
    if args.merge_to is not None:
        check_output(args.merge_to.parent, name="--merge-to")
    from accelerate.utils import is_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    from alignext import AutoModelForCausalLMWithObjectiveHeads

    device = device_of(args.device)
    loader: Any = AutoModelForCausalLMWithObjectiveHeads
    if not _has_heads(args.model):
        loader = AutoModelForCausalLM
        for option in ("objective_weights", "merge_to"):
            if getattr(args, option) is not None:
                name = option.replace("_", "-")
                raise ValueError(f"--{name} needs objective heads, but --model {args.model} has none. Leave it out.")
    check_rewards(args)
    model = loader.from_pretrained(args.model, dtype=args.dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if prompts:
        turns = [[{"role": "user", "content": prompt}] if args.chat else prompt for prompt in prompts]
        sampling: dict[str, Any] = {"do_sample": False}
        if args.temperature > 0:
            sampling = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}
        set_seed(args.seed)
        written = write_with(chosen, model, tokenizer, turns, args, sampling)
        for prompt, text in zip(prompts, written, strict=True):
            between = " " if args.chat and not text[:1].isspace() else ""
            print(f"{prompt}{between}{text}\n")
    if args.merge_to is not None:
        plain = model.merge_and_unload() if is_peft_model(model) else model
        with replacing(args.merge_to) as part:
            plain.merge_heads(args.objective_weights).save_pretrained(part)
            tokenizer.save_pretrained(part)
        print(f"Saved one mixture. Load it with AutoModelForCausalLM.from_pretrained({str(args.merge_to)!r})")


def _has_heads(model: str) -> bool:
    """Whether a checkpoint of a language model has objective heads."""
    file = file_of(model, "config.json", "adapter_config.json", name="--model", what="language model")
    return "objective_heads" in json.loads(file.read_text(encoding="utf-8"))
