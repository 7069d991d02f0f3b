# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`ELBOAlignPipeline`: where in a picture a text-to-image model sees what, without training."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline

from alignext.diffusion.attention import attention_seen
from alignext.diffusion.denoiser import get_denoiser
from alignext.diffusion.elbo import diffusion_loss, levels_at, loop_form
from alignext.diffusion.latents import encode_images
from alignext.diffusion.levels import prediction_type, training_levels
from alignext.diffusion.pictures import as_list, to_pil
from alignext.diffusion.recording import record_call
from alignext.functional.elbo_align import (
    calibrate,
    heat_maps,
    label_map,
    min_max,
    resized,
)
from alignext.functional.elbo_align import temperatures as temperatures_of
from alignext.functional.predictions import add_noise
from alignext.methods import method
from alignext.pipelines.elbo_align.inputs import ELBOAlignOutput, check_range, checked_classes, looking_size
from alignext.pipelines.elbo_align.maps import AttentionSums, late_layers, text_side
from alignext.pipelines.elbo_align.words import listing, spans_of, token_positions
from alignext.wrapping import evaluating


class ELBOAlignPipeline:
    r"""
    Segments pictures by words with a frozen text-to-image pipeline: the attention of its denoiser, sharpened for each
    class by how weakly the diffusion loss says that the model sees it.

    Method: "ELBO-T2IAlign", [arXiv 2506.09740](https://huggingface.co/papers/2506.09740), by Zhou et al.; equations in
    [`alignext.functional.elbo_align`].

    It holds a stock pipeline and changes nothing of it. Load one with [`from_pretrained`], or hand over one that is
    loaded.

    Args:
        pipe (`DiffusionPipeline`): Of Stable Diffusion 1, 2, XL, 3 or FLUX.1, or a subclass.

    Raises:
        NotImplementedError: If the pipeline's denoiser is none of these.
        ValueError: If the denoiser takes more than latents (inpainting, editing).

    Example:

    ```python
    >>> from alignext import ELBOAlignPipeline

    >>> align = ELBOAlignPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5").to("cuda")
    >>> found = align("picture.png", classes=["cat", "cup"])
    >>> found.label_map  # 0 background, 1 cat, 2 cup
    ```
    """

    _paper = method("ELBO-T2IAlign").paper

    def __init__(self, pipe: Any) -> None:
        self.side = text_side(pipe)
        self.pipe = pipe
        self._progress = True
        if getattr(pipe, "vae", None) is None:
            raise ValueError("`pipe` must have a `vae`, received a pipeline without one.")
        taken = get_denoiser(pipe).config.in_channels // (4 if self._packed else 1)
        given = pipe.vae.config.latent_channels
        if taken != given:
            raise ValueError(
                f"`pipe` must take latents of {given} channels as its VAE makes them, but its denoiser takes {taken}, "
                "as of inpainting or editing. Use the text-to-image checkpoint."
            )

    @property
    def _packed(self) -> bool:
        return hasattr(self.pipe, "_pack_latents")

    @classmethod
    def from_pipe(cls, pipe: Any) -> "ELBOAlignPipeline":
        """The same as `ELBOAlignPipeline(pipe)`: models are shared, nothing is loaded."""
        return cls(pipe)

    @classmethod
    def from_pretrained(cls, name: Any, **kwargs: Any) -> "ELBOAlignPipeline":
        """From a folder or Hub id; arguments of `DiffusionPipeline.from_pretrained`."""
        return cls(DiffusionPipeline.from_pretrained(name, **kwargs))

    def to(self, *args: Any, **kwargs: Any) -> "ELBOAlignPipeline":
        """Move the pipeline, as its own `to`."""
        self.pipe.to(*args, **kwargs)
        return self

    def set_progress_bar_config(self, disable: bool = False) -> None:
        """Show bars, or not."""
        self._progress = not disable

    @torch.no_grad()
    def __call__(
        self,
        image: Any = None,
        classes: Sequence[str] | Sequence[Sequence[str]] = (),
        *,
        prompt: str | None = None,
        class_prompts: Sequence[str] | None = None,
        latents: torch.Tensor | None = None,
        elbo_strength: float = 3.0,
        temperatures: Sequence[float] | None = None,
        threshold: float = 0.5,
        elbo_timesteps: Sequence[int] = tuple(range(1, 1000, 50)),
        attention_timesteps: Sequence[int] = tuple(range(20, 201, 20)),
        layer_weights: Sequence[float] | None = None,
        height: int | None = None,
        width: int | None = None,
        keep_aspect: bool = False,
        batch_size: int = 16,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        **call: Any,
    ) -> ELBOAlignOutput | list[ELBOAlignOutput]:
        """
        Find classes in one picture, or in several.

        Args:
            image (*optional*): A picture of any kind that [`~alignext.diffusion.pictures.to_pil`] takes, or a list.
            classes (`Sequence[str]`): What to look for; for several pictures one list for all, or a list each.
            prompt (`str`, *optional*): In which the classes stand; "a photo of {c1, c2}" otherwise.
            class_prompts (`Sequence[str]`, *optional*): What each class is scored by; "a photo of {c}" otherwise.
            latents (`torch.Tensor` of shape `(C, h, w)`, *optional*): In the place of a picture, for example what the
                stock call made with `output_type="latent"` (unpacked).
            elbo_strength (`float`, *optional*, defaults to 3.0): The temperature of the class that is seen worst; 1
                switches calibration off.
            temperatures (`Sequence[float]`, *optional*): Temperatures in the place of those; no class is scored then.
            threshold (`float`, *optional*, defaults to 0.5): Below it a pixel is background.
            elbo_timesteps (`Sequence[int]`, *optional*): Noise levels of the scores, 20 by default.
            attention_timesteps (`Sequence[int]`, *optional*): Noise levels of the maps, 10 by default.
            layer_weights (`Sequence[float]`, *optional*): Of the layers with text, in their order; a Gaussian about
                the middle otherwise.
            height, width (`int`, *optional*): Size at which the model looks; its own, square, otherwise.
            keep_aspect (`bool`, *optional*, defaults to `False`): Look at the picture in its own proportions, with
                about as many pixels, sides in multiples of 64.
            batch_size (`int`, *optional*, defaults to 16): Rows of a denoiser call.
            generator (`torch.Generator` or list of them, *optional*): Of the noise; a list has one for each picture.
                Without it every picture gets the same noise.
            call: Further arguments of the stock call, such as `max_sequence_length`.

        Returns:
            [`ELBOAlignOutput`], or a list of them for a list of pictures.

        Raises:
            ValueError: If an argument is out of range, a class is missing from the prompt or beyond its end.
            NotImplementedError: If attention cannot be seen, as of a compiled denoiser.
        """
        if (image is None) == (latents is None):
            raise ValueError("Either `image` or `latents` must be given, received both or neither.")
        check_range("threshold", threshold, 0, 1)
        check_range("elbo_strength", elbo_strength, 1e-6, 1e6)
        for name, value in (("elbo_timesteps", elbo_timesteps), ("attention_timesteps", attention_timesteps)):
            if isinstance(value, int | float):
                raise ValueError(
                    f"`{name}` must be the timesteps themselves, such as `range(1, 1000, 50)`, received {value}."
                )
        if latents is None and isinstance(image, list | tuple):
            pictures = as_list(image)
            if not pictures:
                raise ValueError("`image` must have at least one picture, received an empty list.")
            own = classes if classes and not isinstance(classes[0], str) else [classes] * len(pictures)
            generators = generator if isinstance(generator, list | tuple) else [generator] * len(pictures)
            if not len(own) == len(generators) == len(pictures):
                raise ValueError(
                    f"`classes` and `generator` must have one entry for each of the {len(pictures)} pictures, "
                    f"received {len(own)} and {len(generators)}."
                )
        else:
            pictures, own, generators = [image], [classes], [generator]
        names = [checked_classes(c) for c in own]
        C = {len(n) for n in names}
        for name, value in (("class_prompts", class_prompts), ("temperatures", temperatures)):
            if value is not None and C != {len(value)}:
                raise ValueError(f"`{name}` must have one entry for each of the classes, received {list(value)}.")
        found = []
        for picture, wanted, g in zip(pictures, names, generators, strict=True):
            pil = None if picture is None else to_pil(picture)
            size = looking_size(self.pipe, pil, latents, height, width, keep_aspect)
            text, spans = (prompt, spans_of(prompt, wanted, apart=True)) if prompt else listing(wanted)
            x0 = self._latents(pil, latents, size)
            g = torch.Generator().manual_seed(4307) if g is None else g
            own_call = self._call(size, call)
            maps, sums = self._attention(x0, text, spans, attention_timesteps, layer_weights, g, batch_size, own_call)
            losses = torch.full((len(wanted),), torch.nan, dtype=torch.float64)
            if temperatures is not None:
                gamma = torch.tensor([float(t) for t in temperatures], dtype=torch.float64)
            elif len(wanted) == 1 or elbo_strength == 1:
                gamma = torch.ones(len(wanted), dtype=torch.float64)
            else:
                prompts = list(class_prompts or (f"a photo of {c}" for c in wanted))
                losses = self._losses(x0, prompts, elbo_timesteps, g, batch_size, own_call)
                gamma = temperatures_of(losses, elbo_strength)
            first, second, grid = sums.self_maps()
            spread = heat_maps(calibrate(resized(maps, grid), gamma), first, second)
            target = pil.size[::-1] if pil is not None else size
            heat = min_max(resized(spread, target)).cpu()
            found.append(
                ELBOAlignOutput(
                    heatmaps=heat,
                    label_map=label_map(heat, threshold),
                    elbo=losses,
                    temperatures=gamma,
                    cross_attention=maps.cpu(),
                )
            )
        return found if isinstance(image, list | tuple) else found[0]

    def _latents(self, pil: Any, latents: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
        if latents is not None:
            channels = self.pipe.vae.config.latent_channels
            if latents.ndim != 3 or latents.shape[0] != channels:
                raise ValueError(
                    f"`latents` must have shape ({channels}, h, w), received {tuple(latents.shape)}. Unpack those of "
                    "Flux first."
                )
            return latents.float()
        pixels = self.pipe.image_processor.preprocess(pil, height=size[0], width=size[1])
        return encode_images(self.pipe, pixels, sample=False)[0]

    def _call(self, size: tuple[int, int], call: dict[str, Any]) -> dict[str, Any]:
        known = inspect.signature(type(self.pipe).__call__).parameters
        unknown = [name for name in call if name not in known]
        if unknown:
            raise TypeError(f"`{unknown[0]}` is an argument of neither this call nor {type(self.pipe).__name__}'s.")
        return {"height": size[0], "width": size[1], **call}

    def _losses(
        self,
        x0: torch.Tensor,
        prompts: list[str],
        timesteps: Sequence[int],
        g: Any,
        batch_size: int,
        call: dict[str, Any],
    ) -> torch.Tensor:
        noise = torch.randn(len(timesteps), *x0.shape, generator=g)
        losses = diffusion_loss(
            self.pipe, x0, prompts, timesteps, noise, batch_size=batch_size, progress=self._progress, **call
        )
        return losses.sum(0).double().cpu()

    def _attention(
        self,
        x0: torch.Tensor,
        prompt: str,
        spans: list[tuple[int, int]],
        timesteps: Sequence[int],
        weights: Sequence[float] | None,
        g: Any,
        batch_size: int,
        call: dict[str, Any],
    ) -> tuple[torch.Tensor, AttentionSums]:
        """Maps `(C, h, w)` of the classes, and what the picture's positions attend to."""
        pipe, denoiser = self.pipe, get_denoiser(self.pipe)
        flow = prediction_type(pipe.scheduler) == "flow_prediction"
        size = (int(x0.shape[-2]), int(x0.shape[-1]))
        levels = training_levels(pipe, size)
        numbers = torch.tensor(levels_at(levels, timesteps, flow))
        T = len(numbers)
        rows = max(k for k in range(1, T + 1) if T % k == 0 and (k == 1 or k <= batch_size))
        recorded = record_call(pipe, prompt=[prompt] * rows, generator=torch.Generator().manual_seed(0), **call)
        length = int(recorded.kwargs["encoder_hidden_states"].shape[1])
        positions = token_positions(pipe, prompt, spans, length)
        sums = AttentionSums(positions, size, self.side, length, late=late_layers(denoiser, self.side))
        noise = torch.randn(T, *x0.shape, generator=g).to(x0)
        with evaluating(denoiser):
            for start in range(0, T, rows):
                at = numbers[start : start + rows]
                a, s = (level[at].to(x0) for level in (levels.a, levels.s))
                x = add_noise(x0.expand(rows, *x0.shape), noise[start : start + rows], a, s)
                x = loop_form(pipe, x).to(recorded.dtype)
                with attention_seen(denoiser, sums):
                    recorded(denoiser, x, levels.timesteps[at - 1].to(x0.device))
        return sums.word_maps(weights).mean(0), sums
