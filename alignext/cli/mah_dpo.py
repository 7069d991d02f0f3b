# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext mah-dpo`: train a language model for several objectives, a head each."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignext.cli.training import add_command, load_rows, model_arguments, splits, train_and_save


if TYPE_CHECKING:
    from trl import TrlParser

    from alignext.cli.gallery import Section

# Beginnings, and for each objective an ending that follows it and one that does not.
_BEGINNINGS = [
    f"One day, {name} {did}" for name in ("Tom", "Lily", "Ben", "Mia") for did in ("was at home.", "got up.")
]
_ENDINGS = {
    "speaks": (' "Hello!" said Mom. "Do you want to play?"', " The day was long and nothing happened at all."),
    "outdoors": (" The sun was up. A bird sat in the big tree.", " The room was dark. A box lay under the bed."),
}


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext mah-dpo`."""
    add_command(subparsers, "mah-dpo", "train a language model for several objectives", run)


def make_parser() -> "TrlParser":
    """The parser: the dataset, every field of `MAHDPOConfig`, the model and adapter, `--config FILE`."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

    from alignext import MAHDPOConfig

    return TrlParser(
        (ScriptArguments, MAHDPOConfig, ModelConfig, DatasetMixtureConfig),
        prog="alignext mah-dpo",
        description="Train a language model for several objectives at once, with one output head for each. "
        "--dataset_name is a JSON, CSV or Parquet file, a folder or a Hub id with columns prompt, chosen, rejected, "
        "objective; the model is the embedded one unless --model_name_or_path names another. --config FILE reads the "
        "same names from YAML. `alignext generate` then mixes the heads.",
        epilog="Example: alignext mah-dpo --dataset_name preferences.jsonl --output_dir trained --use_cpu",
    )


def run(args: argparse.Namespace) -> None:
    """Train, save, and say how to load the result."""
    script, config, model, mixture = make_parser().parse_args_and_config(args=args.words)
    from alignext import MAHDPOTrainer

    data = splits(load_rows(script, mixture, example="preferences.jsonl"), script, config)
    trainer = MAHDPOTrainer(args=config, **data, **model_arguments(model, config))
    weights = ",".join(f"{name}=1" for name in trainer.objectives)
    train_and_save(
        trainer,
        script,
        model,
        "  from alignext import AutoModelForCausalLMWithObjectiveHeads\n"
        f"  AutoModelForCausalLMWithObjectiveHeads.from_pretrained({config.output_dir!r})\n"
        "Let it write:\n"
        f"  alignext generate --model {config.output_dir} --objective-weights {weights} --prompt ...",
    )


def demo(out: Path, *, seed: int, steps: int | None) -> list["Section"]:
    """One model with two heads, and what it tells with weight on either.

    Args:
        out (`Path`): The folder of the gallery.
        seed (`int`): Seed of the training and of the stories.
        steps (`int`, *optional*): Optimizer steps of the training; 12 if not given.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback

    from alignext import MAHDPOConfig, MAHDPOTrainer, mini
    from alignext.cli.gallery import Section, Table

    rows = [
        {"prompt": beginning, "chosen": good, "rejected": bad, "objective": objective}
        for objective, (good, bad) in _ENDINGS.items()
        for beginning in _BEGINNINGS
    ]
    folder = str(mini.path("lm"))
    settings: dict[str, Any] = {
        "output_dir": str(out / "mah-dpo-model"),
        "max_steps": steps or 12,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-4,
        "activation_checkpointing": False,
        "logging_steps": 1,
        "seed": seed,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    config = MAHDPOConfig(**settings)
    trainer = MAHDPOTrainer(folder, args=config, train_dataset=Dataset.from_list(rows))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model, tokenizer = trainer.model.eval(), AutoTokenizer.from_pretrained(folder)
    prompts = [f"One day, {name} went out." for name in ("Amy", "Bob", "Jane", "Leo")]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    told = []
    for share in (1.0, 0.5, 0.0):
        torch.manual_seed(seed)
        weights = {"speaks": share, "outdoors": 1 - share}
        ids = model.generate(**batch, objective_weights=weights, max_new_tokens=32, do_sample=True, top_k=0)
        stories = tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        told.append([f"{share:g} / {1 - share:g}", *(" ".join(story.split()) for story in stories[:2])])
    right = trainer.state.log_history[-2]["rewards/accuracies"]
    print(f"MAH-DPO: after {settings['max_steps']} steps the heads tell {right:.0%} of the pairs apart")
    return [
        Section(
            title="MAH-DPO: one model, a head per objective",
            text="A language model was trained on pairs of two objectives, that somebody speaks and that a story is "
            "outdoors, with one output head for each on a shared backbone. The weights are chosen when it writes, "
            "here for the same beginnings and the same random numbers.",
            tables=[Table(["speaks / outdoors", *prompts[:2]], told, caption="Weights, and what was told with them.")],
            commands=[f"alignext demo mah-dpo --seed {seed}"],
        )
    ]
