# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""f-DPG: a constraint that one story in fifteen meets."""

import tempfile

from datasets import Dataset

from alignext import FDPGConfig, FDPGTrainer, mini
from alignext.demos.charts import Chart
from alignext.demos.gallery import Section, Table, print_table
from alignext.demos.stories import curve, quieten, settings
from alignext.demos.verdicts import shares, verdict


_WORD, _PROMPT = "dog", "Once upon a time"


def demo(*, seed: int, steps: int | None) -> list[Section]:
    """A constraint that one story in fifteen meets, before and after a short training with two divergences."""
    steps = steps or 8
    rows, told, course, paths, hits = [], [], {}, {}, {}
    for divergence in ("js", "forward_kl"):
        print(f"f-DPG with {divergence}, {steps} steps", flush=True)
        found, trainer = _constrain(
            divergence, seed, steps, names=[divergence] if rows else ["initial model", divergence]
        )
        rows += [each["measures"] for each in found]
        told += [story for each in found for story in each["stories"]]
        hits |= {each["measures"][0]: each["hits"] for each in found}
        course[divergence] = curve(trainer, "features/tells/policy")
        moved = dict(curve(trainer, "divergence/kl_policy_base"))
        paths[divergence] = [(moved[step], share) for step, share in course[divergence] if step in moved]
    measures = Table(
        ["model", f"tells of a {_WORD}", "KL(pi, a) in nats", "self-BLEU-5", "distinct-2"],
        rows,
        caption="Over 64 stories each. Self-BLEU grows as the stories become alike; distinct-2 falls as they repeat "
        "themselves.",
        verdict=verdict(
            f"stories that tell of a {_WORD}",
            "js",
            "the initial model",
            shares(hits["js"], hits["initial model"]),
            "64 stories each",
        ),
    )
    print_table(measures)
    share = f"share that tells of a {_WORD}"
    return [
        Section(
            f"f-DPG: every story tells of a {_WORD}",
            f"The target is the initial story model where its stories contain the word, and nothing else: the nearest "
            f"distribution that meets the constraint. The model approaches it from its own samples of {_PROMPT!r}, "
            "with two divergences whose optimum is the same. So few steps are a beginning; the documentation has "
            "longer runs with more targets and divergences.",
            charts=[
                Chart("Towards the constraint", "optimizer step", share, course),
                Chart(
                    "The trade-off",
                    "KL(pi, a) in nats: how far from the initial model",
                    share,
                    paths,
                    caption="The same steps. Further up at the same distance is better. Each point is estimated from "
                    "the 64 samples of its step.",
                ),
            ],
            tables=[
                measures,
                Table(["model", "story"], told, f"Begun with {_PROMPT!r}, and not selected.", mark=rf"\b{_WORD}\b"),
            ],
        )
    ]


def _constrain(divergence: str, seed: int, steps: int, names: list[str]) -> tuple[list[dict], FDPGTrainer]:
    """What the embedded model tells before and after the training, as far as named, and the trainer."""

    def tells(completions: list[str], **kwargs: object) -> list[float]:
        return [float(_WORD in text.split()) for text in completions]

    class Evaluated(FDPGTrainer):
        last: list[str] = []

        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            Evaluated.last = completions
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    rows = Dataset.from_list([{"prompt": _PROMPT}])
    with tempfile.TemporaryDirectory() as folder:
        config = FDPGConfig(
            **settings(
                folder,
                seed,
                steps,
                target="binary",
                divergence=divergence,
                learning_rate=2e-5,
                warmup_steps=1,
                num_generations=64,
                per_device_train_batch_size=64,
                per_device_eval_batch_size=64,
                max_completion_length=16,
                log_diversity=True,
            )
        )
        trainer = Evaluated(str(mini.path("lm")), tells, config, rows)
        quieten(trainer)
        found = []
        for name in names:
            if name == divergence:
                trainer.train()
            metrics = trainer.evaluate(rows)
            keys = "features/tells/policy divergence/kl_policy_base diversity/self_bleu_5 diversity/distinct_2".split()
            values = [metrics[f"eval_{key}"] for key in keys]
            stories = [[name, " ".join(text.split())] for text in Evaluated.last[:8]]
            hits = [bool(hit) for hit in tells(Evaluated.last)]
            found.append({"measures": [name, *values], "stories": stories, "hits": hits})
    return found, trainer
