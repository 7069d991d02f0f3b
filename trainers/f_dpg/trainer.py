# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`FDPGTrainer`: TRL's RLOO trainer, moving the policy towards a target distribution with any f-divergence."""

import copy
import inspect
import math
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, gather_object, is_peft_model
from datasets import Dataset, IterableDataset
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import RLOOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model, get_config_model_id

from alignext.functional.f_dpg import advantages, estimate_log_z, f_dpg_loss, f_prime, group_advantages
from alignext.methods import method
from alignext.rewards.texts import checked_reward
from alignext.training.cards import mend_card, result_name
from alignext.training.door import check_datasets, model_name, settings, with_args
from alignext.training.logs import get_logger
from alignext.training.runs import check_run

from .config import FDPGConfig
from .metrics import batch_metrics, distances, diversity, poor_weights, rare_constraint
from .proposal import Proposal
from .samples import Estimates, Samples
from .state import FDPGState, context_key
from .targets import Target


logger = get_logger(__name__)

_EXAMPLE = {"prompt": "Once upon a time"}
_HINT = "Other columns reach the reward functions."
# What scoring takes: of a batch, that is what belongs to its pictures.
_SCORING = inspect.signature(RLOOTrainer._get_per_token_logps_and_entropies).parameters


@dataclass
class _Watched:
    """Values that the parent computes for a batch and does not return."""

    scores: list[tuple] = field(default_factory=list)  # per forward pass: model, log-probabilities, arguments
    rewards: torch.Tensor | None = None
    completions: list = field(default_factory=list)


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
        args = settings(args, FDPGConfig, f"{model_name(model)}-f-DPG")
        check_datasets(
            train_dataset, eval_dataset, columns=[["prompt"]], example=_EXAMPLE, texts=["prompt"], hint=_HINT
        )
        reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        _check(model, len(reward_funcs), args, train_dataset)
        reward_funcs = [f if isinstance(f, (str, torch.nn.Module)) else checked_reward(f) for f in reward_funcs]
        if train_dataset is not None:
            train_dataset = _filling_a_batch(train_dataset, args.generation_batch_size // args.num_generations)
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
        self.target_state = FDPGState()
        self.proposal: Proposal | None = None
        if args.proposal == "adaptive":
            copied = None if is_peft_model(self.model) else self._frozen_copy()
            self.proposal = Proposal(self.model, copied, self.accelerator.unwrap_model)
        _without_dropout(self.model)
        self._watched: _Watched | None = None
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
        return self._target.log_scores(rewards, self.target_state.coefficients)

    @property
    def _target(self) -> Target:
        return Target(self.args, self.reward_func_names, self.reward_weights)

    def _ensure_target(self) -> None:
        """Fit `lambda` to samples of the initial model, unless that was done or resumed."""
        if self.args.target == "distributional" and self.target_state.coefficients is None:
            self.target_state.coefficients = self._target.fit(self._sample_for_moments())

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
        if self._watched is not None:
            self._watched.scores.append((model, result[0], args, kwargs))
        return result

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._watched is not None:
            self._watched.rewards, self._watched.completions = rewards, completions
        return rewards

    def _parent_samples(self, inputs: list[dict[str, Any]]) -> tuple[dict[str, Any], _Watched]:
        """A batch of the parent's, drawn from the proposal, and the rewards and log-probabilities behind it."""
        self._watched = watched = _Watched()
        try:
            with self.proposal.sampling(self) if self.proposal else nullcontext(), self._own_law():
                sampler = self.model
                out = super()._generate_and_score_completions(inputs)
        finally:
            self._watched = None
        # With an adapter both are `sampler`, the second time as the initial model.
        models = [model for model, *_ in watched.scores]
        if models != [sampler, sampler if self.ref_model is None else self.ref_model] or watched.rewards is None:
            raise RuntimeError(
                "f-DPG reads the scores of RLOOTrainer, which must score samples with the model that drew them and "
                f"then with the initial model. This TRL scored {len(models)} times, in another way. Use a version "
                "that the documentation names."
            )
        return out, watched

    def _sample(self, inputs: list[dict[str, Any]]) -> tuple[dict[str, Any], Samples]:
        """A batch as the parent samples and scores it, and the samples of all processes."""
        out, watched = self._parent_samples(inputs)
        (_, per_token_q, args, kwargs), (_, per_token_ref, *_) = watched.scores
        mask = out["completion_mask"]
        out["old_logps"], out["ref_logps"] = _sum(per_token_q, mask), _sum(per_token_ref, mask)
        log_pi = out["old_logps"]
        if self.proposal is not None:
            with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
                per_token, *_ = super()._get_per_token_logps_and_entropies(self.model, *args, **kwargs)
            log_pi = _sum(per_token, mask)
        logps = gather(torch.stack([out["old_logps"], out["ref_logps"], log_pi], 1)).cpu().double()
        fixed = self.args.z_estimator == "fixed"
        keys = ["" if self.args.z_scope == "global" else context_key(row) for row in inputs]
        known = [self._known_log_z(row) for row in inputs] if fixed else []
        samples = Samples(
            *logps.unbind(1),
            rewards=torch.as_tensor(watched.rewards).cpu().double(),
            keys=gather_object(keys),
            known_log_z=torch.tensor(gather_object(known), dtype=torch.float64) if fixed else None,
            completions=watched.completions,
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
        found = self._estimates(samples)
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

    def _estimates(self, samples: Samples) -> Estimates:
        args, window = self.args, self.target_state.window
        baseline = (sum(window) / len(window) if window else 0.0) if args.baseline == "window" else args.baseline
        score = self.log_scores(samples.rewards)
        log_p = samples.log_ref + score
        found = torch.zeros(5, len(log_p), dtype=torch.float64)
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
            full = estimate_log_z(log_w, log_sum=log_sum, count=count, leave_one_out=False)
            if known is not None:
                full = known
            elif count + (~log_w.isnan()).sum() < 2:  # nothing but the sample itself
                full = torch.full_like(log_w, math.nan)
            found[:, rows] = torch.stack([group.log_z, full, group.baseline, group.pseudo_rewards, group.advantages])
        return Estimates(score, log_p, *found)

    def _remember(self, samples: Samples, found: Estimates) -> None:
        state = self.target_state
        if self.args.z_estimator == "running":
            for key, rows in samples.contexts().items():
                state.add(key, found.log_p[rows] - samples.log_q[rows])
        if self.args.baseline == "window":
            new = found.pseudo_rewards[found.log_z.isfinite() & found.scored]
            state.window = (state.window + new.tolist())[-self.args.baseline_window :]

    # Proposal

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
        log_pi, log_q = _sum(per_token, mask), inputs["old_logps"]
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
            for name, value in zip(self._target.fitted, self.target_state.coefficients, strict=True):
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
            self.target_state.save(folder)
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

    # After training

    def quasi_rejection_sample(
        self, row: str | list | dict[str, Any], beta: float, *, num_samples: int = 1, max_draws: int = 1000
    ) -> Iterator[dict[str, Any]]:
        """
        Draw samples that are nearer to the target than the policy is. Draws of the policy (with
        `proposal="adaptive"`, of the proposal) are accepted with probability `min(1, P / (beta q))`.
        [`qrs_estimates`][alignext.functional.f_dpg.qrs_estimates] tells what a `beta` gives and costs.

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
    """Turn dropout off everywhere, also where a module keeps its rate as a number, as attention does."""
    disable_dropout_in_model(model)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _sum(per_token: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of sequences, in float64 where there is such: small differences of large sums matter."""
    wide = torch.float32 if per_token.device.type == "mps" else torch.float64
    return (per_token.to(wide) * mask).sum(1)


def _filling_a_batch(dataset: Dataset | IterableDataset, prompts: int) -> Dataset | IterableDataset:
    """
    The dataset, repeated as a whole if it has fewer rows than a generation batch has prompts: the parent drops what
    fills no batch, and would end without a step. All samples of a prompt count as one group, so that two times the
    same prompt is one prompt with twice as many generations.
    """
    if isinstance(dataset, IterableDataset):
        rows = sum(1 for _ in dataset.take(prompts))
        return dataset if rows in (0, prompts) else dataset.repeat(prompts // math.gcd(rows, prompts))
    rows = len(dataset)
    if not 0 < rows < prompts:
        return dataset
    return dataset.select(list(range(rows)) * (prompts // math.gcd(rows, prompts)))


def _check(model: Any, number: int, args: FDPGConfig, dataset: Dataset | IterableDataset | None) -> None:
    """Name what is wrong before anything is loaded."""
    if args.z_estimator == "fixed" and args.z_value is None and dataset is not None:
        columns = list(next(iter(dataset)))
        if "log_z" not in columns:
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
