# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext process-reward`: train a model that scores a solution step by step."""

import argparse
from typing import TYPE_CHECKING

from alignext.cli.training import add_command, command_parser, load_rows, model_arguments, splits, train_and_save
from alignext.methods import method


if TYPE_CHECKING:
    from trl import TrlParser

    from alignext.cli.gallery import Section
    from alignext.decoding.guided import GuidedStep


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext process-reward`."""
    add_command(subparsers, "process-reward", method("Process rewards").task, run)


def make_parser() -> "TrlParser":
    """The parser: the dataset, every field of `ProcessRewardConfig`, the model and adapter, `--config FILE`."""
    from trl import ModelConfig, ScriptArguments

    from alignext import ProcessRewardConfig

    return command_parser(
        "process-reward",
        ScriptArguments,
        ProcessRewardConfig,
        ModelConfig,
        description="Train a process reward model on solutions with a label for every step. --dataset_name is a JSON "
        "or Parquet file, a folder or a Hub id with columns prompt, steps, labels; the model is the embedded one "
        "unless --model_name_or_path names another.",
        example="--dataset_name stories.jsonl --output_dir trained --use_cpu --bf16 false",
    )


def run(args: argparse.Namespace) -> None:
    """Train, save, and say how to load the result."""
    script, config, model, mixture = make_parser().parse_args_and_config(args=args.words)
    from alignext import ProcessRewardTrainer

    data = splits(load_rows(script, mixture, example="stories.jsonl"), script, config)
    model.lora_task_type = "TOKEN_CLS"  # TRL's default is a task without head
    trainer = ProcessRewardTrainer(args=config, **data, **model_arguments(model, config))
    loading = "  from alignext.rewards.process import ProcessReward\n"
    train_and_save(trainer, script, model, loading + f"  ProcessReward.from_pretrained({config.output_dir!r})")


def demo(*, seed: int, steps: int | None) -> list["Section"]:
    """Stories of the embedded model, guided towards characters that speak.

    Args:
        seed (`int`): Draws the stories.
        steps (`int`, *optional*): Sentences of a story at most; 4 if not given.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alignext import guided_generate, mini
    from alignext.cli.charts import Chart
    from alignext.cli.gallery import Section, Table, print_table

    def speech(completions: list[str], **kwargs: object) -> list[int]:
        return [text.count('"') for text in completions]

    model = AutoModelForCausalLM.from_pretrained(mini.path("lm"))
    tokenizer = AutoTokenizer.from_pretrained(mini.path("lm"))
    prompts = [f"One day, {name} went to the park." for name in ("Tom", "Lily", "Ben", "Mia")]
    told = {
        count: guided_generate(
            model,
            tokenizer,
            prompts,
            speech,
            num_candidates=count,
            max_steps=steps or 4,
            max_step_tokens=30,
            generator=torch.Generator().manual_seed(seed),
        )
        for count in (1, 5)
    }
    talks = {count: sum('"' in text for text in output.texts) for count, output in told.items()}
    measures = Table(
        ["candidates for a sentence", "quotation marks a story", f"of {len(prompts)} stories, somebody speaks in"],
        [
            [count, sum(text.count('"') for text in output.texts) / len(prompts), talks[count]]
            for count, output in told.items()
        ],
        caption="One candidate is the model as it is.",
    )
    print_table(measures)
    rows = [
        [step.text.strip(), *(f"{score:g}" for score in step.scores)] for step in told[5].steps[0] if step.text.strip()
    ]
    return [
        Section(
            title="Guided decoding: sentence by sentence",
            text="Several candidates for every sentence, the reward of the story with each, and the sentence that was "
            "kept. The reward counts quotation marks; a trained process reward takes its place.",
            charts=[
                Chart(
                    "The reward grows with the story",
                    "sentence",
                    f"reward so far, mean of {len(prompts)} stories",
                    {f"{count} candidate{'s' * (count > 1)}": _course(output.steps) for count, output in told.items()},
                )
            ],
            tables=[
                measures,
                Table(
                    ["kept", *(f"candidate {i}" for i in range(1, 6))],
                    rows,
                    caption=f"A story sentence by sentence, with the reward of each candidate. It begins with: "
                    f"{prompts[0]}",
                ),
            ],
        )
    ]


def _course(steps: list[list["GuidedStep"]]) -> list[tuple[float, float]]:
    """After each sentence, the mean reward of the stories; one that has ended keeps what it had."""
    kept = [[step.scores[step.chosen] for step in story] for story in steps if story]
    longest = max(map(len, kept), default=0)
    return [(k + 1, sum(s[min(k, len(s) - 1)] for s in kept) / len(kept)) for k in range(longest)]
