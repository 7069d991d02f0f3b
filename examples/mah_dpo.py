# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Teach a story model three things at once, a head each, then choose how much of each when it tells a story.

Runs offline in about a minute on a CPU, on the model that comes with the package:

    python examples/mah_dpo.py

Pairs come from the model itself and follow rules here: somebody speaks, somebody is happy, the story is outdoors.
Write your own into `preferences.jsonl`, one line a pair with its `objective`, and train any model on them with
`alignext mah-dpo --dataset_name preferences.jsonl --model_name_or_path ...`.
"""

import argparse
import random
import re

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from alignext import AutoModelForCausalLMWithObjectiveHeads, MAHDPOConfig, MAHDPOTrainer, mini


HAPPENINGS = [
    "went to the park",
    "found a big box",
    "had a red ball",
    "saw a little dog",
    "was at the lake",
    "wanted some cake",
    "made a new friend",
    "heard a noise",
]
HAPPY = "happy smiled smile laughed fun love loved excited proud glad joy hugged good nice"
OUTDOORS = (
    "tree trees sun sky flower flowers grass garden park forest bird birds river hill outside butterfly leaves rain"
)


def beginnings(names: str) -> list[str]:
    """Every happening for every name."""
    return [f"One day, {name} {happening}." for name in names.split() for happening in HAPPENINGS]


@torch.no_grad()
def tell(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], seed: int) -> list[str]:
    """One continuation of each prompt, sampled and cut after its last whole sentence."""
    torch.manual_seed(seed)
    stories = []
    for start in range(0, len(prompts), 64):
        batch = tokenizer(prompts[start : start + 64], return_tensors="pt", padding=True, padding_side="left")
        ids = model.generate(**batch.to(model.device), do_sample=True, max_new_tokens=40, top_k=0)
        stories += tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    ends = [max(story.rfind(mark) for mark in '.!?"') + 1 for story in stories]
    return [" " + (story[:end] or story).strip() for story, end in zip(stories, ends, strict=True)]


def somebody_speaks(story: str) -> bool:
    return '"' in story


def has_word_of(words: str, story: str) -> bool:
    return not set(words.split()).isdisjoint(re.findall("[a-z]+", story.lower()))


RULES = {
    "speaks": somebody_speaks,
    "happy": lambda story: has_word_of(HAPPY, story),
    "outdoors": lambda story: has_word_of(OUTDOORS, story),
}


def preferences(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], samples: int, seed: int
) -> Dataset:
    """Pairs of stories of the model with the same beginning, of which only the chosen one follows the rule."""
    told = dict.fromkeys(prompts, ())
    for prompt, story in zip(samples * prompts, tell(model, tokenizer, samples * prompts, seed), strict=True):
        told[prompt] += (story,)
    shuffle = random.Random(seed).shuffle
    rows = []
    for prompt, stories in told.items():
        for objective, follows in RULES.items():
            good, bad = [s for s in stories if follows(s)], [s for s in stories if not follows(s)]
            shuffle(good), shuffle(bad)
            pairs = zip(good, bad, strict=False)
            rows += [{"prompt": prompt, "chosen": c, "rejected": r, "objective": objective} for c, r in pairs]
    return Dataset.from_list(rows)


def shares(stories: list[str]) -> dict[str, float]:
    """Of each rule, the share of stories that follow it."""
    return {name: sum(map(follows, stories)) / len(stories) for name, follows in RULES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(mini.path("lm")), help="any causal language model with a tokenizer")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps of 12 pairs")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--out", default="mah-dpo-stories", help="folder of the trained adapter and heads")
    args = parser.parse_args()

    base, tokenizer = AutoModelForCausalLM.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
    samples = min(8, 2 + args.steps // 4)  # few steps see few pairs
    data = preferences(base, tokenizer, beginnings("Tom Lily Ben Mia Sam Anna Max Sue"), samples, seed=0)
    data.to_json("preferences.jsonl")
    print({name: data["objective"].count(name) for name in RULES}, "pairs; they are in preferences.jsonl.")

    on_cpu = not torch.cuda.is_available()
    trainer = MAHDPOTrainer(
        model=args.model,
        args=MAHDPOConfig(
            args.out,
            objectives=list(RULES),
            max_steps=args.steps,
            per_device_train_batch_size=12,
            learning_rate=args.learning_rate,
            activation_checkpointing=False,  # a small model fits without
            use_cpu=on_cpu,
            bf16=not on_cpu,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=data,
        processing_class=tokenizer,
        # The backbone by an adapter, which leaves more to the heads; without it all is trained.
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()

    model = AutoModelForCausalLMWithObjectiveHeads.from_pretrained(args.out).merge_and_unload()
    prompts = 3 * beginnings("Amy Bob Jane Leo")
    print("Share of new stories that follow each rule:")
    print("  before:", shares(tell(base, tokenizer, prompts, seed=2)))
    for weights in ({"speaks": 1}, {"happy": 1}, {"outdoors": 1}, dict.fromkeys(RULES, 1)):
        with model.mixed_heads(weights):  # or model.generate(..., objective_weights=weights)
            print(f"  {weights}:", shares(tell(model, tokenizer, prompts, seed=2)))
    model.merge_heads({"speaks": 1, "outdoors": 1}).save_pretrained(f"{args.out}/merged")
    print(f"Load it: AutoModelForCausalLMWithObjectiveHeads.from_pretrained({args.out!r})")
    print(f"One mixture for any server: AutoModelForCausalLM.from_pretrained({args.out + '/merged'!r})")


if __name__ == "__main__":
    main()
