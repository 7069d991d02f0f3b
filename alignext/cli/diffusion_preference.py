# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext inversion-dpo`, `diffusion-dpo` and `smpo`: train a text-to-image pipeline on pairs of pictures."""

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from alignext.cli.arguments import stock_class
from alignext.cli.training import add_command, command_parser, curve, demo_settings, load_rows, quieten, splits, train
from alignext.methods import method


if TYPE_CHECKING:
    from datasets import DatasetDict
    from diffusers import DiffusionPipeline
    from peft import LoraConfig
    from PIL.Image import Image
    from trl import DatasetMixtureConfig, ScriptArguments, TrlParser

    from alignext.cli.gallery import Section

# Command -> the trainer, whose config is named after it, and what it is for.
_COMMANDS = {
    "diffusion-dpo": ("DiffusionDPOTrainer", method("Diffusion-DPO").task),
    "inversion-dpo": ("InversionDPOTrainer", method("Inversion-DPO").task),
    "smpo": ("SmPOTrainer", method("SmPO").task),
}
_PREFERRED = "glossy"  # of the demo


@dataclass
class PipelineArguments:
    """The pipeline that is trained, its adapter, and the pictures drawn on the way."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Pipeline folder or Hub id; the embedded mini-SD if not given."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a Hub id."})
    variant: str | None = field(default=None, metadata={"help": "Variant of the weight files, such as fp16."})
    dtype: str | None = field(
        default=None,
        metadata={"help": "What the frozen weights are held in.", "choices": ["float32", "bfloat16", "float16"]},
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA in place of all weights of the denoiser."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA."})
    lora_alpha: int | None = field(default=None, metadata={"help": "Scale of the LoRA; its rank if not given."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Layers with a LoRA; the attention projections if not given."}
    )
    sample_prompts: list[str] | None = field(
        default=None, metadata={"help": "Draw these before training, at evaluations and at the end, into samples/."}
    )
    sample_guidance: float | None = field(default=None, metadata={"help": "Guidance of those drawings."})


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the three commands."""
    for name, (_, text) in _COMMANDS.items():
        add_command(subparsers, name, text, run)


def make_parser(name: str) -> "TrlParser":
    """The parser of a command: the dataset, every field of the trainer's config, the pipeline, `--config FILE`."""
    from trl import ScriptArguments

    import alignext

    trainer, text = _COMMANDS[name]
    config = getattr(alignext, trainer.replace("Trainer", "Config"))
    return command_parser(
        name,
        ScriptArguments,
        config,
        PipelineArguments,
        description=f"{text[0].upper()}{text[1:]}. --dataset_name is a JSON, CSV or Parquet file with columns prompt, "
        "chosen, rejected (paths of pictures, relative to the file), a folder with such a metadata.jsonl "
        "(chosen_file_name, rejected_file_name), or a Hub id, such as one in the format of Pick-a-Pic. The model is "
        "the embedded one unless --model_name_or_path names another.",
        example="--dataset_name pairs.jsonl --output_dir trained --use_peft --use_cpu",
    )


def run(args: argparse.Namespace) -> None:
    """Train, save, and say how to load the result."""
    script, config, pipeline, mixture = make_parser(args.command).parse_args_and_config(args=args.words)
    import alignext

    trainer = getattr(alignext, _COMMANDS[args.command][0])(
        model=load_pipeline(pipeline),
        args=config,
        peft_config=lora_config(pipeline),
        **splits(load_pairs(script, mixture), script, config),
    )
    if pipeline.sample_prompts:
        sheets = alignext.SampleGridCallback(trainer, pipeline.sample_prompts, guidance_scale=pipeline.sample_guidance)
        trainer.add_callback(sheets)
    train(trainer)
    if config.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.print(f"Saved. Load it with:\n{trainer.usage()}")


def load_pipeline(args: PipelineArguments) -> "DiffusionPipeline":
    """The pipeline to train."""
    import torch
    from diffusers import DiffusionPipeline

    from alignext import mini

    if args.model_name_or_path:
        stock_class(args.model_name_or_path, name="--model_name_or_path", revision=args.model_revision)
    return DiffusionPipeline.from_pretrained(
        args.model_name_or_path or mini.path("sd"),
        revision=args.model_revision,
        variant=args.variant,
        dtype=getattr(torch, args.dtype or "float32"),
    )


def lora_config(args: PipelineArguments) -> "LoraConfig | None":
    """The adapter asked for; the trainer fills in the layers."""
    if not args.use_peft:
        return None
    from peft import LoraConfig

    alpha = args.lora_r if args.lora_alpha is None else args.lora_alpha
    return LoraConfig(r=args.lora_r, lora_alpha=alpha, target_modules=args.lora_target_modules)


def load_pairs(script: "ScriptArguments", mixture: "DatasetMixtureConfig") -> "DatasetDict":
    """The dataset by splits. Paths of pictures in a file are relative to it."""
    dataset, path = load_rows(script, mixture, example="pairs.jsonl"), Path(script.dataset_name or "")
    if not path.is_file():
        return dataset
    from alignext.trainers.diffusion_preference.data import PICTURES

    def absolute(row: dict) -> dict:
        paths = {name: row[name] for name in PICTURES if isinstance(row.get(name), str) and "://" not in row[name]}
        return {name: str(path.parent / file) for name, file in paths.items()}

    return dataset.map(absolute)


def demo(*, seed: int, steps: int | None) -> list["Section"]:
    """Diffusion-DPO on real drawings: a style that was preferred, in drawings of other things. Few `steps` of sampling
    mean few updates, too."""
    import torch
    from datasets import Dataset
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig

    from alignext import DiffusionDPOConfig, DiffusionDPOTrainer, mini
    from alignext.cli.charts import Chart
    from alignext.cli.gallery import Figure, Section, Table, print_table
    from alignext.diffusion.sheets import contact_sheet
    from alignext.mini.judges import Judge

    steps = steps or 20
    drawings: dict[str, dict[str, mini.Picture]] = {}
    for picture in mini.pictures():
        drawings.setdefault(picture.concept, {})[picture.style] = picture
    styles = ("noto", "blob", "flat", "glossy", "ink")
    trained = [concept for concept, of in drawings.items() if set(styles) <= set(of)]
    pairs = [
        {
            "prompt": of[_PREFERRED].caption.partition(",")[0],
            "image_chosen": of[_PREFERRED].image,
            "image_rejected": of[other].image,
        }
        for of in (drawings[concept] for concept in trained)
        for other in styles
        if other != _PREFERRED
    ]
    pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
    pipe.set_progress_bar_config(disable=True)
    others = [picture for picture in mini.pictures("unseen_style") if picture.concept not in trained]
    prompts = [picture.caption for picture in others[::3]]

    def draw() -> "list[Image]":
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        return pipe(prompts, num_inference_steps=steps, guidance_scale=3.0, generator=generators).images

    print(f"Diffusion-DPO: drawing {len(prompts)} things before training", flush=True)
    before = draw()
    with tempfile.TemporaryDirectory() as folder:
        trainer = DiffusionDPOTrainer(
            model=pipe,
            args=DiffusionDPOConfig(
                **demo_settings(
                    folder,
                    seed,
                    3 * steps,
                    per_device_train_batch_size=12,
                    learning_rate=5e-4,
                    precompute_latents=True,
                )
            ),
            train_dataset=Dataset.from_list(pairs),
            peft_config=LoraConfig(r=16, lora_alpha=16),
        )
        print(f"Diffusion-DPO: {3 * steps} updates on {len(pairs)} pairs", flush=True)
        quieten(trainer)
        trainer.train()
    after = draw()

    judge = Judge("style")
    shares = [judge.name(images).count(_PREFERRED) / len(images) for images in (before, after)]
    measures = Table(
        ["drawings", f"share in the style {_PREFERRED!r}"],
        [["before", shares[0]], ["after", shares[1]]],
        caption=f"By the embedded style judge, of {len(prompts)} drawings of things that were in no pair.",
    )
    print_table(measures)
    chosen, shown = drawings["red fox"], slice(0, 24, 3)
    sheet = contact_sheet(
        [before[shown], after[shown]], row_labels=["before", "after"], col_labels=prompts[shown], cell=96
    )
    pair = contact_sheet(
        [[chosen[_PREFERRED].image, *(chosen[s].image for s in styles if s != _PREFERRED)]],
        col_labels=[f"preferred: {_PREFERRED}", *(s for s in styles if s != _PREFERRED)],
        cell=96,
    )
    return [
        Section(
            "Diffusion-DPO: a preferred style",
            f"{len(pairs)} pairs of real drawings: the same thing in the preferred style and in another one, with a "
            f"prompt that names no style. {3 * steps} updates of a LoRA.",
            figures=[
                Figure(
                    "diffusion-dpo-pairs",
                    pair,
                    alt="A fox in five styles: four pairs.",
                    caption="Four of the pairs: the drawing on the left is preferred to each of the others.",
                ),
                Figure(
                    "diffusion-dpo",
                    sheet,
                    alt="Eight things drawn before and after training.",
                    caption="Things that were in no pair, before and after. The same noise above and below.",
                ),
            ],
            charts=[
                Chart(
                    "Preferred and other drawings part",
                    "update",
                    "implicit reward, mean of the batch",
                    {name: curve(trainer, f"rewards/{name}") for name in ("chosen", "rejected")},
                )
            ],
            tables=[measures],
        )
    ]
