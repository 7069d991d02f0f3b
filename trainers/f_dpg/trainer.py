# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`FDPGTrainer`: TRL's RLOO trainer, moving the policy towards a target distribution with any f-divergence."""

import copy
import inspect
import math
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate.logging import get_logger
from accelerate.utils import gather, gather_object, is_peft_model
from datasets import Dataset, IterableDataset
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import RLOOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model, get_config_model_id, use_adapter

from alignext.files import replacing
from alignext.functional.f_dpg import (
    divergence_estimates,
    effective_sample_size,
    estimate_log_z,
    f_dpg_loss,
    f_prime,
    fit_lambda,
    group_advantages,
)
from alignext.methods import method
from alignext.training.runs import check_run

from .config import FDPGConfig
from .diversity import distinct_n, self_bleu
from .state import FDPGState, context_key


logger = get_logger(__name__)

_EXPECTED = "expected 'prompt' (example row: {'prompt': 'Once upon a time'}); other columns reach the reward functions"
# What scoring takes: of a batch, that is what belongs to its pictures.
_SCORING = inspect.signature(RLOOTrainer._get_per_token_logps_and_entropies).parameters
_PROPOSAL = "proposal"
_PROPOSAL_FILE = "fdpg_proposal.safetensors"


@dataclass
class Samples:
    """Samples of all processes: `n` of them, on the CPU, float64. Only `completions` are those of this process."""

    log_q: torch.Tensor  # (n,) under the proposal that sampled
    log_ref: torch.Tensor  # (n,) under the initial model
    log_pi: torch.Tensor  # (n,) under the policy
    rewards: torch.Tensor  # (n, number of reward functions); NaN where a function gave None
    keys: list[str]  # of the contexts
    known_log_z: torch.Tensor | None  # (n,) with `z_estimator="fixed"`
    completions: list  # texts or messages

    def contexts(self) -> dict[str, torch.Tensor]:
        """The rows of each context."""
        rows: dict[str, list[int]] = {}
        for i, key in enumerate(self.keys):
            rows.setdefault(key, []).append(i)
        return {key: torch.tensor(of_key) for key, of_key in rows.items()}


class FDPGTrainer(RLOOTrainer):
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
        model (`str` or `PreTrainedModel` or `PeftModel`):
            The policy, as for [`~trl.RLOOTrainer`]. What it is now is the initial model that the target is made of; of
            an instance a copy is kept.
        reward_funcs (`RewardFunc` or `list[RewardFunc]`):
            As for [`~trl.RLOOTrainer`]: a function, sync or async, a sequence classifier or its id. The target says
            what their values mean, see [`FDPGConfig`]. `None` leaves a sample out.
        args ([`FDPGConfig`], *optional*):
            The configuration. If not given: the defaults.
        train_dataset (`Dataset` or `IterableDataset`):
            A column `prompt`, of texts or conversations. A single row is the unconditional case.
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
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = FDPGConfig(f"{name.split('/')[-1]}-f-DPG")
        if not isinstance(args, FDPGConfig):
            raise ValueError(f"`args` is a {type(args).__name__}. Pass an `FDPGConfig`.")
        check_run(args)
        number = len(reward_funcs) if isinstance(reward_funcs, list) else 1
        _check(model, number, args, train_dataset)
        # RLOO loads its reference by the name in the config, which may not be what the instance holds.
        zero3 = getattr(args.deepspeed_plugin, "zero_stage", 0) == 3
        copied = isinstance(model, PreTrainedModel) and peft_config is None and not is_peft_model(model) and not zero3
        if zero3 and isinstance(model, PreTrainedModel):
            logger.warning("Under ZeRO-3 the initial model is loaded anew from %r.", get_config_model_id(model.config))
        beta = args.beta
        args.beta = 0.0 if copied else beta
        try:
            super().__init__(
                model,
                reward_funcs,
                args,
                train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
            )
        finally:
            args.beta = beta
        check_run(args, self.model)
        if copied:
            self.ref_model = self._frozen_copy()
        # Not 0, so that the parent also scores the samples with the initial model; what it makes of it is not used.
        self.beta = beta
        self.target_state = FDPGState()
        self.proposal_model: Any = None
        if args.proposal == "adaptive":
            self._add_proposal()
        _without_dropout(self.model)
        self._scored: list | None = None
        self._rewards: torch.Tensor | None = None
        self._completions: list = []
        self._warned: set[str] = set()

    def _frozen_copy(self) -> Any:
        """A copy of the policy as it is, prepared for scoring and sampling."""
        model = copy.deepcopy(self.accelerator.unwrap_model(self.model))
        vars(model).pop("forward", None)  # the fused head of the original would call the original
        model.requires_grad_(False).eval()
        _without_dropout(model)
        add_fused_lm_head(model, temperature=self.temperature)
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(model, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(model, self.accelerator)
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    # Target

    def f_prime(self, log_t: torch.Tensor) -> torch.Tensor:
        """`f'(t)` as a function of `log t`, see [`f_prime`][alignext.functional.f_dpg.f_prime]. Override it for a
        divergence of your own: any increasing function is the derivative of a convex one. `log_t` is `inf` for samples
        that the target excludes."""
        args = self.args
        return f_prime(
            args.divergence, log_t, args.alpha, normalize=args.normalize_generator, log_t_clip=args.log_t_clip
        )

    def log_scores(self, rewards: torch.Tensor) -> torch.Tensor:
        """
        `s = log P - log a` of samples.

        Args:
            rewards (`torch.Tensor` of shape `(n, K)`): What the `K` reward functions gave; NaN for None.

        Returns:
            `torch.Tensor` of shape `(n,)`: `-inf` where the target is 0, NaN for samples without a score.

        Raises:
            ValueError: A value does not fit the target.
        """
        if self.args.target == "exponential":
            score = self._exponential(rewards)
        elif self.args.target == "binary":
            score = self._log_binary(rewards, range(rewards.size(1)))
        else:
            score = self._distributional(rewards)
        if (score == math.inf).any():
            row = rewards[score == math.inf][0]
            k = int(row.nan_to_num(0.0).abs().argmax())
            raise ValueError(
                f"A reward is infinite: {self.reward_func_names[k]!r} returned {row[k].item()}. Return finite numbers."
            )
        return score

    def _distributional(self, rewards: torch.Tensor) -> torch.Tensor:
        soft, hard = self._features()
        assert self.target_state.coefficients is not None, "the coefficients are fitted before anything is scored"
        score = rewards[:, soft] @ torch.tensor(self.target_state.coefficients, dtype=rewards.dtype)
        score = score + self._log_binary(rewards, hard)
        return torch.where(rewards.isnan().any(1), math.nan, score)

    def _exponential(self, rewards: torch.Tensor) -> torch.Tensor:
        total = (rewards * self.reward_weights.to(rewards)).nansum(1)
        if self.args.reward_clip_range:
            total = total.clamp(*self.args.reward_clip_range)
        return torch.where(rewards.isnan().all(1), math.nan, total / self.args.beta)

    def _log_binary(self, rewards: torch.Tensor, columns: Sequence[int]) -> torch.Tensor:
        """The sum of `log b` over the given functions."""
        values = rewards[:, list(columns)]
        if (values < 0).any():
            row, k = (values < 0).nonzero()[0].tolist()
            raise ValueError(
                f"The reward function {self.reward_func_names[columns[k]]!r} returned {values[row, k].item()}, but a "
                "binary constraint is 0 or 1, and never negative."
            )
        if self.args.binary_floor is not None:
            values = values.clamp(min=self.args.binary_floor)
        if not values.size(1):
            return rewards.new_zeros(len(rewards))
        return torch.where(values.isnan().all(1), math.nan, values.log().nansum(1))

    def _features(self) -> tuple[list[int], list[int]]:
        """The functions of a distributional target with a moment, and those that are constraints."""
        moments = self.args.target_moments
        soft = [k for k, value in enumerate(moments) if value is not None]
        return soft, [k for k, value in enumerate(moments) if value is None]

    def _ensure_target(self) -> None:
        """Fit `lambda` to samples of the initial model, unless that was done or resumed."""
        if self.args.target != "distributional" or self.target_state.coefficients is not None:
            return
        soft, hard = self._features()
        samples = self._sample_for_moments()
        log_w = samples.log_ref - samples.log_q + self._log_binary(samples.rewards, hard)
        log_w = torch.where(samples.rewards.isnan().any(1), -math.inf, log_w)
        contexts = list(samples.contexts().values())
        # One row a context, filled up with samples that weigh nothing.
        padded = log_w.new_full((len(contexts), max(map(len, contexts))), -math.inf)
        phi = log_w.new_zeros(*padded.shape, len(soft))
        for c, rows in enumerate(contexts):
            padded[c, : len(rows)] = log_w[rows]
            values = samples.rewards[rows][:, soft]
            phi[c, : len(rows)] = torch.where(values.isnan(), 0.0, values)
        names = [self.reward_func_names[k] for k in soft]
        coefficients = fit_lambda(padded, phi, [self.args.target_moments[k] for k in soft], names=names)
        self.target_state.coefficients = coefficients.tolist()
        size = effective_sample_size(padded + phi @ coefficients).sum().item() / len(log_w)
        logger.info("lambda of %s: %s (effective sample size %.1f %%).", names, coefficients.tolist(), 100 * size)
        reach = (coefficients.abs() * (phi.flatten(0, 1).amax(0) - phi.flatten(0, 1).amin(0))).max().item()
        if reach > 12:
            logger.warning(
                "The moments %s are almost out of reach together: a sample may weigh exp(%.0f) times as much as "
                "another. Raise `moment_samples`, or ask for less.",
                [self.args.target_moments[k] for k in soft],
                reach,
            )
        if size < 0.05:
            logger.warning(
                "The target is far from the initial model: only %.1f %% of the samples that fit `lambda` count. Raise "
                "`moment_samples`, or ask for less.",
                100 * size,
            )

    def _sample_for_moments(self) -> Samples:
        batch = self.args.generation_batch_size
        rounds = math.ceil(self.args.moment_samples / batch)
        wanted = rounds * batch // self.num_generations
        if isinstance(self.train_dataset, IterableDataset):
            rows = list(islice(self.train_dataset, wanted))
        else:
            order = torch.randperm(len(self.train_dataset), generator=torch.Generator().manual_seed(self.args.seed))
            rows = [self.train_dataset[i] for i in order[:wanted].tolist()]
        drawn = [rows[g % len(rows)] for g in range(wanted) for _ in range(self.num_generations)]
        local, rank = batch // self.accelerator.num_processes, self.accelerator.process_index
        parts = []
        with self._unnoticed(training=True):
            for start in range(0, len(drawn), batch):
                parts.append(self._sample(drawn[start + rank * local : start + (rank + 1) * local])[1])
        tensors = {name: torch.cat([getattr(p, name) for p in parts]) for name in ("log_q", "log_ref", "rewards")}
        keys = [key for part in parts for key in part.keys]
        return Samples(**tensors, log_pi=tensors["log_q"], keys=keys, known_log_z=None, completions=[])

    @contextmanager
    def _unnoticed(self, training: bool) -> Generator[None]:
        """Sample without a trace in metrics and counters, in the mode of training or evaluation."""
        was_training, metrics, seen = self.model.training, self._metrics, self.state.num_input_tokens_seen
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self.model.train(training)
        try:
            yield
        finally:
            self.model.train(was_training)
            self._metrics, self.state.num_input_tokens_seen = metrics, seen

    # Sampling

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if self._scored is not None:
            self._scored.append((result[0], args, kwargs))
        return result

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self._rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._completions = completions
        return self._rewards

    def _sample(self, inputs: list[dict[str, Any]]) -> tuple[dict[str, Any], Samples]:
        """What the parent samples and scores, and the samples of all processes."""
        self._scored = []
        try:
            with self._proposing(), self._own_law():
                out = super()._generate_and_score_completions(inputs)
            # The parent scores with the proposal, then with the initial model.
            (per_token_q, args, kwargs), (per_token_ref, *_) = self._scored
        finally:
            self._scored = None
        mask = out["completion_mask"]
        out["old_logps"], out["ref_logps"] = _sum(per_token_q, mask), _sum(per_token_ref, mask)
        log_pi = out["old_logps"]
        if self.args.proposal == "adaptive":
            with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
                per_token, *_ = super()._get_per_token_logps_and_entropies(self.model, *args, **kwargs)
            log_pi = _sum(per_token, mask)
        logps = gather(torch.stack([out["old_logps"], out["ref_logps"], log_pi], 1)).cpu().double()
        assert self._rewards is not None
        fixed = self.args.z_estimator == "fixed"
        keys = ["" if self.args.z_scope == "global" else context_key(row) for row in inputs]
        known = [self._known_log_z(row) for row in inputs] if fixed else []
        samples = Samples(
            *logps.unbind(1),
            rewards=self._rewards.cpu().double(),
            keys=gather_object(keys),
            known_log_z=torch.tensor(gather_object(known), dtype=torch.float64) if fixed else None,
            completions=self._completions,
        )
        return out, samples

    def _known_log_z(self, row: dict[str, Any]) -> float:
        if self.args.z_value is not None:
            return math.log(self.args.z_value)
        if row.get("log_z") is None:
            raise ValueError("`z_estimator='fixed'` needs `z_value`, or a column `log_z` of numbers in the dataset.")
        return float(row["log_z"])

    def _generate_and_score_completions(self, inputs):
        mode = "train" if self.model.training else "eval"
        self._ensure_target()
        if mode == "train":
            self._follow()
        out, samples = self._sample(inputs)
        score = self.log_scores(samples.rewards)
        if score.isnan().all():
            raise ValueError("The reward functions returned None for every completion of a batch: nothing to learn.")
        log_p = samples.log_ref + score
        log_z, baseline, advantages, pseudo, inclusive = self._advantages(samples, log_p)
        if mode == "train":
            self._remember(samples, log_p, pseudo[log_z.isfinite() & ~score.isnan()])
        self._note(mode, samples, log_p, inclusive, pseudo, advantages)
        self._warn(samples, log_p, inclusive)
        size = len(inputs)
        local = slice(self.accelerator.process_index * size, (self.accelerator.process_index + 1) * size)
        for name, value in (("log_score", score), ("log_z", log_z), ("baseline", baseline)):
            out[name] = value[local].to(out["ref_logps"])
        out["advantages"] = advantages[local].to(out["advantages"])
        logged = self._logs["advantages"]
        for _ in range(min(len(advantages), len(logged))):
            logged.pop()
        logged.extend(advantages.tolist())
        return out

    def _advantages(self, samples: Samples, log_p: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`log Z`, baseline, advantage, pseudo-reward of each sample, and `log Z` with the sample itself in it."""
        args = self.args
        window = self.target_state.window
        baseline = (sum(window) / len(window) if window else 0.0) if args.baseline == "window" else args.baseline
        results = torch.zeros(5, len(log_p), dtype=torch.float64)
        for key, rows in samples.contexts().items():
            log_sum, count = self.target_state.history(key) if args.z_estimator == "running" else (-math.inf, 0)
            known = None if samples.known_log_z is None else samples.known_log_z[rows]
            group = group_advantages(
                self.f_prime,
                samples.log_pi[rows],
                log_p[rows],
                samples.log_q[rows],
                log_z=known,
                log_sum=log_sum,
                count=count,
                baseline=baseline,
                reward_clip=args.pseudo_reward_clip,
            )
            log_w = log_p[rows] - samples.log_q[rows]
            inclusive = estimate_log_z(log_w, log_sum=log_sum, count=count, leave_one_out=False)
            if known is not None:
                inclusive = known
            elif count + (~log_w.isnan()).sum() < 2:  # nothing but the sample itself
                inclusive = torch.full_like(log_w, math.nan)
            results[:, rows] = torch.stack(
                [group.log_z, group.baseline, group.advantages, group.pseudo_rewards, inclusive]
            )
        return tuple(results)

    def _remember(self, samples: Samples, log_p: torch.Tensor, pseudo: torch.Tensor) -> None:
        state, log_w = self.target_state, log_p - samples.log_q
        if self.args.z_estimator == "running":
            for key, rows in samples.contexts().items():
                state.add(key, log_w[rows])
        if self.args.baseline == "window":
            state.window = (state.window + pseudo.tolist())[-self.args.baseline_window :]

    # Proposal

    def _add_proposal(self) -> None:
        """A frozen copy of the policy, which still is the initial model."""
        if not is_peft_model(self.model):
            self.proposal_model = self._frozen_copy()
            return
        self.model.add_adapter(_PROPOSAL, self.model.peft_config["default"])
        self._copy_adapter()
        self.model.set_adapter("default")

    @torch.no_grad()
    def _copy_adapter(self) -> None:
        model = self.accelerator.unwrap_model(self.model)
        parameters = dict(model.named_parameters())
        for name, value in parameters.items():
            if ".default." in name:
                parameters[name.replace(".default.", f".{_PROPOSAL}.")].copy_(value)

    @contextmanager
    def _proposing(self) -> Generator[None]:
        """Let the parent sample from the proposal, and score with it."""
        if self.args.proposal == "online":
            yield
        elif self.proposal_model is None:
            with use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=_PROPOSAL):
                yield
        else:
            policy = self.model, self.model_wrapped
            self.proposal_model.train(self.model.training)
            self.model = self.model_wrapped = self.proposal_model
            try:
                yield
            finally:
                self.model, self.model_wrapped = policy

    @contextmanager
    def _own_law(self) -> Generator[None]:
        """Let the model's generation config, where TRL sets nothing (`min_p`, say), not bend what is sampled."""
        model = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if is_peft_model(model) else model
        config = model.generation_config
        model.generation_config = GenerationConfig()
        try:
            yield
        finally:
            model.generation_config = config

    def _follow(self) -> None:
        """Every `proposal_update_interval` steps, copy the policy to the proposal if it is nearer to the target."""
        state, step = self.target_state, self.state.global_step
        due = step - state.checked >= self.args.proposal_update_interval
        if self.args.proposal == "online" or not due or not state.behind:
            return
        nearer = sum(state.behind) < 0
        if nearer and self.proposal_model is None:
            self._copy_adapter()
        elif nearer:
            policy = self.accelerator.unwrap_model(self.model).state_dict()
            self.accelerator.unwrap_model(self.proposal_model).load_state_dict(policy)
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
        log_pi, log_q = _sum(per_token, mask), inputs["old_logps"]
        log_z, score = inputs["log_z"], inputs["log_score"]
        known = log_z.isfinite() & ~score.isnan()
        log_t = log_pi.detach() - (inputs["ref_logps"] + score) + log_z
        pseudo = -self.f_prime(torch.where(known, log_t, 0.0))
        if self.args.pseudo_reward_clip is not None:
            pseudo = pseudo.clamp(-self.args.pseudo_reward_clip, self.args.pseudo_reward_clip)
        advantages = torch.where(known, pseudo - inputs["baseline"], 0.0)
        loss = f_dpg_loss(log_pi, advantages, log_q, ratio_clip=self.args.importance_ratio_clip).mean().float()

        mode = "train" if self.model.training else "eval"
        metrics = self._metrics[mode]
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

    def _note(self, mode, samples, log_p, log_z, pseudo, advantages) -> None:
        """Add to the metrics; `log_z` is the one with all samples in it."""
        metrics = self._metrics[mode]
        contexts = samples.contexts()
        firsts = torch.tensor([int(rows[0]) for rows in contexts.values()])
        z = log_z[firsts]
        z = z[~z.isnan()]
        log_w = log_p - samples.log_q
        scored = ~log_p.isnan()
        known = scored & log_z.isfinite()
        noted: dict[str, float | torch.Tensor] = {
            "z/ess": torch.stack([effective_sample_size(log_w[rows]) for rows in contexts.values()]).mean(),
            "in_support_fraction": (log_p[scored] > -math.inf).double().mean(),
            "advantage/std": advantages.std(correction=0),
        }
        if len(z):
            noted |= {"z/mean": z.exp().mean(), "z/zero_fraction": (z == -math.inf).double().mean()}
        if (z > -math.inf).any():
            noted["z/log_mean"] = z[z > -math.inf].mean()
        if known.any():
            log_pi, log_q, p = samples.log_pi[known], samples.log_q[known], log_p[known]
            log_t = log_pi - p + log_z[known]
            finite = log_t[log_t.isfinite()]
            noted |= {
                "pseudo_reward/mean": pseudo[known].mean(),
                "pseudo_reward/max": pseudo[known].max(),
                "boost_minus_downweight": (log_t < 0).sum() - (log_t > 0).sum(),
            }
            if len(finite):
                noted |= {"log_t/mean": finite.mean(), "log_t/min": finite.min(), "log_t/max": finite.max()}
            of_policy = divergence_estimates(log_pi, p, samples.log_ref[known], log_q, log_z=log_z[known])
            noted |= {f"divergence/{name}": value for name, value in of_policy.items()}
            if self.args.proposal == "adaptive":
                of_proposal = divergence_estimates(log_q, p, samples.log_ref[known], log_z=log_z[known])
                noted["divergence/kl_target_proposal"] = of_proposal["kl_target_policy"]
                noted["divergence/tv_proposal"] = of_proposal["tv"]
                if mode == "train":
                    name = "kl_target_policy" if self.args.proposal_update_metric == "kl" else "tv"
                    self.target_state.behind.append((of_policy[name] - of_proposal[name]).item())
            self._note_features(metrics, samples, known, (p - log_z[known] - log_q).exp())
        if self.args.target == "distributional":
            for k, value in zip(self._features()[0], self.target_state.coefficients, strict=True):
                noted[f"lambda/{self.reward_func_names[k]}"] = value
        if self.args.log_diversity:
            noted |= self._diversity(samples.completions)
        for name, value in noted.items():
            metrics[name].append(float(value))

    def _note_features(self, metrics, samples, known, w) -> None:
        """The mean of each reward function under the policy, and under the target by importance sampling."""
        rho = (samples.log_pi - samples.log_q)[known].exp()
        for k, name in enumerate(self.reward_func_names):
            values = samples.rewards[known, k]
            given = ~values.isnan()
            for whose, weights in (("policy", rho), ("target", w)):
                total = weights[given].sum()
                if total > 0:
                    mean = (weights[given] * values[given]).sum() / total
                    metrics[f"features/{name}/{whose}"].append(mean.item())

    def _diversity(self, completions: list) -> dict[str, float]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in gather_object(completions)][:128]
        measures = {f"diversity/distinct_{n}": distinct_n(texts, n) for n in (1, 2, 3)}
        return measures | {"diversity/self_bleu_5": self_bleu(texts)}

    def _warn(self, samples: Samples, log_p: torch.Tensor, log_z: torch.Tensor) -> None:
        """Say once what makes the estimates poor."""
        state, log_w = self.target_state, log_p - samples.log_q
        groups = samples.contexts().values()
        sizes = [effective_sample_size(log_w[rows]) for rows in groups]
        sizes = [size.item() for size in sizes if size > 0]
        if sizes and sum(sizes) / len(sizes) < 1.5:
            self._warn_once(
                "The effective sample size of a group is below 1.5: the estimates rest on single samples. Raise "
                "`num_generations`, or choose a target nearer to the initial model (a larger `beta`)."
            )
        log_t = (samples.log_pi - log_p + log_z).abs()
        if (log_t[log_t.isfinite()] > 100).any():
            self._warn_once(
                "|log(pi / p)| is above 100 for a sample: the target is very far from the policy. Choose a larger "
                "`beta`, or smaller rewards."
            )
        if self.args.target != "binary" or not self.model.training:
            return
        unmet = torch.tensor([bool(log_z[rows[0]] == -math.inf) for rows in groups]).double().mean().item()
        state.unmet = [*state.unmet, unmet][-50:]
        if len(state.unmet) == 50 and sum(state.unmet) > 45:
            self._warn_once(
                "For more than 90 % of the prompts no sample of the last 50 batches met the constraint. Start from a "
                "prompt or a fine-tuned model that meets it now and then, or use an exponential target."
            )
        if (samples.rewards > 1).any():
            return
        w = log_w[~log_w.isnan()].exp()
        state.weights = [
            a + b for a, b in zip(state.weights, (len(w), w.sum().item(), w.square().sum().item()), strict=True)
        ]
        n, total, squares = state.weights
        error = math.sqrt(max(squares / n - (total / n) ** 2, 0.0) / n)
        if n > 100 and total / n > 1 + 3 * error:
            self._warn_once(
                "The estimate of Z, the chance of meeting the constraint, is above 1 by more than three standard "
                "errors: importance weights blow up. Lower the learning rate, or use `proposal='adaptive'`."
            )

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)

    # Checkpoints

    def _checkpoint_folder(self, trial: Any) -> Path:
        return Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def _save_checkpoint(self, model, trial):
        folder = self._checkpoint_folder(trial)
        if self.args.should_save:  # first: what the parent writes last tells that a checkpoint is complete
            folder.mkdir(parents=True, exist_ok=True)
            self.target_state.save(folder)
            if self.proposal_model is not None:
                proposal = self.accelerator.unwrap_model(self.proposal_model)
                with replacing(folder / _PROPOSAL_FILE) as part:
                    safetensors.torch.save_model(proposal, str(part))
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self.target_state = FDPGState.load(Path(checkpoint))
        file = Path(checkpoint) / _PROPOSAL_FILE
        if self.proposal_model is not None and file.is_file():
            safetensors.torch.load_model(self.accelerator.unwrap_model(self.proposal_model), str(file))

    # After training

    def quasi_rejection_sample(
        self, row: str | list | dict[str, Any], beta: float, *, num_samples: int = 1, max_draws: int = 1000
    ) -> Iterator[dict[str, Any]]:
        """
        Samples nearer to the target than the policy is: draws of the policy (with `proposal="adaptive"`, of the
        proposal), accepted with probability `min(1, P / (beta q))`. What a `beta` gives and costs is told by
        [`qrs_estimates`][alignext.functional.f_dpg.qrs_estimates].

        Args:
            row (`str` or `list` or `dict`): A prompt, or a row of the dataset with the columns that rewards need.
            beta (`float`): Bound of `P / q`, on the scale of `Z`: the larger, the nearer to the target, and the rarer.
            num_samples (`int`, *optional*, defaults to 1): Stop after as many.
            max_draws (`int`, *optional*, defaults to 1000): Stop after as many draws, whatever was accepted.

        Yields:
            `dict`: `completion`, its `log_weight` `log P - log q`, and `draws`, the number of draws so far.

        Raises:
            ValueError: `beta` is not positive.
        """
        if not beta > 0:
            raise ValueError(f"`beta` is {beta}, but it must be positive.")
        row = row if isinstance(row, dict) else {"prompt": row}
        generator = torch.Generator().manual_seed(self.args.seed)
        size = self.args.per_device_eval_batch_size
        size = math.ceil(size / self.num_generations_eval) * self.num_generations_eval  # whole groups, for the parent
        self._ensure_target()
        draws, accepted = 0, 0
        while draws < max_draws and accepted < num_samples:
            with self._unnoticed(training=False):
                samples = self._sample([row] * size)[1]
            log_w = (samples.log_ref + self.log_scores(samples.rewards) - samples.log_q).nan_to_num(nan=-math.inf)
            chance = (log_w - math.log(beta)).clamp(max=0.0).exp()
            drawn = torch.rand(len(chance), generator=generator, dtype=chance.dtype)
            completions = gather_object(samples.completions)
            for i in range(len(chance)):
                draws += 1
                if drawn[i] < chance[i]:
                    accepted += 1
                    yield {"completion": completions[i], "log_weight": log_w[i].item(), "draws": draws}
                if draws == max_draws or accepted == num_samples:
                    return


def _without_dropout(model: torch.nn.Module) -> None:
    """Also where a module keeps its rate as a number, as attention does."""
    disable_dropout_in_model(model)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _sum(per_token: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of sequences, in float64 where there is such: small differences of large sums matter."""
    wide = torch.float32 if per_token.device.type == "mps" else torch.float64
    return (per_token.to(wide) * mask).sum(1)


def _check(model: Any, number: int, args: FDPGConfig, dataset: Dataset | IterableDataset | None) -> None:
    """Name what is wrong before anything is loaded."""
    if dataset is not None:
        columns = list(next(iter(dataset), {}))
        if "prompt" not in columns:
            raise ValueError(f"The dataset does not have the right columns: found {columns}, {_EXPECTED}.")
        if args.z_estimator == "fixed" and args.z_value is None and "log_z" not in columns:
            raise ValueError(
                f"`z_estimator='fixed'` needs `z_value`, or a column `log_z` in the dataset, which has {columns}."
            )
    if args.target_moments is not None and len(args.target_moments) != number:
        raise ValueError(
            f"There are {len(args.target_moments)} `target_moments` and {number} reward functions: give one each."
        )
    if isinstance(model, str):
        kwargs = {k: v for k, v in (args.model_init_kwargs or {}).items() if k in ("revision", "subfolder", "token")}
        config = AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code, **kwargs)
    else:
        config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{type(config).__name__} is an encoder-decoder model. f-DPG needs a causal language model.")
