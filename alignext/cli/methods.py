# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext methods`: what there is, which paper it comes from and what it plugs into."""

import argparse
from typing import NamedTuple


class Method(NamedTuple):
    """One row of the table of methods. The README and the docs show the same rows.

    `parents` are one per class, or one for all classes.
    """

    name: str
    paper: str
    arxiv: str
    task: str
    classes: tuple[str, ...]
    parents: tuple[str, ...]
    needs: str
    available: bool


METHODS = (
    Method(
        name="RIVAL",
        paper="Real-World Image Variation by Aligning Diffusion Inversion Chain",
        arxiv="2305.18729",
        task="variations of a real picture, or new pictures in its style",
        classes=(
            "RIVALPipeline",
            "RIVALXLPipeline",
            "RIVALControlNetPipeline",
            "RIVALXLControlNetPipeline",
        ),
        parents=(
            "diffusers.StableDiffusionPipeline",
            "diffusers.StableDiffusionXLPipeline",
            "diffusers.StableDiffusionControlNetPipeline",
            "diffusers.StableDiffusionXLControlNetPipeline",
        ),
        needs="one picture; no training",
        available=True,
    ),
    Method(
        name="AlignedGen",
        paper="AlignedGen: Aligning Style Across Generated Images",
        arxiv="2509.17088",
        task="a set of pictures in one consistent style",
        classes=(
            "AlignedGenPipeline",
            "AlignedGenKontextPipeline",
            "AlignedGenFlux2Pipeline",
            "AlignedGenFlux2KleinPipeline",
            "AlignedGenQwenImagePipeline",
        ),
        parents=(
            "diffusers.FluxPipeline",
            "diffusers.FluxKontextPipeline",
            "diffusers.Flux2Pipeline",
            "diffusers.Flux2KleinPipeline",
            "diffusers.QwenImagePipeline",
        ),
        needs="prompts, or one style picture; no training",
        available=True,
    ),
    Method(
        name="Latent search",
        paper="Inference-Time Text-to-Video Alignment with Diffusion Latent Beam Search",
        arxiv="2501.19252",
        task="the best picture or video a reward can find, at inference time",
        classes=("LatentSearch",),
        parents=("any diffusers pipeline",),
        needs="a reward; no training",
        available=True,
    ),
    Method(
        name="BCO",
        paper="Binary Classifier Optimization for Large Language Model Alignment",
        arxiv="2404.04656",
        task="train a language model on thumbs up and thumbs down",
        classes=("BCOTrainer",),
        parents=("trl.KTOTrainer",),
        needs="single completions with a label",
        available=True,
    ),
    Method(
        name="f-DPG",
        paper="Aligning Language Models with Preferences through f-divergence Minimization",
        arxiv="2302.08215",
        task="move a language model towards a target distribution",
        classes=("FDPGTrainer",),
        parents=("trl.RLOOTrainer",),
        needs="prompts and a reward or constraint",
        available=True,
    ),
    Method(
        name="Diffusion-DPO",
        paper="Diffusion Model Alignment Using Direct Preference Optimization",
        arxiv="2311.12908",
        task="train a text-to-image model on preferred pictures",
        classes=("DiffusionDPOTrainer",),
        parents=("transformers.Trainer",),
        needs="pairs of pictures with a preference",
        available=True,
    ),
    Method(
        name="Inversion-DPO",
        paper="Inversion-DPO: Precise and Efficient Post-Training for Diffusion Models",
        arxiv="2507.11554",
        task="the same, with the noise of each picture from its inversion",
        classes=("InversionDPOTrainer",),
        parents=("transformers.Trainer",),
        needs="pairs of pictures with a preference",
        available=True,
    ),
    Method(
        name="SmPO",
        paper="Smoothed Preference Optimization via ReNoise Inversion for Aligning Diffusion Models with Varied Human "
        "Preferences",
        arxiv="2506.02698",
        task="the same, with soft labels and the policy's own inversion; InPO as a setting",
        classes=("SmPOTrainer",),
        parents=("transformers.Trainer",),
        needs="pairs of pictures with scores",
        available=True,
    ),
    Method(
        name="MAH-DPO",
        paper="Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards",
        arxiv="2510.01167",
        task="train a language model for several objectives at once",
        classes=("MAHDPOTrainer",),
        parents=("trl.DPOTrainer",),
        needs="preference pairs, each with its objective",
        available=True,
    ),
    Method(
        name="Process rewards",
        paper="Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards",
        arxiv="2510.01167",
        task="score a text step by step, and decode guided by it",
        classes=("ProcessRewardTrainer",),
        parents=("trl.RewardTrainer",),
        needs="texts in steps, each with a label",
        available=True,
    ),
)


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext methods`."""
    parser = subparsers.add_parser("methods", help="list the methods, their papers, classes and needs")
    parser.add_argument("--markdown", action="store_true", help="print the table as the README shows it")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    print(as_markdown() if args.markdown else as_text())


def as_markdown() -> str:
    """The table of methods in Markdown."""
    lines = ["| method | what for | class | parent class | what it needs | status |", "|---|---|---|---|---|---|"]
    for method in METHODS:
        name = f"[{method.name}](https://arxiv.org/abs/{method.arxiv})"
        classes, parents = (", ".join(f"`{name}`" for name in names) for names in (method.classes, method.parents))
        parents = parents.replace("`any diffusers pipeline`", "any diffusers pipeline")
        cells = (name, method.task, classes, parents, method.needs, _status(method))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_text() -> str:
    """The table of methods for a terminal: one block per method, since no terminal is wide enough for the row."""
    blocks = []
    for method in METHODS:
        rows = (
            ("paper", f"{method.paper}, arXiv {method.arxiv}"),
            ("class", ", ".join(method.classes)),
            ("parent", ", ".join(method.parents)),
            ("needs", method.needs),
        )
        head = f"{method.name} ({_status(method)}): {method.task}"
        blocks.append("\n".join([head, *(f"  {key:<7} {value}" for key, value in rows)]))
    return "\n\n".join(blocks)


def _status(method: Method) -> str:
    return "available" if method.available else "planned"
