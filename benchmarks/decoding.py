# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Decoding methods: what a Metropolis step of QAlign, a token of Transfer Q* and a token of SVDecode cost.

    python benchmarks/decoding.py                    # the embedded story model, a few minutes on one CPU core
    python benchmarks/decoding.py --shape 135m       # a random model of that size, too
    python benchmarks/decoding.py --part steps       # decode steps per Metropolis step at B = 1, 8, 32

Each is timed against the stock `generate` and against the naive form, which reads prompts anew, round by round in one
process. Writes `results/decoding-cost-<shape>.json` and `results/decoding-steps.json`, a Markdown table beside each.
"""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
)

from alignext import QAlign, SVDecodeLogitsProcessor, TransferQ, mini
from alignext.decoding.suffixes import SuffixSampler
from common import about, clock_of, compared, median, parser, table, table_of, timed, write


# Of SmolLM-135M; weights are random.
SHAPE_135M = dict(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
)


class Digits:
    """A tokenizer of a model without one: rewards here look at the number of tokens alone."""

    def decode(self, ids: list[int], **kwargs: Any) -> str:
        return " ".join(map(str, ids))


def length(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [0.1 * len(ids) for ids in completion_ids]


def model_of(shape: str, device: str) -> Any:
    torch.manual_seed(0)
    if shape == "135m":
        return LlamaForCausalLM(LlamaConfig(**SHAPE_135M)).eval().to(device)
    return AutoModelForCausalLM.from_pretrained(mini.path("lm")).eval().to(device)


class ReadsPrompts(SuffixSampler):
    """Proposals that read the prompt again, from the start."""

    def first(self) -> list[list[int]]:
        found = super().first()
        self.cache = None
        return found


def metropolis(model: Any, batch: dict, steps: int, naive: bool, **settings: Any) -> Any:
    from alignext.decoding import qalign as module

    ours = module.SuffixSampler
    module.SuffixSampler = ReadsPrompts if naive else ours
    try:
        qalign = QAlign(length, Digits(), num_steps=steps, beta=1e6)  # any proposal of equal length is accepted
        return model.generate(**batch, custom_generate=qalign, do_sample=True, top_k=0, **settings)
    finally:
        module.SuffixSampler = ours


def look_ahead_anew(model: Any, ids: torch.Tensor, k: int, rollout: int, tokens: int) -> None:
    """Transfer Q* as its reference does it: every candidate's text is read from the start."""
    for step in range(tokens):
        room = min(rollout, tokens - step - 1)
        with torch.no_grad():
            scores = model(ids, logits_to_keep=1).logits[:, -1].float()
        top, found = scores.topk(k)
        forked = torch.cat([ids.repeat_interleave(k, 0), found.reshape(-1, 1)], 1)
        rolled = forked
        if room > 0:
            mask = torch.ones_like(forked)
            rolled = model.generate(forked, attention_mask=mask, max_new_tokens=room, do_sample=False)
        values = torch.tensor(length(rolled.tolist()), device=ids.device).view(-1, k)
        best = (top + values).argmax(-1, keepdim=True)
        ids = torch.cat([ids, found.gather(1, best)], 1)


class ReadsAll(SVDecodeLogitsProcessor):
    """Without a cache of its own."""

    def _base_logits(self, ids: torch.Tensor) -> torch.Tensor:
        self._seen = None
        return super()._base_logits(ids)


def adapted(model: Any) -> Any:
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"])).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    return model


def cost(shape: str, rows: int, prompt: int, tokens: int, rounds: int, device: str) -> dict:
    """Seconds of each way, less what the first draw or the prompt takes, and ratios within each round."""
    model = model_of(shape, device)
    ids = torch.randint(3, model.config.vocab_size, (rows, prompt), device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    # Nothing ends a text, so that all are equally long.
    model.generation_config.eos_token_id = None
    fixed = {"max_new_tokens": tokens}
    steps, k, rollout, ahead = 4, 4, 8, 4

    def plain(number: int = tokens, **how: Any) -> Any:
        return model.generate(**batch, max_new_tokens=number, **({"do_sample": False} | how))

    def transfer(number: int) -> Any:
        ours = TransferQ(length, Digits(), k=k, rollout_tokens=rollout)
        return model.generate(**batch, custom_generate=ours, do_sample=False, max_new_tokens=number)

    transfer_tokens = ahead + rollout
    contenders = {
        "plain, sampled": lambda: plain(do_sample=True, top_k=0),
        "QAlign": lambda: metropolis(model, batch, steps, naive=False, **fixed),
        "QAlign, prompts read anew": lambda: metropolis(model, batch, steps, naive=True, **fixed),
        "plain, as long": lambda: plain(transfer_tokens),
        "Transfer Q*": lambda: transfer(transfer_tokens),
        "Transfer Q*, read anew": lambda: look_ahead_anew(model, ids, k, rollout, transfer_tokens),
    }
    found = timed(contenders, rounds, device, warm_up=0)
    tuned = adapted(model)
    svdecode = {
        "plain, with the adapter": lambda: tuned.generate(**batch, do_sample=False, **fixed),
        "SVDecode": lambda: tuned.generate(**batch, do_sample=False, **fixed, logits_processor=_steered(tuned, False)),
        "SVDecode, read anew": lambda: tuned.generate(
            **batch, do_sample=False, **fixed, logits_processor=_steered(tuned, True)
        ),
    }
    found |= timed(svdecode, rounds, device)
    step = {
        name: [(all_ - one) / steps for all_, one in zip(found[name], found["plain, sampled"], strict=True)]
        for name in ("QAlign", "QAlign, prompts read anew")
    }
    comparisons = [
        ("a Metropolis step : a sample by generate", step["QAlign"], found["plain, sampled"]),
        ("a Metropolis step : one that reads prompts anew", step["QAlign"], step["QAlign, prompts read anew"]),
        ("a token of Transfer Q* : one of generate", found["Transfer Q*"], found["plain, as long"]),
        ("a token of Transfer Q* : with all read anew", found["Transfer Q*"], found["Transfer Q*, read anew"]),
        ("a token of SVDecode : one of generate", found["SVDecode"], found["plain, with the adapter"]),
        ("a token of SVDecode : with all read anew", found["SVDecode"], found["SVDecode, read anew"]),
    ]
    rows_of = [{"what": name, **compared(value, base)} for name, value, base in comparisons]
    return {
        "shape": shape,
        "rows": rows,
        "prompt_tokens": prompt,
        "tokens": tokens,
        "k": k,
        "rollout_tokens": rollout,
        "rounds": rounds,
        "seconds": {name: round(median(value), 3) for name, value in found.items()},
        "table": rows_of,
    }


def _steered(model: Any, anew: bool) -> LogitsProcessorList:
    return LogitsProcessorList([(ReadsAll if anew else SVDecodeLogitsProcessor)(model, 1.0, alpha=0.01)])


def decode_steps(sizes: list[int], steps: int, tokens: int, device: str) -> list[dict]:
    """
    Tokens drawn one after the other for a Metropolis step. Counts need no good model: a random one, of whose tokens 1
    in 85 ends a text.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0,
    )  # fmt: skip
    model, rows = LlamaForCausalLM(config).eval().to(device), []
    for size in sizes:
        ids = torch.randint(6, 512, (size, 8), device=device)
        row: dict[str, Any] = {"prompts": size}
        for sharing in ("across_prompts", "none"):
            torch.manual_seed(0)
            qalign = QAlign(length, Digits(), num_steps=steps, beta=1e6, index_sharing=sharing)
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), custom_generate=qalign, do_sample=True, top_k=0,
                max_new_tokens=tokens, eos_token_id=list(range(6)),
            )  # fmt: skip
            lengths = [len(state.ids) for chain in out.chains for state in chain]
            first = max(len(chain[0].ids) for chain in out.chains)
            row |= {
                "decode steps of a whole draw": first,
                f"of a Metropolis step, {sharing}": round((out.decode_steps - first) / steps, 1),
                f"mean length, {sharing}": round(sum(lengths) / len(lengths), 1),
            }
            print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--part", choices=("cost", "steps"), help="one part only (default: both)")
    options.add_argument("--shape", choices=("lm", "135m"), default="lm", help="the embedded model, or a random one")
    options.add_argument("--rows", type=int, default=4, help="prompts in a batch")
    options.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    options.add_argument("--tokens", type=int, default=24, help="tokens of a completion")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--steps", type=int, default=16, help="Metropolis steps of the steps part")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    args = options.parse_args()
    made = about(args.device, "transformers", "peft")
    if args.part != "steps":
        found = cost(args.shape, args.rows, args.prompt, args.tokens, args.rounds, args.device)
        text = (
            f"{clock_of(args.device).capitalize()}; {args.rows} prompts of {args.prompt} tokens, completions of "
            f"{args.tokens}, {found['k']} candidates with rollouts of {found['rollout_tokens']}; medians of "
            f"{args.rounds} rounds by turns, ratios within a round. Seconds are those of a Metropolis step, or of all "
            f"tokens.\n\n{table_of(found['table'])}"
        )
        write(f"decoding-cost-{args.shape}", f"Decoding: cost, {args.shape}", made, found, text)
    if args.part != "cost":
        rows = decode_steps([1, 8, 32], args.steps, 140, args.device)
        header = list(rows[0])
        text = (
            f"Of {args.steps} Metropolis steps with texts of at most 140 tokens, of a random model. Proposals are "
            f"refused for their lengths alone.\n\n{table(header, ([row[key] for key in header] for row in rows))}"
        )
        write("decoding-steps", "QAlign: decode steps per Metropolis step", made, {"table": rows}, text)


if __name__ == "__main__":
    main()
