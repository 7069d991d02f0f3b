# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Steer stories towards happiness: along a fitted direction, and along one that Concept DAS learns.

Runs offline in a few minutes on a CPU, on the model that comes with the package:

    python examples/steering.py

The model writes its own data: each beginning as it is, and behind a sentence that asks for happiness. A direction is
fitted to the two kinds of endings, and another one is learnt; then new beginnings, without the sentence, are continued
along each of them. The page `steered.html` shows which tokens were moved.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext import CDASConfig, CDASTrainer, SteeringVector, fit_steering, make_quads, mini
from alignext.steering import save_traces, trace_steering


ASK = "It was the happiest day of all, and everybody smiled and laughed."
HAPPY = set("happy smile smiled laughed fun love loved joy good great".split())


def beginnings(names: str) -> list[str]:
    """Four for each name."""
    happenings = ("went to the park.", "found a big box.", "had a red ball.", "saw a little dog.")
    return [f"One day, {name} {it}" for name in names.split() for it in happenings]


def tell(model, tokenizer, prompts: list[str], tokens: int, seed: int = 0) -> list[str]:
    """A sampled ending for each beginning."""
    torch.manual_seed(seed)
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ids = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=tokens)
    return tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def happy_words(texts: list[str]) -> float:
    """Happy words in a text, on average."""
    return sum(word.strip('.,!?"').lower() in HAPPY for text in texts for word in text.split()) / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(mini.path("lm")), help="folder or Hub id of a causal language model")
    parser.add_argument("--layer", type=int, default=3, help="that is steered")
    parser.add_argument("--tokens", type=int, default=24, help="of an ending")
    parser.add_argument("--steps", type=int, default=30, help="of Concept DAS")
    parser.add_argument("--names", default="Tom Lily Ben", help="of the data, four beginnings each")
    args = parser.parse_args()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
    quads = make_quads(
        model, tokenizer, beginnings(args.names), lambda prompt: f"{ASK} {prompt}", max_new_tokens=args.tokens
    )
    pairs = [
        {"prompt": row["neutral_prompt"], "positive": row["concept_completion"], "negative": row["neutral_completion"]}
        for row in quads
    ]
    fitted = fit_steering(model, tokenizer, pairs, layers=args.layer)
    assert isinstance(fitted, SteeringVector)
    settings = {"report_to": "none", "save_strategy": "no", "use_cpu": not torch.cuda.is_available()}
    config = CDASConfig("steering", layer=str(args.layer), max_steps=args.steps, logging_steps=5, **settings)
    trainer = CDASTrainer(model, config, quads, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    learnt = trainer.steering_vector

    prompts = beginnings("Amy Bob")
    print(
        f"{'':28}happy words an ending\n{'as it is':28}{happy_words(tell(model, tokenizer, prompts, args.tokens)):.2f}"
    )
    for name, vector, alphas in (("fitted, swfc", fitted, (2.0, 6.0)), ("Concept DAS, clamp", learnt, (1.0, 4.0))):
        for alpha in alphas:
            with vector.apply(model, "swfc" if vector is fitted else None, alpha):
                texts = tell(model, tokenizer, prompts, args.tokens)
            print(f"{f'{name}, strength {alpha:g}':28}{happy_words(texts):.2f}  {texts[0].strip()}")
    traces = [trace_steering(model, tokenizer, fitted, prompts[0] + text, "stmp") for text in texts[:2]]
    save_traces("steered.html", traces, fitted)
    print("Which tokens StMP would move: steered.html")


if __name__ == "__main__":
    main()
