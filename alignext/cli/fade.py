# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext fade`: how far a generative model is from another, by what each of them makes."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignext.cli.arguments import at_least_one, between, device_of, file_of
from alignext.cli.inputs import json_lines, prompts_of
from alignext.files import check_output, replacing
from alignext.methods import method


_DTYPES = ("auto", "float32", "float16", "bfloat16")


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext fade`."""
    parser = subparsers.add_parser(
        "fade",
        help=method("FADE").task,
        description="Compare two language models, or two diffusers pipelines, by what each makes for the same "
        "prompts. 0: nobody could tell them apart.",
        epilog="Example: alignext fade --model unlearned --reference retrained --baseline 'seed 2=retrained-2' "
        "--prompts prompts.txt",
    )
    parser.add_argument("--model", required=True, help="folder or Hub id of a language model, adapter or pipeline")
    parser.add_argument("--reference", required=True, help="what it is compared with: folder or Hub id")
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    parser.add_argument(
        "--prompts", type=Path, help="a file with one prompt per line, or JSON lines with `prompt` (text or messages)"
    )
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        type=_named,
        metavar="NAME=MODEL",
        help="another row of the table, such as a second model trained like the reference; may be given several times",
    )
    parser.add_argument("--out", type=Path, help="also write all numbers to this JSON file")
    parser.add_argument("--num-samples", type=at_least_one, help="per prompt (default: 32 texts, 8 pictures)")
    parser.add_argument("--max-new-tokens", type=at_least_one, help="of a text (default: 200)")
    parser.add_argument("--num-timesteps", type=at_least_one, help="noise levels per picture (default: 50)")
    parser.add_argument("--steps", type=at_least_one, help="of sampling a picture (default: the pipeline's)")
    parser.add_argument("--height", type=at_least_one, help="of a picture (default: the pipeline's)")
    parser.add_argument("--width", type=at_least_one, help="of a picture (default: the pipeline's)")
    parser.add_argument(
        "--guidance-scale", type=between(1, 100), help="while sampling; only 1 measures a divergence (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=at_least_one, default=8, help="texts per pass (default: %(default)s)")
    parser.add_argument("--dtype", choices=_DTYPES, default="auto", help="of the models (default: as saved)")
    parser.add_argument("--device", help="(default: cuda if there is one, else cpu)")
    parser.set_defaults(func=run)


def _named(text: str) -> tuple[str, str]:
    name, equals, model = text.partition("=")
    if not equals or not name.strip() or not model:
        raise argparse.ArgumentTypeError(f"must be NAME=MODEL, such as 'seed 2=retrained-2', got {text}")
    return name.strip(), model


def _prompts(args: argparse.Namespace) -> list[Any]:
    found: list[Any] = list(args.prompt)
    if args.prompts is not None and args.prompts.suffix == ".jsonl":
        found += [row["prompt"] for row in json_lines(args.prompts, "prompt", name="--prompts")]
    else:
        found += prompts_of(args.prompts)
    if not found:
        raise ValueError("There is no prompt. Pass --prompt TEXT, or --prompts FILE with one per line.")
    return found


# Option -> the argument of `fade_score`, by kind of model.
_OF_TEXTS = {"max_new_tokens": "max_new_tokens"}
_OF_PICTURES = {
    "num_timesteps": "num_timesteps", "steps": "num_inference_steps", "height": "height", "width": "width",
    "guidance_scale": "guidance_scale",
}  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Compare, print the table, and write the numbers."""
    prompts = _prompts(args)
    given = {"--model": args.model, "--reference": args.reference} | {
        f"--baseline {name}": model for name, model in args.baseline
    }
    files = {
        name: file_of(
            model,
            "model_index.json",
            "config.json",
            "adapter_config.json",
            name=name,
            what="language model or pipeline",
        ).name
        for name, model in given.items()
    }
    pictures = [name for name, file in files.items() if file == "model_index.json"]
    if pictures and len(pictures) < len(files):
        texts = next(name for name in files if name not in pictures)
        raise ValueError(f"{pictures[0]} is a pipeline, but {texts} a language model. Compare models of one kind.")
    own, other = (_OF_PICTURES, _OF_TEXTS) if pictures else (_OF_TEXTS, _OF_PICTURES)
    for option in other:
        if getattr(args, option) is not None:
            kind = "pictures" if pictures else "texts"
            raise ValueError(f"--{option.replace('_', '-')} has no meaning for {kind}. Leave it out.")
    settings = {name: getattr(args, option) for option, name in own.items() if getattr(args, option) is not None}
    if args.out is not None:
        check_output(args.out.parent, name="--out")
    load = _pipeline if pictures else _language_model
    models = {name: load(model, args) for name, model in given.items()}
    tokenizer = None
    if not pictures:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(args.reference)
    from alignext.evaluation import fade_score

    found = fade_score(
        models["--model"],
        models["--reference"],
        prompts,
        tokenizer,
        baselines={name: models[f"--baseline {name}"] for name, _ in args.baseline},
        num_samples=args.num_samples,
        seed=args.seed,
        batch_size=args.batch_size,
        **settings,
    )
    print(found)
    if args.out is not None:
        with replacing(args.out) as part:
            part.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
        print(f"Numbers in {args.out}")


def _language_model(model: str, args: argparse.Namespace) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=args.dtype).to(device_of(args.device))


def _pipeline(model: str, args: argparse.Namespace) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    dtype = {} if args.dtype == "auto" else {"dtype": getattr(torch, args.dtype)}
    return DiffusionPipeline.from_pretrained(model, **dtype).to(device_of(args.device))
