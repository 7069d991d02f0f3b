# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext steer`: fit directions to pairs of answers, and write with a model steered along one."""

import argparse
import csv
import itertools
from pathlib import Path
from typing import Any

from alignext.cli.arguments import at_least_one, device_of, file_of, number
from alignext.cli.inputs import json_lines
from alignext.files import check_output, replacing
from alignext.methods import method


METHODS = ("swfc", "sttp", "stmp", "clamp")  # those of `SteeringVector`, which imports torch


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext steer`."""
    parser = subparsers.add_parser(
        "steer",
        help=method("Steering").task,
        description="Change how a frozen language model writes: `fit` reads pairs of answers with and "
        "without a trait, `apply` writes with the model steered along what was found, `sweep` tries layers, methods "
        "and strengths.",
        epilog="Example: alignext steer fit --model Qwen/Qwen2.5-0.5B-Instruct --pairs pairs.jsonl --out vectors",
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    fit = actions.add_parser("fit", help="one direction per layer, from a JSON-lines file of pairs")
    fit.add_argument("--model", required=True, help="folder or Hub id of a causal language model")
    fit.add_argument(
        "--pairs",
        required=True,
        type=Path,
        help="JSON lines with `positive` and `negative`: conversations that end with an answer, or texts that follow "
        "`prompt`",
    )
    fit.add_argument(
        "--layers", default="25%-60%", type=_layers, help="3, 2,5 or a range of depth (default: 25%%-60%%)"
    )
    fit.add_argument(
        "--direction", choices=("logistic", "mean_difference"), default="logistic", help="how it is fitted"
    )
    fit.add_argument("--batch-size", type=at_least_one, default=8, help="answers per pass (default: %(default)s)")
    fit.add_argument("--out", required=True, type=Path, help="new folder for layer-N.safetensors")
    fit.add_argument("--device", help="(default: cuda if there is one, else cpu)")
    write = actions.add_parser("apply", help="write with and without steering, side by side")
    write.add_argument("--model", required=True, help="folder or Hub id of the model that the vector was fitted to")
    write.add_argument("--vector", required=True, type=Path, help="file of `alignext steer fit`")
    write.add_argument("--prompt", action="append", required=True, help="a prompt; may be given several times")
    write.add_argument("--chat", action="store_true", help="apply the chat template, each prompt a user's turn")
    write.add_argument("--method", choices=METHODS, help="(default: the vector's own, stmp or clamp)")
    write.add_argument("--alpha", type=number, default=1.0, help="strength (default: %(default)s)")
    write.add_argument("--max-new-tokens", type=at_least_one, default=64, help="(default: %(default)s)")
    write.add_argument("--html", type=Path, help="also write a page with the steered texts, coloured token by token")
    write.add_argument("--device", help="(default: cuda if there is one, else cpu)")
    sweep = actions.add_parser("sweep", help="trait and coherence for every layer, method and strength")
    sweep.add_argument("--model", required=True, help="folder or Hub id of the model that the vectors were fitted to")
    sweep.add_argument(
        "--vectors", required=True, type=Path, help="folder of `alignext steer fit`, or one of its files"
    )
    sweep.add_argument("--prompt", action="append", required=True, help="a prompt; may be given several times")
    sweep.add_argument("--chat", action="store_true", help="apply the chat template, each prompt a user's turn")
    sweep.add_argument(
        "--trait",
        required=True,
        help="file.py:function or module:function that gives a number for each text of a list",
    )
    sweep.add_argument("--methods", nargs="+", choices=METHODS, default=["stmp"], help="(default: stmp)")
    sweep.add_argument("--alphas", nargs="+", type=number, default=[1.0, 2.0, 3.0, 4.0], help="(default: 1 2 3 4)")
    sweep.add_argument(
        "--keep-coherence", type=number, default=0.9, help="share that a setting must keep (default: %(default)s)"
    )
    sweep.add_argument("--max-new-tokens", type=at_least_one, default=64, help="(default: %(default)s)")
    sweep.add_argument("--seed", type=int, default=0, help="of sampling (default: %(default)s)")
    sweep.add_argument("--out", type=Path, help="also write the table to this CSV file")
    sweep.add_argument("--device", help="(default: cuda if there is one, else cpu)")
    sweep.set_defaults(func=run_sweep)
    fit.set_defaults(func=run_fit)
    write.set_defaults(func=run_apply)


def _layers(text: str) -> int | str | list[int]:
    if "%" in text:
        return text
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be such as 3, 2,5 or 25%-60%, got {text}") from error
    return found[0] if len(found) == 1 else found


def _load(args: argparse.Namespace) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file_of(args.model, "config.json", "adapter_config.json", name="--model", what="language model")
    model = AutoModelForCausalLM.from_pretrained(args.model).to(device_of(args.device)).eval()
    return model, AutoTokenizer.from_pretrained(args.model, padding_side="left")


def run_fit(args: argparse.Namespace) -> None:
    """Fit, write a file per layer, and print how well each separates the answers."""
    if args.out.exists():
        raise ValueError(f"--out {args.out} is there already. Name a new folder.")
    check_output(args.out.parent, name="--out")
    rows = json_lines(args.pairs, "positive", "negative", name="--pairs")
    from alignext.steering import fit_steering

    model, tokenizer = _load(args)
    found = fit_steering(
        model, tokenizer, rows, layers=args.layers, direction=args.direction, batch_size=args.batch_size
    )
    args.out.mkdir()
    print("layer  mean projection: positive  negative  boundary")
    for vector in found if isinstance(found, list) else [found]:
        file = args.out / f"layer-{vector.layer}.safetensors"
        vector.save(file)
        print(
            f"{vector.layer:>5}{vector.mu_positive:>27.3f}{vector.mu_negative:>10.3f}{vector.boundary:>10.3f}  {file}"
        )
    print(f'Load one: from alignext import SteeringVector; SteeringVector.load("{file}")')


def run_apply(args: argparse.Namespace) -> None:
    """Write each prompt's continuation as the model is, and steered."""
    if not args.vector.exists():
        raise FileNotFoundError(f"--vector {args.vector} is no file. `alignext steer fit` writes such files.")
    from alignext.steering import SteeringVector, save_traces, trace_steering

    if args.vector.is_dir() and not (args.vector / SteeringVector._file_name).is_file():
        files = ", ".join(sorted(file.name for file in args.vector.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(f"--vector {args.vector} is a folder. Name one of the vectors in it: {files}.")
    vector = SteeringVector.load(args.vector)
    method_name = args.method or vector.method
    vector.check(method_name, args.alpha)
    if args.html is not None:
        check_output(args.html.parent, name="--html")
    model, tokenizer = _load(args)
    traces = []
    for prompt in args.prompt:
        text = prompt
        if args.chat:
            turn = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        batch = tokenizer(text, return_tensors="pt", add_special_tokens=not args.chat).to(model.device)
        settings = {"max_new_tokens": args.max_new_tokens, "do_sample": False}
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
        written = [model.generate(**batch, **settings)]
        with vector.apply(model, method_name, args.alpha):
            written.append(model.generate(**batch, **settings))
        traces.append(trace_steering(model, tokenizer, vector, written[1][0].tolist(), method_name, args.alpha))
        start = batch["input_ids"].shape[1]
        print(prompt)
        for name, ids in zip(("plain", method_name), written, strict=True):
            print(f"  {name:>5}: {tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()}")
    if args.html is not None:
        save_traces(args.html, traces, vector)
        print(f"Which tokens were steered: {args.html}")


def run_sweep(args: argparse.Namespace) -> None:
    """Print the table of settings, and the one to choose."""
    files = sorted(args.vectors.glob("*.safetensors")) if args.vectors.is_dir() else [args.vectors]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"--vectors {args.vectors} has no file. `alignext steer fit` writes such a folder.")
    from alignext.rewards.by_name import function_of

    trait = function_of(args.trait, name="--trait")
    if args.out is not None:
        check_output(args.out.parent, name="--out")
    from alignext.steering import SteeringVector, sweep_steering, text_score

    vectors = [SteeringVector.load(file) for file in files]
    for vector, name, alpha in itertools.product(vectors, args.methods, args.alphas):
        vector.check(name, alpha)
    model, tokenizer = _load(args)
    prompts = [[{"role": "user", "content": prompt}] for prompt in args.prompt] if args.chat else args.prompt
    score = text_score(tokenizer, prompts, trait, max_new_tokens=args.max_new_tokens, seed=args.seed)
    rows, chosen = sweep_steering(
        model, vectors, score, methods=args.methods, alphas=args.alphas, keep_coherence=args.keep_coherence
    )
    if args.out is not None:
        with replacing(args.out) as part, part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([tuple(type(chosen).__annotations__), *rows])
    print("layer  method  alpha   trait  coherence")
    for row in rows:
        mark = "  <- the most of the trait with enough coherence" if row == chosen else ""
        print(f"{row.layer:>5}{row.method:>8}{row.alpha:>7g}{row.trait:>8.3f}{row.coherence:>11.3f}{mark}")
