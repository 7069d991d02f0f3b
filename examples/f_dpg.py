# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Make every story tell of a dog, and keep all else as it is: one story in fifteen does so before.

Runs offline in about a minute on a CPU, on the model that comes with the package:

    python examples/f_dpg.py
    python examples/f_dpg.py --word cat --divergence forward_kl --steps 100

The target is the initial model where the word occurs: the nearest distribution in which every story has it. From a
terminal, with rewards of your own: `alignext f-dpg --prompt "Once upon a time" --reward_funcs rewards.py:function ...`
"""

import argparse
import re

import torch
from datasets import Dataset
from transformers.trainer_callback import ProgressCallback

from alignext import FDPGConfig, FDPGTrainer, mini


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(mini.path("lm")), help="any causal language model with a tokenizer")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--word", default="dog", help="every completion is to contain it")
    parser.add_argument("--divergence", default="js", help="how to approach: js, forward_kl, tv, hellinger, ...")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps")
    parser.add_argument("--samples", type=int, default=64, help="completions of a step")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--out", default="f-dpg-stories", help="folder of the trained model")
    args = parser.parse_args()

    def has_the_word(completions: list[str], **kwargs: object) -> list[float]:
        """The constraint: 1 where it holds."""
        return [float(args.word in re.findall(r"\w+", text.lower())) for text in completions]

    on_cpu = not torch.cuda.is_available()
    prompts = Dataset.from_list([{"prompt": args.prompt}])  # a single row: the unconditional case
    trainer = FDPGTrainer(
        model=args.model,
        reward_funcs=has_the_word,
        args=FDPGConfig(
            args.out,
            target="binary",
            divergence=args.divergence,
            max_steps=args.steps,
            learning_rate=args.learning_rate,
            warmup_steps=1,
            num_generations=args.samples,  # for a single prompt: the whole batch
            per_device_train_batch_size=args.samples,
            per_device_eval_batch_size=args.samples,
            max_completion_length=24,
            log_diversity=True,
            activation_checkpointing=False,  # a small model fits without
            use_cpu=on_cpu,
            bf16=not on_cpu,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
        ),
        train_dataset=prompts,
    )
    trainer.remove_callback(ProgressCallback)  # we print what matters here

    def measure(when: str) -> None:
        found = trainer.evaluate(prompts)
        print(
            f"{when}: {found['eval_features/has_the_word/policy']:.0%} have the word, KL to the initial model "
            f"{found['eval_divergence/kl_policy_base']:.2f} nats, self-BLEU {found['eval_diversity/self_bleu_5']:.2f}"
        )

    measure("before")
    trainer.train()
    measure("after")
    trainer.save_model()

    # Whatever is still missing, rejection supplies: only draws that meet the constraint are accepted.
    for sample in trainer.quasi_rejection_sample(args.prompt, beta=1.0, num_samples=3, max_draws=640):
        print(f"{args.prompt}{sample['completion']} ...")
    print(f"Load it: AutoModelForCausalLM.from_pretrained({args.out!r})")


if __name__ == "__main__":
    main()
