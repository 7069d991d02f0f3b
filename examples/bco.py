# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Teach a story model to let its characters speak, from thumbs up and down on its own stories.

Runs offline in about a minute on a CPU, on the model that comes with the package:

    python examples/bco.py

The thumbs follow a rule here (up if somebody speaks). Write your own into `thumbs.jsonl`, one line a completion, and
train any model on them with `alignext bco --dataset_name thumbs.jsonl --model_name_or_path ...`.
"""

import argparse
import copy

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from alignext import BCOConfig, BCOTrainer, mini


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


def thumbs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], seed: int) -> Dataset:
    """Completions of the model, labelled by the rule."""
    stories = tell(model, tokenizer, prompts, seed)
    rows = [{"prompt": p, "completion": s, "label": somebody_speaks(s)} for p, s in zip(prompts, stories, strict=True)]
    return Dataset.from_list(rows)


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> torch.Tensor:
    """Of each completion, shape `(n,)`. Its change in training, times beta, is the implicit reward."""
    values = []
    for row in rows:
        prompt = tokenizer(row["prompt"]).input_ids
        ids = torch.tensor([tokenizer(row["prompt"] + row["completion"]).input_ids], device=model.device)
        logps = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
        values.append(logps[len(prompt) - 1 :].sum())
    return torch.stack(values).cpu()


def accuracy(rewards: torch.Tensor, labels: list[bool]) -> float:
    """How often a completion with a thumb up has a larger reward than one with a thumb down; 0.5 is chance."""
    up = torch.tensor(labels)
    return float((rewards[up][:, None] > rewards[~up]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(mini.path("lm")), help="any causal language model with a tokenizer")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps of 16 completions")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--out", default="bco-stories", help="folder of the trained model")
    args = parser.parse_args()

    model, tokenizer = AutoModelForCausalLM.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
    reference = copy.deepcopy(model)
    prompts = 4 * beginnings("Tom Lily Ben Mia Sam Anna Max Sue Jack Sara Tim Lucy")
    train = thumbs(model, tokenizer, prompts[: 16 * args.steps], seed=0)  # no more than the steps see
    held_out = thumbs(model, tokenizer, 3 * beginnings("Amy Bob Jane Leo"), seed=1)
    train.to_json("thumbs.jsonl")
    up = sum(train["label"])
    print(f"{up} of {len(train)} completions have a thumb up; they are in thumbs.jsonl.")

    on_cpu = not torch.cuda.is_available()
    trainer = BCOTrainer(
        model=model,
        args=BCOConfig(
            args.out,
            max_steps=args.steps,
            per_device_train_batch_size=16,
            learning_rate=args.learning_rate,
            desirable_weight=(len(train) - up) / up,  # both classes weigh the same
            activation_checkpointing=False,  # a small model fits without
            use_cpu=on_cpu,
            bf16=not on_cpu,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=train,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()

    rewards = log_probabilities(model, tokenizer, held_out) - log_probabilities(reference, tokenizer, held_out)
    print(f"implicit accuracy on {len(held_out)} held-out completions: {accuracy(rewards, held_out['label']):.2f}")
    for name, teller in (("before", reference), ("after", model)):
        stories = tell(teller, tokenizer, 3 * beginnings("Amy Bob Jane Leo"), seed=2)
        print(f"somebody speaks in {sum(map(somebody_speaks, stories)) / len(stories):.0%} of new stories {name}")
    print(f"Load it: AutoModelForCausalLM.from_pretrained({args.out!r})")


if __name__ == "__main__":
    main()
