# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Inversions that are made before training and kept on disk."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from alignext.diffusion.digests import weights_digest
from alignext.diffusion.draws import Draws
from alignext.diffusion.inversions import InversionCache, inversion_identity
from alignext.functional.inversion import InversionPoints
from alignext.functional.predictions import Denoiser

from .core import DiffusionPreferenceTrainer
from .pictures import PictureBatch


class KeptInversions(DiffusionPreferenceTrainer):
    """The part of trainers with inversions that makes them beforehand."""

    _cache: InversionCache | None = None

    def _invert(self, denoiser: Denoiser, batch: PictureBatch, k: torch.Tensor) -> InversionPoints:
        """The points `k` (K, 2B) of the inversion of each picture."""
        raise NotImplementedError

    @property
    def _keeps_latents(self) -> bool:
        return self.args.precompute_latents or self.args.precompute_inversion

    def _precompute(self, dataset: Any) -> Any:
        dataset = super()._precompute(dataset)
        if not self.args.precompute_inversion:
            return dataset
        cache = self._cache or self._open_cache()
        reference = self.reference(self.model)
        mine = dataset.select(range(self.args.process_index, len(dataset), self.args.world_size))
        loader = DataLoader(mine, batch_size=self.args.per_device_eval_batch_size, collate_fn=self.data_collator)
        for inputs in tqdm(loader, desc="Inverting pictures", disable=self.args.disable_tqdm):
            batch = self.get_batch(inputs, training=False)
            keys = self._keys(cache, batch)
            if all(key in cache for key in keys):
                continue
            # Drawn by the pair, as the key is made, and not by its row: both pictures have the same points and noise,
            # wherever else one of them, or the pair, is.
            pairs = zip(keys, keys[len(keys) // 2 :], strict=False)
            batch.draws = Draws(self.args.seed, "kept", torch.tensor([int(min(pair)[:8], 16) for pair in pairs]))
            k = 1 + batch.draws.points("time", self.args.num_cached_points, self.args.num_inversion_steps)
            points = self._invert(reference, batch, k.sort(0).values.repeat(1, 2).to(batch.x0.device))
            names = ("x",) if self.args.target == "recovered" else ("source", "prediction", "x")
            for row, key in enumerate(keys):
                tensors = {name: getattr(points, name).unflatten(0, points.k.shape)[:, row] for name in names}
                cache.save(key, {"k": points.k[:, row], **tensors})
        self.accelerator.wait_for_everyone()
        self._cache = cache
        return dataset

    def _release(self) -> None:
        super()._release()
        if self.args.precompute_inversion:
            for encoder in self._text_encoders():
                encoder.to("cpu")
            if self.args.target == "reference":
                self.ref_denoiser = None

    def _open_cache(self) -> InversionCache:
        denoiser = self.denoiser if self.ref_denoiser is None else self.ref_denoiser.denoiser
        names = ("num_inversion_steps", "guidance_scale", "embedded_guidance", "num_renoise_steps", "inversion_eta")
        names += ("num_cached_points", "target", "seed", "max_sequence_length")
        settings = {name: getattr(self.args, name) for name in names}
        settings["precision"] = self.accelerator.mixed_precision
        settings["text_encoders"] = [weights_digest(encoder) for encoder in self._text_encoders()]
        folder = self.args.inversion_cache or Path(self.args.output_dir, "inversions")
        return InversionCache(folder, inversion_identity(denoiser, self.pipe.scheduler, **settings))

    def _captions(self, prompts: list[str | list[str]], draws: Draws, training: bool) -> list[str]:
        # A picture that was inverted beforehand was so with one of its captions.
        return super()._captions(prompts, draws, training and not self.args.precompute_inversion)

    @staticmethod
    def _keys(cache: InversionCache, batch: PictureBatch) -> list[str]:
        """Of each picture beside the other one of its pair, as the points that are kept are those of the pair."""
        beside = torch.stack([batch.x0, batch.x0.roll(len(batch.x0) // 2, 0)], dim=1)
        return [cache.key(prompt, both) for prompt, both in zip(batch.prompts * 2, beside, strict=True)]

    def _kept_points(self, cache: InversionCache, batch: PictureBatch) -> InversionPoints:
        kept = cache.load(self._keys(cache, batch), batch.x0.device)
        count = self.args.num_train_steps_per_pair or self.args.num_cached_points
        chosen = batch.draws.points("time", count, self.args.num_cached_points).repeat(1, 2).to(batch.x0.device)
        rows = torch.arange(len(batch.x0), device=batch.x0.device)
        found = {name: value[rows, chosen] for name, value in kept.items()}  # (K, 2B, ...)
        x = found["x"].flatten(0, 1)
        source, prediction = (found[n].flatten(0, 1) if n in found else x for n in ("source", "prediction"))
        return InversionPoints(found["k"], source, prediction, x)
