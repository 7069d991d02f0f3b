# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""AlignProp on a style that a judge sees: the same prompts through training, reward against diversity."""

import tempfile

import torch
from datasets import Dataset
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

from alignext import AlignPropConfig, AlignPropTrainer, DiversityEvaluator, RewardHackingCallback, mini
from alignext.demos.charts import Chart
from alignext.demos.gallery import Figure, Section, Table, print_table
from alignext.demos.stories import quieten, settings
from alignext.demos.verdicts import paired, verdict
from alignext.diffusion.pictures import to_pil
from alignext.diffusion.sheets import contact_sheet
from alignext.mini.judges import Judge
from alignext.rewards import JudgeReward


_STYLE, _UPDATES, _IMAGES = "glossy", 15, 2
_TRAINED = ("a red apple", "a crown", "a rocket", "a mushroom", "a fish", "a guitar", "a bell", "a duck")
_NEW = (
    "a frog",
    "a cloud",
    "a bee",
    "a bear",
    "a violin",
    "a umbrella",
    "a pineapple",
    "an owl",
    "a house",
    "a red fox",
)
_SHOWN = 6


def demo(*, seed: int, steps: int | None) -> list[Section]:
    """The reward is the probability of a style that no prompt names. Few `steps` of sampling mean few updates, too."""
    steps = steps or 8
    updates = min(_UPDATES, 2 * steps)
    pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
    pipe.set_progress_bar_config(disable=True)
    reward, concept = JudgeReward("style", _STYLE, probability=True), Judge("concept")
    seen: list[torch.Tensor] = []
    rewards: list[torch.Tensor] = []

    def noted(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        seen.append(images)
        rewards.append(reward(images, prompts))
        return rewards[-1]

    with tempfile.TemporaryDirectory() as folder:
        trainer = AlignPropTrainer(
            model=pipe,
            reward_funcs=reward,
            args=AlignPropConfig(
                **settings(
                    folder,
                    seed,
                    updates,
                    per_device_train_batch_size=4,
                    learning_rate=3e-3,
                    num_inference_steps=steps,
                    guidance_scale=3.0,
                    backprop_steps=max(1, steps // 2),
                )
            ),
            train_dataset=Dataset.from_dict({"prompt": list(_TRAINED)}),
            peft_config=LoraConfig(r=4, lora_alpha=4),
        )
        evaluator = DiversityEvaluator(lambda images: concept(images).features, ["pairwise"])
        every = max(1, updates // 3)
        watch = RewardHackingCallback(
            trainer, _NEW, noted, evaluator, every=every, num_images=_IMAGES, warn_share=1.0, seed=seed
        )
        trainer.add_callback(watch)
        print(f"AlignProp: {updates} updates of 4 pictures on the style {_STYLE!r}", flush=True)
        quieten(trainer)
        trainer.train()

    kept = [
        [
            said == prompt.partition(" ")[2]
            for said, prompt in zip(concept.name(images), watch.watch.texts, strict=True)
        ]
        for images in (seen[0], seen[-1])
    ]
    names = ["before", f"after {watch.curves[-1]['step']:.0f} updates"]
    measures = Table(
        ["pictures", f"probability of {_STYLE!r}", "pairwise distance", "subject kept"],
        [
            [name, row["reward"], row["pairwise"], sum(hits) / len(hits)]
            for name, row, hits in zip(names, (watch.curves[0], watch.curves[-1]), kept, strict=True)
        ],
        caption=f"{len(_NEW)} things that were not trained, {_IMAGES} pictures of each from the same noise. The "
        "style judge is the reward; distance and subject are the concept judge's, which was not trained on.",
        verdict=verdict(
            f"probability of {_STYLE!r}",
            "after",
            "before",
            paired(rewards[-1].tolist(), rewards[0].tolist()),
            f"{len(rewards[0])} pictures each",
        ),
    )
    print_table(measures)
    steps_seen = [f"{row['step']:.0f} updates" for row in watch.curves]
    rows = [[to_pil(image) for image in images[::_IMAGES][:_SHOWN]] for images in seen]
    points = [(row["reward"], row["pairwise"]) for row in watch.curves]
    return [
        Section(
            "AlignProp: a reward with a gradient",
            f"The gradient of a reward goes back through the picture and the last {max(1, steps // 2)} of {steps} "
            "steps into a LoRA. No pictures, no pairs: prompts, and a judge of styles.",
            figures=[
                Figure(
                    "alignprop",
                    contact_sheet(rows, row_labels=steps_seen, col_labels=list(_NEW[:_SHOWN]), cell=96),
                    alt="Six things, a row for each look at the training.",
                    caption="The same noise in each column.",
                )
            ],
            charts=[
                Chart(
                    "Reward against diversity while it trains",
                    "reward",
                    "pairwise distance",
                    {"AlignProp": points},
                    labels={"AlignProp": steps_seen},
                )
            ],
            tables=[measures],
            commands=[
                "alignext alignprop --dataset_name prompts.csv --reward_funcs pickscore --output_dir out  # on yours"
            ],
        )
    ]
