# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The program that `test_invariants.py` starts, in one process and in two: the same training, set up in several ways.

    python -m tests.trainers.invariant FOLDER NAME,... WAY,...

A way is `SIZExACCUMULATION`, rows of a process and micro-batches of a step, with a `c` behind it for checkpointing of
activations, an `f` for FSDP2, or a `z2` or `z3` for DeepSpeed's ZeRO; all ways of a call must have the same of these
three. What a way comes to is written to `FOLDER/NAME/WAY-PROCESS.pt`.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Trainer

from alignext.trainers.bco import BCOConfig, BCOTrainer
from alignext.trainers.diffusion_preference import (
    DiffusionDPOConfig,
    DiffusionDPOTrainer,
    DiffusionKTOConfig,
    DiffusionKTOTrainer,
    InversionDPOConfig,
    InversionDPOTrainer,
    SmPOConfig,
    SmPOTrainer,
)
from alignext.trainers.diffusion_reward import AlignPropConfig, AlignPropTrainer, DDPOConfig, DDPOTrainer
from alignext.trainers.f_dpg import FDPGConfig, FDPGTrainer
from alignext.trainers.mah_dpo import MAHDPOConfig, MAHDPOTrainer
from alignext.trainers.process_reward import ProcessRewardConfig, ProcessRewardTrainer

from .contract import MINI_LM, Row, count_vowels, curve, preference_by_objective, prompts, solutions, unpaired, weights
from .diffusion import DiffusionRow, RewardRow, picture_votes
from .diffusion_reward.tiny import left_is_dark, near_grey


class Dictated(FDPGTrainer):
    """Takes the same completions, whoever writes them: each process has its part of the batch."""

    def _generate_single_turn(self, prompt_ids: list, images: Any, fields: Any) -> list[list[int]]:
        step, size, rank = self.state.global_step, len(prompt_ids), self.accelerator.process_index
        rows = range(rank * size, (rank + 1) * size)
        return [[300 + 7 * step + 11 * row + k for k in range(3 + (step + row) % 4)] for row in rows]


class LoraRow(DiffusionRow):
    """Trains a LoRA."""

    def start(self, folder: Path, **settings: Any) -> Trainer:
        return super().start(folder, peft_config=self.lora, **settings)


_GROUPS = {"num_generations": 2, "beta": 2.0, "max_completion_length": 16}
_INVERT = {"num_inversion_steps": 4, "beta": 20.0}
_INPO = {"num_renoise_steps": 0, "label_sharpness": None, "inversion_eta": 0.1, "num_train_steps_per_pair": 2}
# One prompt, so that processes with the same random numbers would write the same texts.
_FREE = Row(
    FDPGTrainer,
    FDPGConfig,
    lambda conversational: prompts().select([0] * 4),
    _GROUPS | {"num_generations": 4},
    {"reward_funcs": count_vowels},
)
_BACKPROP = {"num_inference_steps": 3, "backprop_steps": "uniform:1:3"}
_POLICY = {"num_inference_steps": 3, "num_images_per_prompt": 2}
ROWS: dict[str, Row | DiffusionRow] = {
    "bco": Row(BCOTrainer, BCOConfig, unpaired),
    "bco-running-mean": Row(BCOTrainer, BCOConfig, unpaired, {"reward_shift": "running_mean"}),
    "f-dpg": Row(Dictated, FDPGConfig, prompts, _GROUPS, {"reward_funcs": count_vowels}),
    "f-dpg-free": _FREE,
    "f-dpg-again": _FREE,
    "process-reward": Row(ProcessRewardTrainer, ProcessRewardConfig, solutions),
    "mah-dpo": Row(MAHDPOTrainer, MAHDPOConfig, preference_by_objective),
    "mah-dpo-natural": Row(MAHDPOTrainer, MAHDPOConfig, preference_by_objective, {"objective_sampling": "natural"}),
    "mah-dpo-example-mean": Row(
        MAHDPOTrainer,
        MAHDPOConfig,
        preference_by_objective,
        {"objective_sampling": "natural", "objective_reduction": "example_mean"},
    ),
    "diffusion-dpo": DiffusionRow(DiffusionDPOTrainer, DiffusionDPOConfig, {"beta": 20.0}),
    "diffusion-dpo-lora": LoraRow(DiffusionDPOTrainer, DiffusionDPOConfig, {"beta": 20.0}),
    "diffusion-kto": DiffusionRow(
        DiffusionKTOTrainer, DiffusionKTOConfig, {"beta": 20.0}, dataset=picture_votes, learns="votes"
    ),
    "inversion-dpo": DiffusionRow(InversionDPOTrainer, InversionDPOConfig, _INVERT),
    "inversion-dpo-all-steps": DiffusionRow(
        InversionDPOTrainer, InversionDPOConfig, _INVERT | {"target": "trajectory", "num_train_steps_per_pair": None}
    ),
    "smpo": DiffusionRow(SmPOTrainer, SmPOConfig, _INVERT),
    "alignprop": RewardRow(AlignPropTrainer, AlignPropConfig, _BACKPROP, arguments={"reward_funcs": near_grey}),
    "ddpo": RewardRow(DDPOTrainer, DDPOConfig, _POLICY, arguments={"reward_funcs": left_is_dark}),
    "ddpo-again": RewardRow(
        DDPOTrainer, DDPOConfig, _POLICY | {"num_iterations": 2}, arguments={"reward_funcs": left_is_dark}
    ),
    "inpo": DiffusionRow(SmPOTrainer, SmPOConfig, _INVERT | _INPO),
}
STEPS = 20
# SGD: Adam would blow rounding up to the size of a step wherever the gradient is about zero. All steps have one
# length, so that the trajectory goes far and is as steep at its end as at its beginning.
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "optim": "sgd",
    "learning_rate": 0.02,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 1.0,
}


def settings_of(way: str) -> dict[str, Any]:
    """The fields of the config that a way stands for."""
    way, _, stage = way.partition("z")
    size, _, accumulation = way.rstrip("cf").partition("x")
    deepspeed = {
        "zero_optimization": {"stage": int(stage or 0)},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }
    return {
        "per_device_train_batch_size": int(size),
        "gradient_accumulation_steps": int(accumulation),
        "activation_checkpointing": "c" in way,
        "use_cpu": "f" not in way,
        "deepspeed": deepspeed if stage else None,
    }


def shard_on_cpu() -> None:
    """Let accelerate run FSDP2 on the CPU, of which it thinks that there is nothing to shard: torch can."""
    os.environ |= {
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)


def zero_on_cpu() -> None:
    """Let DeepSpeed talk by gloo before a model is loaded, as it talks by NCCL where there are GPUs."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.init_distributed("gloo")


def gathered(trained: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights, in one piece under ZeRO-3, too."""
    if not any(hasattr(weight, "ds_id") for weight in trained.parameters()):
        return whole(weights(trained))
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(trained.parameters())):
        return weights(trained)


def whole(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without what FSDP2 has made of them."""
    return {name: w.full_tensor().clone() if isinstance(w, DTensor) else w for name, w in weights.items()}


def lively_lm(folder: Path) -> str:
    """A small random language model whose gradients are not small, the same for everybody."""
    tokenizer = AutoTokenizer.from_pretrained(MINI_LM)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def outcome(trainer: Trainer, way_weights: Callable[[], dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Train; step, loss and gradient norm of every step, how far each weight went, and what the trainer remembers."""
    before, forwards = way_weights(), [0]

    def count(*_: object) -> None:
        forwards[0] += 1

    with torch.nn.modules.module.register_module_forward_hook(count):
        trainer.train()
    after = way_weights()
    found: dict[str, Any] = {
        "curve": torch.tensor(curve(trainer), dtype=torch.float64),
        "moved": torch.cat([(after[name] - before[name]).flatten() for name in after]),
        "forwards": forwards[0],  # of all modules: checkpointed ones go twice
    }
    if isinstance(trainer, BCOTrainer):
        found["stats"] = trainer.reward_shift.stats
    if isinstance(trainer, FDPGTrainer):
        found["state"] = vars(trainer.target_state)
        found["completions"] = list(trainer._logs["completion"])  # of the last step, of all processes
    return found


def main(folder: Path, names: list[str], ways: list[str]) -> None:
    torch.set_num_threads(1)
    rank = os.environ.get("RANK", "0")
    lm = lively_lm(folder / f"lm-{rank}")  # first: one process alone writes once they know of each other
    if "f" in ways[0]:
        shard_on_cpu()
    if "z" in ways[0]:
        zero_on_cpu()
    for name in names:
        row = ROWS[name]
        model = {} if isinstance(row, DiffusionRow) else {"model": lm}
        for way in ways:
            trainer = row.start(folder / name / way, **SETTINGS | settings_of(way) | model)
            trained = trainer.denoiser if isinstance(row, DiffusionRow) else trainer.model
            found = outcome(trainer, lambda trained=trained: gathered(trained))
            if "f" in way:
                found["sharded"] = sum(isinstance(weight, DTensor) for weight in trained.parameters())
                found["trained"] = [whole({"": w})[""] for w in trained.parameters() if w.requires_grad]
                trainer.save_model(str(folder / name / f"{way}-saved"))
            torch.save(found, folder / name / f"{way}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(","))
