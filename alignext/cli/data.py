# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext ches` and `alignext gist`: score the rows of a dataset, keep some, and report."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignext.cli.arguments import at_least_one, between, device_of, file_of
from alignext.cli.inputs import READERS, read_rows
from alignext.files import check_output, replacing
from alignext.methods import method


if TYPE_CHECKING:
    from alignext.demos.scores import Words

_DATA = "a JSON, CSV or Parquet file, or a Hub id"


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext ches` and `alignext gist`."""
    ches = subparsers.add_parser(
        "ches",
        help=method("CHES").task,
        description="Score preference pairs by how much DPO on them would lower the likelihood of their chosen "
        "answers, and keep those that would do it least.",
        epilog="Example: alignext ches pairs.jsonl --model Qwen/Qwen2.5-0.5B-Instruct --out scored.parquet "
        "--drop-top 0.2",
    )
    ches.add_argument("data", help=f"{_DATA}, in any of TRL's preference formats")
    _common(ches, "the policy that DPO will start from", max_length=1024)
    ches.add_argument("--kernel", action="store_true", help="also the score in which the output layer counts")
    ches.add_argument("--column", default="ln_ches", help="by which rows are kept (default: %(default)s)")
    few = ches.add_mutually_exclusive_group()
    few.add_argument("--keep", type=between(0, 1), help="share with the lowest scores that is kept, such as 0.05")
    few.add_argument("--drop-top", type=between(0, 1), help="share with the highest scores that is dropped")
    few.add_argument("--max-score", type=float, help="the largest score that is kept")
    ches.set_defaults(func=run_ches)
    gist = subparsers.add_parser(
        "gist",
        help=method("GIST").task,
        description="Score rows for supervised training by how well their gradients serve a target task, and keep the "
        "best. The model is an adapter after a short training on a random part of the data.",
        epilog="Example: alignext gist pool.jsonl --target task.jsonl --model warmed-up-lora --out chosen.parquet "
        "--keep 0.05",
    )
    gist.add_argument("data", help=f"{_DATA}, in any format of SFTTrainer")
    gist.add_argument("--target", required=True, help="some dozens of rows of the task, likewise")
    _common(gist, "an adapter, or a model of which all is trained", max_length=2048)
    gist.add_argument("--method", choices=("gist", "less", "cosine"), default="gist", help="(default: %(default)s)")
    gist.add_argument("--rank", type=at_least_one, help="directions (default: as many as hold 95%% of the target)")
    gist.add_argument("--group-by", help="column of the target with sub-tasks")
    gist.add_argument(
        "--normalisation", choices=("subspace", "full"), default="subspace", help="(default: %(default)s)"
    )
    gist.add_argument("--optimizer-state", help="of --method less: a checkpoint of the adapter's training")
    few = gist.add_mutually_exclusive_group()
    few.add_argument("--keep", type=between(0, 1), help="share with the largest scores that is kept, such as 0.05")
    few.add_argument("--top", type=at_least_one, help="number of rows that are kept")
    gist.set_defaults(func=run_gist)


def _common(parser: argparse.ArgumentParser, what: str, max_length: int) -> None:
    parser.add_argument("--model", required=True, help=f"folder or Hub id: {what}")
    parser.add_argument("--out", required=True, type=Path, help="a new file: .parquet, .jsonl or .csv")
    parser.add_argument("--split", default="train", help="of a Hub dataset (default: %(default)s)")
    parser.add_argument("--batch-size", type=at_least_one, default=8, help="(default: %(default)s)")
    parser.add_argument(
        "--max-length", type=at_least_one, default=max_length, help="tokens of a row (default: %(default)s)"
    )
    parser.add_argument("--rows", type=at_least_one, default=10, help="in the report (default: %(default)s)")
    parser.add_argument("--report", type=Path, help="also write the report as a page with a plot into this folder")
    parser.add_argument("--device", help="(default: cuda if there is one, else cpu)")


def read(name: str, split: str, argument: str) -> Any:
    """
    A dataset from a file or the Hub.

    Raises:
        OSError: There is no such file.
        ValueError: It cannot be read, or has no such split.
    """
    path = Path(name)
    if path.suffix in READERS:
        return read_rows(path, name=argument)["train"]
    if path.exists() or name.count("/") != 1:
        raise FileNotFoundError(f"{argument} {name} is none of {', '.join(READERS)}, and no Hub id.")
    from datasets import load_dataset

    return load_dataset(name, split=split)


def _check_out(args: argparse.Namespace) -> None:
    if args.out.suffix not in (".parquet", ".jsonl", ".csv"):
        raise ValueError(f"--out {args.out} must end in .parquet, .jsonl or .csv.")
    if args.out.exists():
        raise ValueError(f"--out {args.out} is there already. Name a new file.")
    check_output(args.out.parent, name="--out")
    if args.report is not None:
        from alignext.demos.gallery import claim_folder

        claim_folder(args.report, again=True)


def _finish(args: argparse.Namespace, scored: Any, kept: Any, words: "Words") -> None:
    """Write the rows and the report, and let go of what was kept for a second try."""
    from alignext.data.core import processes
    from alignext.demos.scores import page, text

    if not processes().is_main_process:
        return
    with replacing(args.out) as part:
        writer = {".parquet": kept.to_parquet, ".csv": kept.to_csv}.get(args.out.suffix, kept.to_json)
        writer(str(part))
    print(text(scored, words))
    print(f"{len(kept)} of {len(scored)} rows: {args.out}")
    if args.report is not None:
        print(f"The report as a page: {page(args.report, scored, words)}")
    shutil.rmtree(_cache(args), ignore_errors=True)


def _cache(args: argparse.Namespace) -> Path:
    """Where an interrupted run of the same command finds what was done."""
    return args.out.with_name(f"{args.out.name}.scores")


def _device(args: argparse.Namespace) -> Any:
    """Of this process: each of several has a GPU of its own."""
    from alignext.data.core import processes

    state = processes(device_of(args.device))
    return state.device if state.num_processes > 1 else device_of(args.device)


def run_ches(args: argparse.Namespace) -> None:
    """Score pairs."""
    _check_out(args)
    data = read(args.data, args.split, "DATA")
    file_of(args.model, "config.json", "adapter_config.json", name="--model", what="language model")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alignext.data import add_ches_scores, filter_by_ches
    from alignext.demos.scores import Words

    model = AutoModelForCausalLM.from_pretrained(args.model).to(_device(args))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    settings: dict[str, Any] = {"batch_size": args.batch_size, "max_length": args.max_length, "cache": _cache(args)}
    try:
        scored = add_ches_scores(model, data, processing_class=tokenizer, kernel=args.kernel, **settings)
    except KeyboardInterrupt:
        _tell(args)
        raise
    few = {"keep": args.keep, "drop_top": args.drop_top, "max_score": args.max_score}
    kept = scored
    if any(value is not None for value in few.values()):
        kept = filter_by_ches(scored, column=args.column, **few)
    words = Words(
        title="Which pairs will lower their chosen answer",
        column=args.column,
        note="ches_note",
        largest="most dangerous",
        meaning="The higher the score, the more the chosen and the rejected answer look alike to the model, and the "
        "more DPO pushes both down: about 0 or above is where a pair cannot raise its chosen answer without the "
        "other. What counts is the order, not the number.",
        advice="Drop the highest scores (--drop-top 0.2), or keep them and hold the chosen answer up: "
        'loss_type=["sigmoid", "sft"] with loss_weights, ld_alpha below 1, or loss_type="ipo" in DPOConfig.',
        texts=("prompt", "chosen", "rejected"),
        rows=args.rows,
    )
    _finish(args, scored, kept, words)


def run_gist(args: argparse.Namespace) -> None:
    """Score rows for a target."""
    _check_out(args)
    data, target = read(args.data, args.split, "DATA"), read(args.target, args.split, "--target")
    file_of(args.model, "config.json", "adapter_config.json", name="--model", what="language model")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alignext.data import add_gradient_scores, select_for_task
    from alignext.demos.scores import Words

    if Path(args.model, "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        model: Any = AutoPeftModelForCausalLM.from_pretrained(args.model, is_trainable=True)
        base = model.peft_config["default"].base_model_name_or_path
        own = Path(args.model, "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(args.model if own else base)
    else:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
    model.to(_device(args))
    settings: dict[str, Any] = {"batch_size": args.batch_size, "max_length": args.max_length, "cache": _cache(args)}
    settings |= {"rank": args.rank, "group_by": args.group_by, "normalisation": args.normalisation}
    try:
        scored = add_gradient_scores(
            model,
            data,
            target,
            processing_class=tokenizer,
            method=args.method,
            optimizer_state=args.optimizer_state,
            **settings,
        )
    except KeyboardInterrupt:
        _tell(args)
        raise
    kept = scored
    if args.keep is not None or args.top is not None:
        kept = select_for_task(scored, args.method, keep=args.keep, top=args.top)
    words = Words(
        title="Which rows serve the target",
        column=args.method,
        note=f"{args.method}_note",
        largest="most useful",
        meaning="A cosine: 1 for a row whose gradient points where the target's do, 0 for one that has nothing to do "
        "with them, below 0 for one that pulls away. In a small subspace many rows come close to 1: gist_energy, the "
        "share of a row's gradient within it, tells them apart.",
        advice="Train on the best twentieth (--keep 0.05), and hold the result against as many random rows.",
        texts=("prompt", "completion", "messages", "text"),
        rows=args.rows,
    )
    _finish(args, scored, kept, words)


def _tell(args: argparse.Namespace) -> None:
    print(f"\nWhat was scored is in {_cache(args)}: the same command goes on from there.", file=sys.stderr)
