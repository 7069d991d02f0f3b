# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Train a process reward on stories that a rule calls pleasant or not, then tell stories guided by it.

Runs offline in a few minutes on a CPU, on the model that comes with the package:

    python examples/process_reward.py

The rule counts words. The process reward learns to say after every sentence how likely the story is to end up
pleasant, and guided decoding keeps of several sentences the one that promises most. A second list of words, which no
label knows, shows whether that is about pleasant stories or about the words of the rule.
"""

import argparse
import re

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from alignext import ProcessRewardConfig, ProcessRewardTrainer, guided_generate, mini
from alignext.decoding.boundaries import sentence_boundary
from alignext.rewards.process import ProcessReward


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
TRAIN_NAMES = "Tom Lily Ben Mia Sam Anna Max Sue Jack Sara Tim Lucy"
HELD_OUT_NAMES = "Amy Bob Jane Leo"
# (pleasant, unpleasant): those of the rule, and those that the labels never depend on
RULE = (
    "happy smiled smile fun liked loved love good nice yummy".split(),
    "sad scared angry hurt cried cry bad lost".split(),
)
OTHERS = (
    (
        "excited laughed giggled together hugged hug special proud brave beautiful kind best better thanked thank "
        "friend friends played enjoyed yay wow warm delicious cool safe pretty"
    ).split(),
    (
        "afraid broke broken worried fell dirty mean upset lonely careless dangerous sick tired hit mad bumped pain "
        "wet scary alone"
    ).split(),
)


def beginnings(names: str) -> list[str]:
    """Every happening for every name."""
    return [f"One day, {name} {happening}." for name in names.split() for happening in HAPPENINGS]


def balance(story: str, lists: tuple[list[str], list[str]]) -> int:
    """How many more pleasant than unpleasant words a story has."""
    words = re.findall("[a-z]+", story.lower())
    return sum(word in lists[0] for word in words) - sum(word in lists[1] for word in words)


def is_pleasant(story: str) -> bool:
    """The rule."""
    return balance(story, RULE) > 0


def sentences(story: str) -> list[str]:
    """A story cut where guided decoding ends its steps, for words instead of tokens."""
    steps = [""]
    for word in re.findall(r"\s*\S+", story):
        if len(steps[-1].split()) >= 6 and sentence_boundary(steps[-1]):
            steps.append("")
        steps[-1] += word
    return steps


@torch.no_grad()
def tell(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], seed: int, tokens: int
) -> list[str]:
    """One continuation of each prompt, sampled."""
    torch.manual_seed(seed)
    stories = []
    for start in range(0, len(prompts), 64):
        batch = tokenizer(prompts[start : start + 64], return_tensors="pt", padding=True, padding_side="left")
        ids = model.generate(**batch.to(model.device), do_sample=True, max_new_tokens=tokens, top_k=50)
        stories += tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return stories


def solutions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], seed: int, tokens: int
) -> Dataset:
    """Stories in steps. Every prefix of a story is labelled with what became of it: a rollout of its value."""
    stories = tell(model, tokenizer, prompts, seed, tokens)
    rows = []
    for prompt, story in zip(prompts, stories, strict=True):
        steps = sentences(story)
        rows.append({"prompt": prompt, "steps": steps, "labels": [float(is_pleasant(story))] * len(steps)})
    return Dataset.from_list(rows)


def train_reward(folder: str, name: str, data: Dataset, steps: int, learning_rate: float) -> ProcessReward:
    """A process reward from a language model."""
    on_cpu = not torch.cuda.is_available()
    trainer = ProcessRewardTrainer(
        model=name,
        args=ProcessRewardConfig(
            folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=learning_rate,
            warmup_steps=steps // 10,
            activation_checkpointing=False,  # a small model fits without
            use_cpu=on_cpu,
            bf16=not on_cpu,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=data,
    )
    trainer.train()
    trainer.save_model()
    return trainer.reward()


def accuracy(reward: ProcessReward, data: Dataset) -> list[float]:
    """How often a pleasant story scores above another one, after its first, middle and last step; 0.5 is chance."""
    scores = reward.scores(data["prompt"], data["steps"])
    pleasant = torch.tensor([labels[0] > 0.5 for labels in data["labels"]])
    found = []
    for place in (0.0, 0.5, 1.0):
        at = torch.stack([row[int(place * (len(row) - 1))] for row in scores])
        found.append(float((at[pleasant][:, None] > at[~pleasant]).float().mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(mini.path("lm")), help="any causal language model with a tokenizer")
    parser.add_argument("--steps", type=int, default=48, help="optimizer steps of 16 stories")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--tokens", type=int, default=60, help="length of a story")
    parser.add_argument("--candidates", type=int, default=5, help="sentences to choose from")
    parser.add_argument("--out", default="process-reward", help="folder of the process reward")
    args = parser.parse_args()

    model, tokenizer = AutoModelForCausalLM.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
    train = solutions(model, tokenizer, 4 * beginnings(TRAIN_NAMES), 0, args.tokens)
    held_out = solutions(model, tokenizer, 2 * beginnings(HELD_OUT_NAMES), 1, args.tokens)
    train.to_json("stories.jsonl")
    share = sum(labels[0] for labels in train["labels"]) / len(train)
    print(f"{share:.0%} of {len(train)} stories are pleasant; they are in stories.jsonl.")
    reward = train_reward(args.out, args.model, train, args.steps, args.learning_rate)
    first, middle, last = accuracy(reward, held_out)
    print(
        f"it tells pleasant held-out stories after their first, middle, last step: {first:.2f} {middle:.2f} {last:.2f}"
    )

    prompts = beginnings(HELD_OUT_NAMES)
    output = guided_generate(
        model,
        tokenizer,
        prompts,
        reward,
        num_candidates=args.candidates,
        max_new_tokens=args.tokens,
        generator=torch.Generator(model.device).manual_seed(2),
    )
    for name, stories in (("sampled", tell(model, tokenizer, prompts, 2, args.tokens)), ("guided", output.texts)):
        pleasant = sum(map(is_pleasant, stories)) / len(stories)
        others = sum(balance(story, OTHERS) for story in stories) / len(stories)
        print(f"{name}: {pleasant:.0%} of new stories are pleasant; other pleasant words per story: {others:+.2f}")
    print(f"{prompts[0]}{output.texts[0]}")
    print(f"Load it: alignext.rewards.process.ProcessReward.from_pretrained({args.out!r})")


if __name__ == "__main__":
    main()
