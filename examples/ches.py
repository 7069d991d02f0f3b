# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Score preference pairs before DPO, and see which chosen answers it would push down.

Runs offline in a minute or two on a CPU, on the model that comes with the package:

    python examples/ches.py

Half of the pairs hold two answers that say the same, half two that have nothing in common. The scores tell them apart;
DPO on all of them then shows what became of the chosen answers of either half.
"""

import argparse

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from alignext import CHESCallback, add_ches_scores, filter_by_ches, mini


NAMES = "Tom Lily Ben Mia Sam Anna".split()
ALIKE = (" It was a good day and they were happy.", " It was a good day and they were glad.")
APART = (" They played with the ball and laughed.", " Rain fell, so nobody came to the dark house.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(mini.path("lm")), help="folder or Hub id of a causal language model")
    parser.add_argument("--steps", type=int, default=8, help="of DPO")
    args = parser.parse_args()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
    pairs = Dataset.from_list(
        [
            {"prompt": f"One day, {name} went to the park.", "chosen": chosen, "rejected": rejected}
            for name in NAMES
            for chosen, rejected in (ALIKE, APART)
        ]
    )
    scored = add_ches_scores(model, pairs, processing_class=tokenizer)
    for row in sorted(scored, key=lambda row: -row["ln_ches"])[:3]:
        print(f"{row['ln_ches']:8.2f}  {row['chosen']}  |  {row['rejected']}")
    kept = filter_by_ches(scored, drop_top=0.5)
    apart = sum(row["chosen"] == APART[0] for row in kept)
    print(f"{len(kept)} of {len(scored)} pairs are kept; {apart} hold two stories.")

    config = DPOConfig(
        "ches",
        max_steps=args.steps,
        per_device_train_batch_size=4,
        learning_rate=5e-4,
        logging_steps=args.steps,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
    )
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"])
    trainer = DPOTrainer(model, args=config, train_dataset=scored, processing_class=tokenizer, peft_config=lora)
    trainer.add_callback(CHESCallback(trainer, quantiles=2))
    trainer.train()
    last = [log for log in trainer.state.log_history if "ches/chosen_change_1" in log][-1]
    print(f"Log-probability of chosen answers: {last['ches/chosen_change_1']:+.2f} for low scores,", end=" ")
    print(f"{last['ches/chosen_change_2']:+.2f} for high ones.")


if __name__ == "__main__":
    main()
