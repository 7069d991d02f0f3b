# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A causal language model with one output head per objective, mixed by weights when it generates.

Every causal language model of transformers can have them: `objective_heads_class(LlamaForCausalLM)` is a subclass of
`LlamaForCausalLM`, made once, whose own `lm_head` stays as the head of the reference policy.
"""

import copy
import functools
import json
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import find_adapter_config_file

from alignext.files import replacing
from alignext.functional.low_rank_head import low_rank_log_probs
from alignext.functional.mah_dpo import mix_heads, normalize_weights


if TYPE_CHECKING:
    from trl.trainer.utils import FusedCausalLMOutput

# A mapping from names, numbers in the order of the objectives, one row of them per prompt, or the untouched base head.
ObjectiveWeights = Mapping[str, float] | Sequence[float] | torch.Tensor | str | None

_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")


class ObjectiveHeads(nn.Module):
    """
    The heads: `weight_0`, `weight_1`, ... of shape `(V, d)`; of low rank, `A_k` of shape `(r, d)` and `B_k` of shape
    `(V, r)`, added to the base head as `(alpha / r) B_k A_k`. Every head is a parameter of its own: gradients of one
    stacked tensor would be as large as all heads, and DeepSpeed gathers whole parameters.

    Args:
        settings (`dict`): As in `config.objective_heads`.
        vocabulary (`int`): `V`.
        width (`int`): `d`.
        bias (`bool`): Whether the base head has one; full heads then do, too.
    """

    def __init__(self, settings: dict[str, Any], vocabulary: int, width: int, bias: bool) -> None:
        super().__init__()
        self.missing: list[str] = []  # what a checkpoint did not have
        self.count = len(settings["objectives"])
        self.low_rank = settings["head_type"] == "low_rank"
        self.scale = settings["alpha"] / settings["rank"] if self.low_rank else 1.0
        shapes = {"weight": (vocabulary, width)} | ({"bias": (vocabulary,)} if bias else {})
        if self.low_rank:
            shapes = {"A": (settings["rank"], width), "B": (vocabulary, settings["rank"])}
        for k in range(self.count):
            for name, shape in shapes.items():
                self.register_parameter(f"{name}_{k}", nn.Parameter(torch.empty(shape)))

    def all(self, name: str) -> list[torch.Tensor]:
        """The parameters of that name, one per head; whole ones where FSDP has sharded them."""
        weights = [getattr(self, f"{name}_{k}") for k in range(self.count)]
        if any(weight.is_meta for weight in weights):
            raise ValueError(
                "The objective heads are offloaded and cannot be mixed. Load the model without offloading, or a model "
                "made by `merge_heads`."
            )
        return [_whole(weight) for weight in weights]

    @torch.no_grad()
    def init_from(self, base: Any, *, std: float, seed: int) -> None:
        """Copies of the base head, plus noise: `W_k = W + std N(0, 1)`, drawn with seed `seed + 100 k`."""
        for k in range(self.count):
            generator = torch.Generator().manual_seed(seed + 100 * k)
            if self.low_rank:
                down = getattr(self, f"A_{k}")
                down.copy_(torch.randn(down.shape, generator=generator) / down.shape[1] ** 0.5)
                getattr(self, f"B_{k}").zero_()
                continue
            weight = getattr(self, f"weight_{k}")
            weight.copy_(base.weight)
            if std:
                weight += std * torch.randn(weight.shape, generator=generator).to(weight)
            if base.bias is not None:
                getattr(self, f"bias_{k}").copy_(base.bias)

    def resize(self, base: Any) -> None:
        """As many tokens as the base head has: old rows stay, new ones are the base head's."""
        vocabulary = base.weight.shape[0]
        for name, old in list(self.named_parameters(recurse=False)):
            if name.startswith("A_"):
                continue
            new = {"w": base.weight, "b": base.bias}.get(name[0])
            kept = old.detach()[:vocabulary]
            rows = old.new_zeros(vocabulary, *old.shape[1:]) if new is None else new.detach().to(old)
            resized = torch.cat([kept, rows[len(kept) :]])
            setattr(self, name, nn.Parameter(resized, requires_grad=old.requires_grad))

    def folded(self, base: Any, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of the mixture, in the dtype of the base head; `weights` of shape `(H,)`."""
        weight, bias = _whole(base.weight), _whole(base.bias)
        dtype = weight.dtype
        if not self.low_rank:
            bias = None if bias is None else mix_heads(self.all("bias"), weights).to(dtype)
            return mix_heads(self.all("weight"), weights).to(dtype), bias
        total = _total(weights)
        wide = torch.promote_types(dtype, torch.float32)
        mixed = weight.to(wide) if total == 1 else total * weight.to(wide)
        for w, down, up in zip(weights.tolist(), self.all("A"), self.all("B"), strict=True):
            if w != 0:
                mixed = torch.addmm(mixed, up.to(wide), down.to(wide), alpha=w * self.scale)
        if bias is not None and total != 1:
            bias = bias * total
        return mixed.to(dtype), bias

    def forward(self, hidden: torch.Tensor, base: Any) -> torch.Tensor:
        """The logits of all heads, shape `(H, ..., V)`, of hidden states of shape `(..., d)`."""
        weight, bias = _whole(base.weight), _whole(base.bias)
        if not self.low_rank:
            biases = [None] * self.count if bias is None else self.all("bias")
            return torch.stack([_linear(hidden, w, b) for w, b in zip(self.all("weight"), biases, strict=True)])
        logits = _linear(hidden, weight, bias)
        pairs = zip(self.all("A"), self.all("B"), strict=True)
        return torch.stack([logits + self.scale * _linear(_linear(hidden, down), up) for down, up in pairs])

    def by_row(self, base: Any, weights: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """What gives the mixed logits of hidden states of shape `(B, T, d)`, with weights of shape `(B, H)`."""
        mixtures, which = weights.unique(dim=0, return_inverse=True)
        # With more mixtures than heads, head by head takes fewer multiplications.
        fold = not self.low_rank and len(mixtures) <= self.count
        folded = [self.folded(base, mixture) for mixture in mixtures] if fold else []

        def mixed(hidden: torch.Tensor) -> torch.Tensor:
            if len(hidden) % len(weights):
                raise ValueError(
                    f"`objective_weights` has {len(weights)} rows and the batch {len(hidden)}: give one per prompt."
                )
            copies = len(hidden) // len(weights)  # beams and several samples of a prompt stand next to each other
            if fold:
                row = which.repeat_interleave(copies).to(hidden.device)
                logits = hidden.new_empty(*hidden.shape[:-1], len(folded[0][0]))
                for i, (weight, bias) in enumerate(folded):
                    logits[row == i] = _linear(hidden[row == i], weight, bias).to(logits)
                return logits
            by_row = weights.repeat_interleave(copies, 0).to(hidden.device)
            if not self.low_rank:
                return torch.einsum("bh,hb...->b...", by_row.to(hidden), self(hidden, base))
            downs = [w[:, None, None] * _linear(hidden, a) for w, a in zip(by_row.T, self.all("A"), strict=True)]
            down = self.scale * torch.cat(downs, -1)
            logits = _linear(hidden, _whole(base.weight), _whole(base.bias))
            total = by_row.sum(1)[:, None, None]
            return total.to(logits) * logits + _linear(down.to(hidden), torch.cat(self.all("B"), -1))

        return mixed


if TYPE_CHECKING:
    _Model = PreTrainedModel
else:
    _Model = object


class ObjectiveHeadsMixin(_Model):
    """
    Adds objective heads to the model class it is put before. The base head `lm_head` stays what it was: it is the
    reference policy's, and what a stock class finds in the checkpoint. Everything else is inherited.

    Calls that mix heads put a function in the place of `lm_head.forward` for as long as they run, so that whatever the
    architecture does with logits (scales, soft caps) it does with mixed ones, too. Two threads can therefore not share
    a model with different weights; [`~ObjectiveHeadsMixin.merge_heads`] makes a model that can be shared.

    Attributes:
        objectives (`list[str]`): Names, in the order of the heads.
        fresh_heads (`bool`): Whether the heads came from the base head rather than from a checkpoint.
    """

    objective_heads: ObjectiveHeads
    fresh_heads: bool = False
    _mixing: bool = False

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        base = self.get_output_embeddings()
        if not isinstance(base, nn.Linear):
            raise ValueError(f"{type(self).__mro__[2].__name__} has no linear output head, which objectives need.")
        vocabulary, width = base.weight.shape
        self.add_model_tags(["alignext", "objective-heads"])  # of the card that `push_to_hub` writes
        self.objective_heads = ObjectiveHeads(config.objective_heads, vocabulary, width, base.bias is not None)
        if base.weight.device.type != "meta":
            self.init_objective_heads()
            self._freeze_base_head()

    def init_objective_heads(self, *, std: float = 0.0, seed: int = 42) -> None:
        """
        Make every head a copy of the base head.

        Args:
            std (`float`, *optional*, defaults to 0.0):
                Noise on full heads. The authors use 1e-3, whatever the scale of the head.
            seed (`int`, *optional*, defaults to 42):
                Head `k` draws with seed `seed + 100 k`, from a generator of its own.
        """
        base = self.get_output_embeddings()
        if self.config.get_text_config().tie_word_embeddings:
            base = SimpleNamespace(weight=self.get_input_embeddings().weight, bias=base.bias)
        self.objective_heads.to(getattr(torch, self.config.objective_heads["dtype"]))
        self.objective_heads.init_from(base, std=std, seed=seed)
        self.fresh_heads = True

    def _freeze_base_head(self) -> None:
        """Nobody trains it, and DDP does not like parameters that get no gradient. Tied, it is the embeddings."""
        base = self.get_output_embeddings()
        if base.weight is not self.get_input_embeddings().weight:
            base.requires_grad_(False)

    @property
    def objectives(self) -> list[str]:
        return self.config.objective_heads["objectives"]

    # Loading

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ObjectiveHeads):  # called for a module that the checkpoint does not have, or not whole
            module.missing = [
                name for name, weight in module.named_parameters() if not getattr(weight, "_is_hf_initialized", False)
            ]
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, head_init_std: float = 0.0, head_init_seed: int = 42, **kwargs):
        report = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        own = {name for name, _ in model.named_parameters() if not name.startswith("objective_heads.")}
        if own and own <= set(info["missing_keys"]):
            raise ValueError(
                f"No weight of {path!r} fits {cls.__name__}: it would start from random numbers. Found "
                f"{sorted(info['unexpected_keys'])[:3]}, expected {sorted(own)[:3]}."
            )
        heads, missing = model.objective_heads, model.objective_heads.missing
        if missing and len(missing) < len(list(heads.parameters())):
            raise ValueError(
                f"{path!r} has some of its objective heads only: {', '.join(sorted(missing))} are missing."
            )
        if missing:
            model.init_objective_heads(std=head_init_std, seed=head_init_seed)
        else:
            heads.to(getattr(torch, model.config.objective_heads["dtype"]))
        model._freeze_base_head()
        return (model, info) if report else model

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As the stock method; the new rows of every head are those of the base head."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.objective_heads.resize(self.get_output_embeddings())
        self._freeze_base_head()
        return embeddings

    # Mixing

    def mixing_weights(self, weights: ObjectiveWeights, *, normalize: bool = True) -> torch.Tensor:
        """
        Weights as a tensor: names that a mapping does not have count 0; `None` are the config's `default_weights`, or
        equal ones.

        Args:
            weights (`Mapping[str, float]`, `Sequence[float]`, `torch.Tensor` or `None`): As given to `generate`.
            normalize (`bool`, *optional*, defaults to `True`): Divide them by their sum.

        Returns:
            `torch.Tensor` of shape `(H,)` or `(B, H)`.

        Raises:
            ValueError: A name that is no objective, another number of weights than of objectives, or a wrong number.
        """
        if weights is None:
            weights = self.config.objective_heads.get("default_weights") or [1.0] * len(self.objectives)
        weights = _as_tensor(weights, self.objectives, "objective_weights")
        return normalize_weights(weights, normalize=normalize)

    @contextmanager
    def mixed_heads(self, weights: ObjectiveWeights = None, *, normalize_weights: bool = True) -> Generator[None]:
        """
        Within this context the model is the mixture: heads are folded into one once, and every call that gives no
        weights of its own uses it. Use it around many calls with the same weights.

        Args:
            weights (`Mapping[str, float]`, `Sequence[float]`, `torch.Tensor` or `"base"`, *optional*):
                Per objective. A tensor of shape `(B, H)` has one row per prompt, shared by its beams and samples.
                `"base"` is the untouched base head.
            normalize_weights (`bool`, *optional*, defaults to `True`): Divide them by their sum.
        """
        base, heads = self.get_output_embeddings(), self.objective_heads
        before, mixing = vars(base).get("forward"), self._mixing
        if isinstance(weights, str) and weights == "base":
            mixed = type(base).forward.__get__(base)
        else:
            chosen = self.mixing_weights(weights, normalize=normalize_weights)
            if chosen.ndim == 1:
                mixed = functools.partial(
                    _linear, **dict(zip(("weight", "bias"), heads.folded(base, chosen), strict=True))
                )
            else:
                mixed = heads.by_row(base, chosen)
        try:
            base.forward, self._mixing = mixed, True
            yield
        finally:
            self._mixing = mixing
            del base.forward
            if before is not None:
                base.forward = before

    def generate(
        self, *args: Any, objective_weights: ObjectiveWeights = None, normalize_weights: bool = True, **kwargs: Any
    ) -> Any:
        """
        As the stock method, from the mixture of the heads `sum_k w_k z_k` of raw logits.

        Args:
            *args: As for the stock method.
            objective_weights (`Mapping[str, float]`, `Sequence[float]`, `torch.Tensor` or `"base"`, *optional*):
                Weight of each objective; names left out count 0. One row of them per prompt as a tensor of shape `(B,
                H)`. Equal weights if not given. `"base"` is the untouched base head.
            normalize_weights (`bool`, *optional*, defaults to `True`):
                Divide them by their sum. Off, they may be negative.
            **kwargs: As for the stock method.
        """
        if objective_weights is None and self._mixing:
            return super().generate(*args, **kwargs)
        _check_rows(objective_weights, args, kwargs)
        with torch.no_grad(), self.mixed_heads(objective_weights, normalize_weights=normalize_weights):
            return super().generate(*args, **kwargs)

    def objective_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits `z_k = W_k h` of all heads, shape `(H, ..., V)`, before any scale or cap of the architecture."""
        return self.objective_heads(hidden, self.get_output_embeddings())

    # Training

    def forward(
        self,
        *args: Any,
        objective_weights: ObjectiveWeights = None,
        objective_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        fused_lm_head: bool = False,
        **kwargs: Any,
    ) -> Any:
        """
        As the stock method, with mixed heads.

        Args:
            *args: As for the stock method.
            objective_weights (`Mapping[str, float]`, `Sequence[float]`, `torch.Tensor` or `"base"`, *optional*):
                As for `generate`.
            objective_ids (`torch.Tensor` of shape `(B,)`, *optional*):
                Give each row the head of its objective. With `labels`, the output then has no logits but `log_probs`
                of shape `(B, T - 1)` (0 where the label is -100), `entropy`, `mean_logits` and `is_top1`: the
                training path, for which full logits never exist.
            labels (`torch.Tensor` of shape `(B, T)`, *optional*): As for the stock method.
            fused_lm_head (`bool`, *optional*, defaults to `False`):
                With `labels` and no `objective_ids`, the same output of the base head.
            **kwargs: As for the stock method.
        """
        if labels is not None and (fused_lm_head or objective_ids is not None):
            return self._log_probs(*args, labels=labels, objective_ids=objective_ids, **kwargs)
        if labels is not None:
            kwargs["labels"] = labels
        if objective_ids is not None and objective_weights is not None:
            raise ValueError("`objective_ids` and `objective_weights` are both given. Leave one out.")
        if objective_ids is not None:
            objective_weights = F.one_hot(objective_ids, len(self.objectives))
        if objective_weights is None and self._mixing:
            return super().forward(*args, **kwargs)
        _check_rows(objective_weights, args, kwargs)
        with self.mixed_heads(objective_weights):
            return super().forward(*args, **kwargs)

    def _log_probs(
        self, *args: Any, labels: torch.Tensor, objective_ids: torch.Tensor | None, **kwargs: Any
    ) -> "FusedCausalLMOutput":
        """One pass of the backbone, then each head on its own rows, the heads without rows included: every head is in
        the graph on every process, as distributed training wants it."""
        base, heads = self.get_output_embeddings(), self.objective_heads
        kwargs["use_cache"] = False
        if getattr(self.config.get_text_config(), "output_router_logits", False):
            kwargs.setdefault("output_router_logits", True)
        backbone = self.base_model(*args, **kwargs)
        seen = {key: kwargs[key] for key in ("attention_mask", "output_router_logits") if key in kwargs}
        score = functools.partial(_score, self.config, backbone, **seen)
        if objective_ids is None:
            return score(slice(None), labels, base.weight, base.bias)
        rows = [(objective_ids == k).nonzero()[:, 0] for k in range(heads.count)]
        if len(objective_ids) != len(labels) or sum(map(len, rows)) != len(labels):
            raise ValueError(
                f"`objective_ids` is {objective_ids.tolist()}, expected one number below {heads.count} for each of "
                f"{len(labels)} rows."
            )
        if heads.low_rank:
            weight, bias, (scale, cap) = _whole(base.weight), _whole(base.bias), logit_transform(self.config)
            parts = []
            for of_head, down, up in zip(rows, heads.all("A"), heads.all("B"), strict=True):
                hidden, mask = backbone.last_hidden_state[of_head, :-1], labels[of_head, 1:] != -100
                hidden, targets = hidden[mask], labels[of_head, 1:][mask]
                down = heads.scale * _linear(hidden, down)
                out = low_rank_log_probs(hidden, down, weight, up, targets, bias=bias, logit_scale=scale, softcap=cap)
                parts.append({k: v.new_zeros(mask.shape).masked_scatter(mask, v) for k, v in out._asdict().items()})
            # the loss that balances experts is no business of heads: of no rows it is all that is computed
            output = score(slice(0), labels[:0], base.weight.detach(), bias)
        else:
            biases = [None] * heads.count if base.bias is None else heads.all("bias")
            parts = [
                score(of_head, labels[of_head], weight, bias)
                for of_head, weight, bias in zip(rows, heads.all("weight"), biases, strict=True)
            ]
            output = parts[0]
        back = torch.cat(rows).argsort()
        for name in ("log_probs", "entropy", "mean_logits", "is_top1"):
            output[name] = torch.cat([part[name] for part in parts])[back]
        output.label_mask = labels[:, 1:] != -100
        output.loss = -output.log_probs.sum() / output.label_mask.sum().clamp(min=1)
        return output

    # Leaving

    def merge_heads(self, weights: ObjectiveWeights = None, *, normalize_weights: bool = True) -> PreTrainedModel:
        """
        The mixture as a model of the stock class, with one head, which any server runs.

        Args:
            weights (`Mapping[str, float]`, `Sequence[float]` or `torch.Tensor`, *optional*):
                One weight per objective; equal ones if not given.
            normalize_weights (`bool`, *optional*, defaults to `True`): Divide them by their sum.

        Returns:
            `PreTrainedModel`: A copy. Its head is not tied to its embeddings.
        """
        weight, bias = self._fold(weights, normalize_weights)
        base_class = _base_class(type(self))
        config = copy.deepcopy(self.config)
        del config.objective_heads
        config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
        config.architectures = [base_class.__name__]
        head = next(name for name, module in self.named_modules() if module is self.get_output_embeddings())
        state = {
            name: value.detach().clone()
            for name, value in self.state_dict().items()
            if not name.startswith(("objective_heads.", f"{head}."))
        }
        state |= {f"{head}.weight": weight} | ({} if bias is None else {f"{head}.bias": bias})
        model = base_class.from_pretrained(None, config=config, state_dict=state, dtype=self.dtype)
        model.generation_config = copy.deepcopy(self.generation_config)
        return model.to(self.device).train(self.training)

    def save_mixture_adapter(
        self, folder: str | os.PathLike, weights: ObjectiveWeights = None, *, normalize_weights: bool = True
    ) -> None:
        """
        Write a mixture of low-rank heads as a LoRA adapter on the output head of this model's base class: rank `H r`,
        a few megabytes per mixture beside one shared backbone.

        Args:
            folder (`str` or `os.PathLike`): Where `adapter_config.json` and `adapter_model.safetensors` go.
            weights (`Mapping[str, float]`, `Sequence[float]` or `torch.Tensor`, *optional*):
                One weight per objective; equal ones if not given.
            normalize_weights (`bool`, *optional*, defaults to `True`): Divide them by their sum.

        Raises:
            ValueError: The heads are full, or the weights do not sum to 1.
        """
        from peft import LoraConfig  # only this method needs it

        heads, chosen = self.objective_heads, self.mixing_weights(weights, normalize=normalize_weights)
        if not heads.low_rank:
            raise ValueError("Full heads are no adapter: use `merge_heads`, or train with `head_type='low_rank'`.")
        if chosen.ndim != 1 or abs(float(chosen.sum()) - 1) > 1e-6:
            raise ValueError(f"`weights` are {chosen.tolist()}, but an adapter needs one mixture with a sum of 1.")
        down = torch.cat([a.detach() for a in heads.all("A")])
        up = torch.cat(
            [w * heads.scale * b.detach() for w, b in zip(chosen.tolist(), heads.all("B"), strict=True)], -1
        )
        head = next(name for name, module in self.named_modules() if module is self.get_output_embeddings())
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        LoraConfig(
            task_type="CAUSAL_LM",
            r=len(down),
            lora_alpha=len(down),
            target_modules=[head],
            base_model_name_or_path=self.name_or_path,
            inference_mode=True,
        ).save_pretrained(str(path))
        state = {f"base_model.model.{head}.lora_A.weight": down, f"base_model.model.{head}.lora_B.weight": up}
        with replacing(path / "adapter_model.safetensors") as part:
            save_file({k: v.contiguous().cpu() for k, v in state.items()}, part)

    @torch.no_grad()
    def _fold(self, weights: ObjectiveWeights, normalize: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        chosen = self.mixing_weights(weights, normalize=normalize)
        if chosen.ndim != 1:
            raise ValueError(f"`weights` has shape {tuple(chosen.shape)}, but one model has one weight per objective.")
        weight, bias = self.objective_heads.folded(self.get_output_embeddings(), chosen)
        return weight.clone(), None if bias is None else bias.clone()


class AutoModelForCausalLMWithObjectiveHeads:
    """
    Loads a causal language model with one output head per objective: a plain checkpoint, whose head they start from,
    one that was saved with them, or the folder of an adapter that was trained with them.

    Example:

    ```python
    >>> from alignext import AutoModelForCausalLMWithObjectiveHeads as AutoModel

    >>> model = AutoModel.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct", objectives=["honest", "helpful"])
    >>> ids = model.generate(**inputs, objective_weights={"honest": 0.7, "helpful": 0.3})
    ```
    """

    def __init__(self) -> None:
        raise OSError(f"Make a {type(self).__name__} with `from_pretrained` or `from_config`.")

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        objectives: Sequence[str] | None = None,
        *,
        head_type: str | None = None,
        head_rank: int | None = None,
        head_alpha: float | None = None,
        head_init_std: float = 0.0,
        head_init_seed: int = 42,
        head_dtype: str | None = None,
        default_weights: Mapping[str, float] | Sequence[float] | None = None,
        is_trainable: bool = False,
        config: PreTrainedConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Args:
            path (`str` or `os.PathLike`): A folder or an id on the Hub.
            objectives (`Sequence[str]`, *optional*):
                Names of the objectives, in the order of the heads. A checkpoint with heads has its own; then these,
                if given, must be the same.
            head_type (`str`, *optional*, defaults to `"full"`):
                `"full"`, or `"low_rank"` for heads that add a product of low rank to the base head.
            head_rank (`int`, *optional*, defaults to 64): Rank of the latter.
            head_alpha (`float`, *optional*): The product is scaled by `head_alpha / head_rank`; the rank if not given.
            head_init_std (`float`, *optional*, defaults to 0.0): Noise on new full heads, 1e-3 with the authors.
            head_init_seed (`int`, *optional*, defaults to 42): Head `k` draws with this seed plus `100 k`.
            head_dtype (`str`, *optional*, defaults to `"float32"`):
                Of the heads. In bfloat16, updates of a small learning rate are lost.
            default_weights (`Mapping[str, float]` or `Sequence[float]`, *optional*):
                What calls without weights use; equal ones if not given.
            is_trainable (`bool`, *optional*, defaults to `False`): Whether an adapter is to be trained on.
            config (`PreTrainedConfig`, *optional*): Instead of the checkpoint's.
            **kwargs: As for `AutoModelForCausalLM.from_pretrained`, among them `dtype` and `device_map`.

        Returns:
            `PreTrainedModel`, a subclass of the checkpoint's own class; a `PeftModel` around one for an adapter.

        Raises:
            ValueError: Objectives are missing, repeated or not the checkpoint's, or the checkpoint does not fit.
        """
        hub = {key: kwargs[key] for key in _HUB if kwargs.get(key) is not None}
        adapter = find_adapter_config_file(path, **{k: v for k, v in hub.items() if k != "trust_remote_code"})
        if adapter is not None:
            base = json.loads(Path(adapter).read_text())["base_model_name_or_path"]
            return cls._with_adapter(path, base, objectives, is_trainable, kwargs)
        if config is None:
            config = AutoConfig.from_pretrained(path, **hub)
        given = {
            "objectives": objectives,
            "head_type": head_type,
            "rank": head_rank,
            "alpha": head_alpha,
            "dtype": head_dtype,
            "default_weights": default_weights,
        }
        config, heads = _with_heads(config, given)
        return heads.from_pretrained(
            path, config=config, head_init_std=head_init_std, head_init_seed=head_init_seed, **kwargs
        )

    @classmethod
    def from_config(cls, config: PreTrainedConfig, objectives: Sequence[str] | None = None, **settings: Any) -> Any:
        """
        A model with random weights.

        Args:
            config (`PreTrainedConfig`): Of a causal language model.
            objectives (`Sequence[str]`, *optional*): As for `from_pretrained`.
            **settings: `head_type`, `rank`, `alpha`, `dtype` and `default_weights` of the heads.
        """
        config, heads = _with_heads(config, {"objectives": objectives, **settings})
        return heads(config)

    @classmethod
    def _with_adapter(
        cls, path: Any, base: str, objectives: Sequence[str] | None, trainable: bool, kwargs: dict
    ) -> Any:
        from peft import PeftModel

        # The trainer leaves the config, with its objectives, beside the adapter.
        settings = getattr(AutoConfig.from_pretrained(path), "objective_heads", None)
        if settings is None:
            raise ValueError(f"{path!r} is an adapter without objective heads. Load it with peft.")
        config = AutoConfig.from_pretrained(base)
        config.objective_heads = settings
        model = cls.from_pretrained(base, objectives, config=config, **kwargs)
        return PeftModel.from_pretrained(model, path, is_trainable=trainable)


def objective_heads_class(base: type[PreTrainedModel]) -> Any:
    """
    The class `MultiObjective...` with objective heads of a causal language model class, always the same one.

    Args:
        base (`type[PreTrainedModel]`): For example `LlamaForCausalLM`.

    Returns:
        `type`.
    """
    name = f"MultiObjective{base.__name__}"
    module = sys.modules[__name__]
    if name not in vars(module):

        @functools.wraps(base.forward)  # `generate` and the trainer read the arguments of a model from its signature
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return ObjectiveHeadsMixin.forward(self, *args, **kwargs)

        strict = {*(base._keep_in_fp32_modules_strict or ()), "objective_heads"}
        attributes = {"__module__": __name__, "forward": forward, "_keep_in_fp32_modules_strict": strict}
        attributes["_keys_to_ignore_on_load_missing"] = [
            *(base._keys_to_ignore_on_load_missing or ()),
            r"objective_heads\.",  # a plain checkpoint is no reason for a warning
        ]
        setattr(module, name, type(name, (ObjectiveHeadsMixin, base), attributes))
    return vars(module)[name]


def __getattr__(name: str) -> Any:
    """Another process, which unpickles a model, finds its class here."""
    base = getattr(transformers, name.removeprefix("MultiObjective"), None)
    if not name.startswith("MultiObjective") or base is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return objective_heads_class(base)


def logit_transform(config: PreTrainedConfig) -> tuple[float, float | None]:
    """Scale and soft cap that an architecture applies to the output of its head, as TRL's `add_fused_lm_head` reads
    them, which keeps them to itself."""
    text = config.get_text_config()
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        scale = getattr(text, name, None)
        if scale is not None:
            break
    else:
        divisor = getattr(text, "logits_scaling", None)
        scale = 1.0 if divisor is None else divisor if text.model_type == "hyperclovax" else 1 / divisor
    return scale, getattr(text, "final_logit_softcapping", None)


def _with_heads(config: PreTrainedConfig, given: dict[str, Any]) -> tuple[PreTrainedConfig, Any]:
    """A copy of the config that has the heads' settings, and the class for it."""
    config = copy.deepcopy(config)
    saved = getattr(config, "objective_heads", None)
    objectives: Any = given["objectives"]
    settings: dict[str, Any]
    if saved is not None:
        for name, value in given.items():
            value = list(value) if name == "objectives" and value is not None else value
            if value is not None and name != "default_weights" and value != saved[name]:
                raise ValueError(
                    f"`{name}` is {value}, but the checkpoint was saved with {saved[name]}. Leave it out."
                )
        settings = saved
    else:
        if not objectives or isinstance(objectives, str) or len(set(objectives)) < len(objectives):
            raise ValueError(
                f"`objectives` is {objectives!r}. The checkpoint has no objective heads: name at least one objective, "
                "each once, for example ['honest', 'helpful']."
            )
        settings = {"objectives": [str(name) for name in objectives], "head_type": given.get("head_type") or "full"}
        settings["rank"] = 64 if given.get("rank") is None else given["rank"]
        settings["alpha"] = settings["rank"] if given.get("alpha") is None else given["alpha"]
        settings["dtype"] = (given.get("dtype") or "float32").removeprefix("torch.")
        settings["default_weights"] = None
        _check_settings(settings)
    weights = given.get("default_weights")
    if weights is not None:
        weights = _as_tensor(weights, settings["objectives"], "default_weights")
        normalize_weights(weights)  # the same errors now as at every call later
        settings["default_weights"] = weights.tolist()
    config.objective_heads = settings
    if config.is_encoder_decoder:
        raise ValueError(f"{type(config).__name__} is of an encoder-decoder model. Only decoders can have heads.")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{type(config).__name__} is of no causal language model that transformers has.")
    return config, objective_heads_class(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])


def _check_settings(settings: dict[str, Any]) -> None:
    if settings["head_type"] not in ("full", "low_rank"):
        raise ValueError(f"`head_type` is {settings['head_type']!r}. Choose 'full' or 'low_rank'.")
    if settings["rank"] < 1:
        raise ValueError(f"`head_rank` is {settings['rank']}, but it must be at least 1.")
    if settings["dtype"] not in ("float32", "bfloat16", "float16", "float64"):
        raise ValueError(f"`head_dtype` is {settings['dtype']!r}. Choose 'float32', 'bfloat16' or 'float16'.")


def _base_class(cls: type) -> type[PreTrainedModel]:
    return next(c for c in cls.__mro__ if issubclass(c, PreTrainedModel) and not issubclass(c, ObjectiveHeadsMixin))


def _as_tensor(weights: Any, names: Sequence[str], argument: str) -> torch.Tensor:
    """Weights of objectives, by name or in their order, as a tensor of shape `(H,)` or `(B, H)`."""
    if isinstance(weights, Mapping):
        unknown = [name for name in weights if name not in names]
        if unknown:
            raise ValueError(f"`{argument}` names {unknown}, but the model's objectives are {list(names)}.")
        weights = [float(weights.get(name, 0.0)) for name in names]
    if isinstance(weights, str):
        raise ValueError(f"`{argument}` is {weights!r}. Besides numbers only 'base' is known, for one call.")
    weights = torch.as_tensor(weights, dtype=torch.float32, device="cpu")
    if weights.ndim not in (1, 2) or weights.shape[-1] != len(names):
        raise ValueError(
            f"`{argument}` has shape {tuple(weights.shape)}, expected ({len(names)},), or one such row per prompt, "
            f"for the objectives {list(names)}."
        )
    return weights


def _check_rows(weights: ObjectiveWeights, args: tuple, kwargs: dict[str, Any]) -> None:
    """Rows of weights are one per prompt: otherwise a prompt would get somebody else's."""
    if weights is None or isinstance(weights, (str, Mapping)) or torch.as_tensor(weights).ndim != 2:
        return
    given = (*args[:1], *(kwargs.get(name) for name in ("input_ids", "inputs", "inputs_embeds")))
    batch = next((len(value) for value in given if value is not None), len(weights))
    if len(weights) != batch:
        raise ValueError(f"`objective_weights` has {len(weights)} rows and the batch {batch}: give one per prompt.")


def _total(weights: torch.Tensor) -> float:
    """Their sum; 1 where only rounding makes it another."""
    total = float(weights.sum())
    return 1.0 if abs(total - 1) < 1e-6 else total


def _whole(weight: Any) -> Any:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _linear(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A linear layer in the dtype and on the device of its input and weight, respectively."""
    hidden = hidden.to(weight.device)
    return F.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))


class _Head:
    """What TRL's fused head needs of a model, around hidden states that are there already."""

    def __init__(self, config: PreTrainedConfig, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.config, self.lm_head = config, SimpleNamespace(weight=weight, bias=bias)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def base_model(self, hidden: MoeModelOutputWithPast, **kwargs: Any) -> MoeModelOutputWithPast:
        return hidden

    def get_output_embeddings(self) -> SimpleNamespace:
        return self.lm_head


def _score(config, backbone, rows, labels, weight, bias, **seen) -> "FusedCausalLMOutput":
    """TRL's log-probabilities of `labels` under a head, for some rows of the hidden states of a backbone."""
    from trl.trainer.utils import add_fused_lm_head  # heavy, and only training needs it

    head = _Head(config, weight, bias)
    add_fused_lm_head(head, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    hidden = MoeModelOutputWithPast(
        last_hidden_state=backbone.last_hidden_state[rows], router_logits=getattr(backbone, "router_logits", None)
    )
    return head.forward(hidden, labels=labels, fused_lm_head=True, **seen)
