# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The decoding methods of `alignext generate`: their options, and how each writes."""

import argparse
import sys
from pathlib import Path
from typing import Any

from alignext.cli.arguments import at_least_one, file_of, number
from alignext.cli.inputs import json_lines, lines_of


METHODS = ("plain", "guided", "qalign", "transfer-q", "svdecode")
# Option -> the methods that take it, and the argument of their class.
_OPTIONS = {
    "candidates": {"guided": "num_candidates"},
    "boundary": {"guided": "boundary"},
    "beta": {"qalign": "beta", "transfer-q": "beta"},
    "steps": {"qalign": "num_steps"},
    "chains": {"qalign": "num_chains"},
    "select": {"qalign": "select"},
    "alpha": {"transfer-q": "alpha", "svdecode": "alpha"},
    "k": {"transfer-q": "k"},
    "value": {"transfer-q": "value"},
    "rollout_tokens": {"transfer-q": "rollout_tokens"},
    "rollouts": {"transfer-q": "num_rollouts"},
    "commit_tokens": {"transfer-q": "commit_tokens"},
    "baseline_reward": {"transfer-q": "baseline_reward_funcs"},
    "strength": {"svdecode": "strength"},
    "calibrate": {"svdecode": ""},
    "base": {"svdecode": ""},
    "direction": {"svdecode": "direction"},
    "reward": {"guided": "", "qalign": "", "transfer-q": ""},
}
_CLASSES = {"guided": "GuidedDecoding", "qalign": "QAlign", "transfer-q": "TransferQ"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--method` and the options of the methods."""
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="how to write: as the model is, guided step by step, whole texts in proportion to a reward (QAlign), "
        "looking ahead at every token (Transfer Q*), or away from the model before fine-tuning (SVDecode) (default: "
        "guided with --reward, else plain)",
    )
    guided = parser.add_argument_group("guided")
    guided.add_argument("--candidates", type=at_least_one, help="per step (default: 5)")
    guided.add_argument(
        "--boundary", choices=("sentence", "paragraph", "reply"), help="where a step ends (default: sentence)"
    )
    qalign = parser.add_argument_group("qalign")
    qalign.add_argument("--steps", type=int, help="of the chain (default: 64)")
    qalign.add_argument("--chains", type=at_least_one, help="for each text (default: 1)")
    qalign.add_argument("--select", choices=("last", "mbr", "max_reward"), help="which state (default: last)")
    transfer = parser.add_argument_group("transfer-q")
    transfer.add_argument("--k", type=at_least_one, help="candidates for a token (default: 10)")
    transfer.add_argument("--rollout-tokens", type=int, help="behind each (default: 20)")
    transfer.add_argument("--rollouts", type=at_least_one, help="of each (default: 1)")
    transfer.add_argument("--commit-tokens", type=at_least_one, help="kept of the winner (default: 1)")
    transfer.add_argument("--value", choices=("mean", "soft", "max"), help="of the rollouts (default: mean)")
    transfer.add_argument(
        "--baseline-reward", action="append", metavar="MODEL", help="what the model was aligned to, if not to --reward"
    )
    svdecode = parser.add_argument_group("svdecode")
    svdecode.add_argument("--strength", type=number, help="positive leads away from the base model")
    svdecode.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="find the strength: JSON lines with `prompt` and `completion`"
    )
    svdecode.add_argument("--base", metavar="MODEL", help="the base model (default: the model without its adapter)")
    svdecode.add_argument("--direction", choices=("kl_gradient", "logit_difference"), help="(default: kl_gradient)")
    several = parser.add_argument_group("several methods")
    several.add_argument(
        "--alpha", type=number, help="transfer-q: weight of the model (1.0); svdecode: its mask (0.1)"
    )
    several.add_argument("--beta", type=number, help="qalign, transfer-q: smaller for more reward (default: 1.0)")
    several.add_argument(
        "--save-custom-generate", type=Path, metavar="FOLDER", help="also write the method for plain transformers"
    )


def method_of(args: argparse.Namespace) -> str:
    """
    The method, and whether its options fit.

    Raises:
        ValueError: An option belongs to another method, or one is missing.
    """
    chosen = args.method or ("guided" if args.reward else "plain")
    for option, methods in _OPTIONS.items():
        if getattr(args, option) is not None and chosen not in methods:
            name = option.replace("_", "-")
            raise ValueError(f"--{name} belongs to --method {' or '.join(methods)}, received --method {chosen}.")
    if chosen in _CLASSES and not args.reward:
        raise ValueError(f"--method {chosen} needs --reward MODEL, received none.")
    if args.temperature == 0 and (chosen == "qalign" or (chosen == "guided" and args.candidates != 1)):
        raise ValueError(f"--temperature must be above 0 for --method {chosen}, received 0: all draws would be alike.")
    if chosen == "svdecode" and (args.strength is None) == (args.calibrate is None):
        raise ValueError("--method svdecode needs --strength, or --calibrate FILE to find it: one of them.")
    lines_of(args.calibrate, name="--calibrate", what="JSON lines with prompt and completion")
    if args.save_custom_generate is not None and chosen == "plain":
        raise ValueError("--save-custom-generate needs another --method than plain, which transformers has.")
    return chosen


def check_rewards(args: argparse.Namespace) -> None:
    """See that reward models are there, before anything is loaded."""
    for option, names in (("--reward", args.reward), ("--baseline-reward", args.baseline_reward)):
        for name in (name for name in names or () if ".py:" not in name):
            file_of(name, "config.json", "adapter_config.json", name=option, what="reward model")


def _reward(name: str) -> Any:
    """A function written as `file.py:function`; the id of a reward model as it is."""
    from alignext.rewards.by_name import function_of

    return function_of(name, name="--reward") if ".py:" in name else name


def settings_of(args: argparse.Namespace, chosen: str) -> dict[str, Any]:
    """The arguments of the method's class that were given."""
    return {
        methods[chosen]: getattr(args, option)
        for option, methods in _OPTIONS.items()
        if methods.get(chosen) and getattr(args, option) is not None
    }


def write_with(
    chosen: str, model: Any, tokenizer: Any, prompts: list, args: argparse.Namespace, sampling: dict[str, Any]
) -> list[str]:
    """The continuation of each prompt."""
    import alignext
    from alignext.decoding.rows import added_text, prompt_batch

    batch, settings = prompt_batch(tokenizer, prompts, model.device), settings_of(args, chosen)
    heads = {"objective_weights": args.objective_weights} if hasattr(model.config, "objective_heads") else {}
    if chosen == "plain":
        how = {}
    elif chosen == "svdecode":
        how = _svdecode(model, tokenizer, batch, args, settings)
    else:
        if "baseline_reward_funcs" in settings:
            settings["baseline_reward_funcs"] = [_reward(name) for name in args.baseline_reward]
        ours = getattr(alignext, _CLASSES[chosen])([_reward(name) for name in args.reward], tokenizer, **settings)
        if args.save_custom_generate is not None:
            ours.save_custom_generate(args.save_custom_generate)
        how = {"custom_generate": ours, "prompts": batch["prompts"]}
    width = batch["input_ids"].shape[1]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    out = model.generate(**inputs, max_new_tokens=args.max_new_tokens, **sampling, **how, **heads)
    if chosen == "qalign":
        accepted, effective = out.acceptance_rate.mean(), out.effective_sample_size.nanmean()
        print(f"accepted {accepted:.0%} of the proposals; {effective:.1f} effective draws a text", file=sys.stderr)
    sequences = out.sequences if chosen in _CLASSES else out
    rows = zip(*inputs.values(), sequences, strict=True)
    return [added_text(tokenizer, ids[mask.bool()].tolist(), row[width:].tolist()) for ids, mask, row in rows]


def _svdecode(
    model: Any, tokenizer: Any, batch: dict[str, Any], args: argparse.Namespace, settings: dict[str, Any]
) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, LogitsProcessorList

    from alignext import SVDecodeLogitsProcessor, calibrate_svdecode

    base = None
    if args.base is not None:
        file_of(args.base, "config.json", name="--base", what="language model")
        base = AutoModelForCausalLM.from_pretrained(args.base, dtype=model.dtype).to(model.device).eval()
    if args.calibrate is not None:
        rows = json_lines(args.calibrate, "prompt", "completion", name="--calibrate")
        how = {key: value for key, value in settings.items() if key in ("alpha", "direction")}
        found = calibrate_svdecode(model, rows, tokenizer, base=base, **how)
        settings["strength"] = found.strength
        print(
            f"strength {found.strength:.3f}: {found.nll[found.strength]:.3f} nats a token, {found.nll[0.0]:.3f} at 0",
            file=sys.stderr,
        )
    processor = SVDecodeLogitsProcessor(model, base=base, prompt_attention_mask=batch["attention_mask"], **settings)
    if args.save_custom_generate is not None:
        processor.save_custom_generate(args.save_custom_generate)
    return {"logits_processor": LogitsProcessorList([processor])}
