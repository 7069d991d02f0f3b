# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`FDPGTrainer`: TRL's RLOO trainer, moving the policy towards a target distribution with any f-divergence."""

import inspect
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import RLOOTrainer
from trl.trainer.utils import get_config_model_id

from alignext.functional.f_divergences import f_prime
from alignext.functional.f_dpg import advantages, f_dpg_loss
from alignext.methods import method
from alignext.rewards.texts import checked_reward
from alignext.training.cards import mend_card, result_name
from alignext.training.door import check_datasets, model_name, model_or_path, settings, with_args
from alignext.training.logs import get_logger
from alignext.training.runs import check_run

from .config import FDPGConfig
from .door import check, filling_a_batch
from .metrics import batch_metrics, distances, diversity, poor_weights, rare_constraint
from .proposal import Proposal
from .samples import Estimates, Samples, estimate
from .sampling import SamplingTrainer, sequence_sum, without_dropout
from .state import FDPGState


logger = get_logger(__name__)

_EXAMPLE = {"prompt": "Once upon a time"}
_HINT = "Other columns reach the reward functions."
# What scoring takes: of a batch, that is what belongs to its pictures.
_SCORING = inspect.signature(RLOOTrainer._get_per_token_logps_and_entropies).parameters


class FDPGTrainer(SamplingTrainer):
    """
    Trainer for f-DPG: instead of a larger reward, the policy approaches an explicit target distribution (a tilted,
    constrained or moment-matched version of the initial model) under any f-divergence. Sampling, rewards, adapters,
    vision-language inputs, vLLM and buffering are those of [`~trl.RLOOTrainer`].

    Example:

    ```python
    >>> from alignext import FDPGConfig, FDPGTrainer

    >>> def dragons(completions, **kwargs):
    ...     return [float("dragon" in text) for text in completions]

    >>> args = FDPGConfig("dragons", target="binary", divergence="js")
    >>> trainer = FDPGTrainer("Qwen/Qwen2.5-0.5B", reward_funcs=dragons, args=args, train_dataset=prompts)
    >>> trainer.train()
    ```

    Args:
        model (`str` or `os.PathLike` or `PreTrainedModel` or `PeftModel`):
            The policy, as for [`~trl.RLOOTrainer`]. What it is now is the initial model that the target is made of; of
            an instance a copy is kept.
        reward_funcs (`RewardFunc` or `list[RewardFunc]`):
            As for [`~trl.RLOOTrainer`]: a function, sync or async, a sequence classifier or its id. The target says
            what their values mean, see [`FDPGConfig`]. `None` leaves a sample out. Mistakes name function and row.
        args ([`FDPGConfig`], *optional*):
            The configuration. If not given: the defaults.
        train_dataset (`Dataset` or `IterableDataset`):
            A column `prompt`, of texts or conversations. A single row is the unconditional case. Fewer rows than a
            generation batch has prompts are repeated.
        eval_dataset (`Dataset` or `IterableDataset` or `dict`, *optional*): As `train_dataset`.
        processing_class, reward_processing_classes, callbacks, optimizers, quantization_config, peft_config:
            As for [`~trl.RLOOTrainer`].
    """

    loss_is_scaled_for_ga = False
    _tag_names = ["trl", "alignext", "f-dpg"]
    _name = "f-DPG"
    _paper = method("f-DPG").paper

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: FDPGConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
    ) -> None:
        model = model_or_path(model)
        args = settings(args, FDPGConfig, f"{model_name(model)}-f-DPG")
        check_datasets(
            train_dataset, eval_dataset, columns=[["prompt"]], example=_EXAMPLE, texts=["prompt"], hint=_HINT
        )
        reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        check(model, len(reward_funcs), args, train_dataset)
        reward_funcs = [f if isinstance(f, (str, torch.nn.Module)) else checked_reward(f) for f in reward_funcs]
        if train_dataset is not None:
            train_dataset = filling_a_batch(train_dataset, args.generation_batch_size // args.num_generations)
        # RLOO loads its reference by the name in the config, which may not be what the instance holds.
        zero3 = getattr(args.deepspeed_plugin, "zero_stage", 0) == 3
        copied = isinstance(model, PreTrainedModel) and peft_config is None and not is_peft_model(model) and not zero3
        if zero3 and isinstance(model, PreTrainedModel):
            logger.warning("Under ZeRO-3 the initial model is loaded anew from %r.", get_config_model_id(model.config))
        super().__init__(
            model,
            reward_funcs,
            with_args(args, beta=0.0) if copied else args,
            train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        # Not 0, so that the parent also scores the samples with the initial model; what it makes of it is not used.
        self.beta = self.args.beta = args.beta
        check_run(args, self.model)
        if copied:
            self.ref_model = self._frozen_copy()
        self.target_state = self._before_samples = FDPGState()
        self._uses_left = 0  # of the samples at hand, in batches
        if args.proposal == "adaptive":
            copied = None if is_peft_model(self.model) else self._frozen_copy()
            self.proposal = Proposal(self.model, copied, self.accelerator.unwrap_model)
        without_dropout(self.model)
        self._warned: set[str] = set()

    # Target

    def f_prime(self, log_t: torch.Tensor) -> torch.Tensor:
        """
        `f'(t)` as a function of `log t`, see [`f_prime`][alignext.functional.f_divergences.f_prime]. Override it for a
        divergence of your own: any increasing function is the derivative of a convex one. `log_t` is `inf` for samples
        that the target excludes.
        """
        args = self.args
        return f_prime(
            args.divergence, log_t, args.alpha, normalize=args.normalize_generator, log_t_clip=args.log_t_clip
        )

    def _generate_and_score_completions(self, inputs):
        mode = "train" if self.model.training else "eval"
        self._ensure_target()
        if mode == "train":
            self._follow()
            self._before_samples = self.target_state.copied()
            self._uses_left = self.args.steps_per_generation * self.num_iterations
        out, samples = self._sample(inputs)
        found = estimate(samples, self.log_scores(samples.rewards), self.f_prime, self.args, self.target_state)
        if mode == "train":
            self._remember(samples, found)
        self._note(mode, samples, found)
        size = len(inputs)
        local = slice(self.accelerator.process_index * size, (self.accelerator.process_index + 1) * size)
        for name, value in (("log_score", found.score), ("log_z", found.log_z), ("baseline", found.baseline)):
            out[name] = value[local].to(out["ref_logps"])
        out["advantages"] = found.advantages[local].to(out["advantages"])
        logged = self._logs["advantages"]
        for _ in range(min(len(found.advantages), len(logged))):
            logged.pop()
        logged.extend(found.advantages.tolist())
        return out

    def _remember(self, samples: Samples, found: Estimates) -> None:
        state = self.target_state
        if self.args.z_estimator == "running":
            for key, rows in samples.contexts().items():
                state.add(key, found.log_p[rows] - samples.log_q[rows])
        if self.args.baseline == "window":
            new = found.pseudo_rewards[found.log_z.isfinite() & found.scored]
            state.window = (state.window + new.tolist())[-self.args.baseline_window :]

    # Proposal

    def _follow(self) -> None:
        """Every `proposal_update_interval` steps, copy the policy to the proposal if it is nearer to the target."""
        state, step = self.target_state, self.state.global_step
        due = step - state.checked >= self.args.proposal_update_interval
        if self.proposal is None or not due or not state.behind:
            return
        nearer = sum(state.behind) < 0
        if nearer:
            self.proposal.follow(self.accelerator.unwrap_model(self.model))
        state.behind, state.checked = [], step
        self._metrics["train"]["proposal_updated"].append(float(nearer))

    # Loss

    def _compute_loss(self, model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = inputs["completion_mask"]
        per_token, entropies, aux_loss = self._get_per_token_logps_and_entropies(
            model,
            ids,
            torch.cat([inputs["prompt_mask"], mask], dim=1),
            mask.size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: value for name, value in inputs.items() if name in _SCORING},
        )
        log_pi, log_q = sequence_sum(per_token, mask), inputs["old_logps"]
        adv = advantages(
            self.f_prime,
            log_pi,
            inputs["ref_logps"] + inputs["log_score"],
            inputs["log_z"],
            inputs["baseline"],
            reward_clip=self.args.pseudo_reward_clip,
        )
        loss = f_dpg_loss(log_pi, adv, log_q, ratio_clip=self.args.importance_ratio_clip).mean().float()

        mode = "train" if self.model.training else "eval"
        metrics = self._metrics[mode]
        self._uses_left -= mode == "train"
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux_loss
            metrics["aux_loss"].append(self.accelerator.gather_for_metrics(aux_loss).mean().item())
        totals = torch.stack([(entropies * mask).sum(), mask.sum().float()])
        entropy, tokens = self.accelerator.reduce(totals, reduction="sum").tolist()
        metrics["entropy"].append(entropy / max(tokens, 1.0))
        ratio = (log_pi.detach() - log_q).exp().max()
        metrics["importance_ratio/max"].append(self.accelerator.gather(ratio).max().item())
        return loss

    # Metrics

    def _note(self, mode: str, samples: Samples, found: Estimates) -> None:
        """Add a batch to the metrics, and warn of what makes its estimates poor."""
        noted = batch_metrics(samples, found, self.reward_func_names)
        known = found.scored & found.full_log_z.isfinite()
        if self.proposal is not None and known.any():
            of_policy, of_proposal = (distances(samples, found, known, whose) for whose in ("policy", "proposal"))
            noted["divergence/kl_target_proposal"] = of_proposal["kl_target_policy"].item()
            noted["divergence/tv_proposal"] = of_proposal["tv"].item()
            if mode == "train":
                name = "kl_target_policy" if self.args.proposal_update_metric == "kl" else "tv"
                self.target_state.behind.append((of_policy[name] - of_proposal[name]).item())
        if self.args.target == "distributional":
            for name, value in zip(self._target.fitted, self.target_state.coefficients or (), strict=True):
                noted[f"lambda/{name}"] = value
        if self.args.log_diversity:
            noted |= diversity(samples.completions)
        for name, value in noted.items():
            self._metrics[mode][name].append(value)
        for message in poor_weights(samples, found):
            self._warn_once(message)
        if self.args.target == "binary" and mode == "train":
            for message in rare_constraint(samples, found, self.target_state):
                self._warn_once(message)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)

    # Checkpoints

    def _checkpoint_folder(self, trial: Any) -> Path:
        return Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            mend_card(output_dir or self.args.output_dir, result_name(self.args))

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        model_name = model_name or result_name(self.args).split("/")[-1]
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            mend_card(self.args.output_dir, result_name(self.args, model_name))

    def _save_checkpoint(self, model, trial):
        folder = self._checkpoint_folder(trial)
        if self.args.should_save:  # first: what the parent writes last tells that a checkpoint is complete
            folder.mkdir(parents=True, exist_ok=True)
            # Checkpoints hold no samples: those that are not used up are drawn anew, and would count twice.
            (self._before_samples if self._uses_left else self.target_state).save(folder)
            if self.proposal is not None:
                self.proposal.save(folder)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self.target_state = FDPGState.load(Path(checkpoint))
        if self.proposal is not None:
            self.proposal.load(Path(checkpoint))
