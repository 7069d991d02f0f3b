# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Alignment methods from papers, each a small subclass of the diffusers pipeline or TRL trainer you already use.

Every public name is importable from here and loaded on first use: `import alignext` itself imports neither torch nor
diffusers nor TRL.
"""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from alignext.decoding.guided import guided_generate
    from alignext.heads.objective_heads import AutoModelForCausalLMWithObjectiveHeads
    from alignext.pipelines.alignedgen import (
        AlignedAttention,
        AlignedGenFlux2KleinPipeline,
        AlignedGenFlux2Pipeline,
        AlignedGenKontextPipeline,
        AlignedGenPipeline,
        AlignedGenPipelineOutput,
        AlignedGenQwenImagePipeline,
        StyleReference,
        aligned_attention,
    )
    from alignext.pipelines.latent_search import (
        AnimateDiffSearchPipeline,
        CogVideoXSearchPipeline,
        FluxSearchPipeline,
        HunyuanVideoSearchPipeline,
        LatentSearch,
        LatteSearchPipeline,
        LTXSearchPipeline,
        StableDiffusion3SearchPipeline,
        StableDiffusionSearchPipeline,
        StableDiffusionXLSearchPipeline,
        WanSearchPipeline,
    )
    from alignext.pipelines.rival import (
        RIVALControlNetPipeline,
        RIVALInversion,
        RIVALPipeline,
        RIVALXLControlNetPipeline,
        RIVALXLPipeline,
    )
    from alignext.rewards import WeightedReward, calibrate_weights
    from alignext.search import SearchConfig, SearchScheduler
    from alignext.trainers.bco import BCOConfig, BCOTrainer
    from alignext.trainers.diffusion_preference import (
        DiffusionDPOConfig,
        DiffusionDPOTrainer,
        InversionDPOConfig,
        InversionDPOTrainer,
        SampleGridCallback,
        SmPOConfig,
        SmPOTrainer,
    )
    from alignext.trainers.f_dpg import FDPGConfig, FDPGTrainer
    from alignext.trainers.mah_dpo import MAHDPOConfig, MAHDPOTrainer
    from alignext.trainers.process_reward import ProcessRewardConfig, ProcessRewardTrainer


__version__ = "0.1.0.dev0"

# Public name -> the module that defines it. The only place where alignext points at pipelines and trainers.
_MODULES = {
    "AlignedAttention": "alignext.pipelines.alignedgen",
    "AlignedGenFlux2KleinPipeline": "alignext.pipelines.alignedgen",
    "AlignedGenFlux2Pipeline": "alignext.pipelines.alignedgen",
    "AlignedGenKontextPipeline": "alignext.pipelines.alignedgen",
    "AlignedGenPipeline": "alignext.pipelines.alignedgen",
    "AlignedGenPipelineOutput": "alignext.pipelines.alignedgen",
    "AlignedGenQwenImagePipeline": "alignext.pipelines.alignedgen",
    "AnimateDiffSearchPipeline": "alignext.pipelines.latent_search",
    "AutoModelForCausalLMWithObjectiveHeads": "alignext.heads.objective_heads",
    "BCOConfig": "alignext.trainers.bco",
    "BCOTrainer": "alignext.trainers.bco",
    "CogVideoXSearchPipeline": "alignext.pipelines.latent_search",
    "DiffusionDPOConfig": "alignext.trainers.diffusion_preference",
    "DiffusionDPOTrainer": "alignext.trainers.diffusion_preference",
    "FDPGConfig": "alignext.trainers.f_dpg",
    "FDPGTrainer": "alignext.trainers.f_dpg",
    "FluxSearchPipeline": "alignext.pipelines.latent_search",
    "HunyuanVideoSearchPipeline": "alignext.pipelines.latent_search",
    "InversionDPOConfig": "alignext.trainers.diffusion_preference",
    "InversionDPOTrainer": "alignext.trainers.diffusion_preference",
    "LTXSearchPipeline": "alignext.pipelines.latent_search",
    "LatentSearch": "alignext.pipelines.latent_search",
    "LatteSearchPipeline": "alignext.pipelines.latent_search",
    "MAHDPOConfig": "alignext.trainers.mah_dpo",
    "MAHDPOTrainer": "alignext.trainers.mah_dpo",
    "ProcessRewardConfig": "alignext.trainers.process_reward",
    "ProcessRewardTrainer": "alignext.trainers.process_reward",
    "RIVALControlNetPipeline": "alignext.pipelines.rival",
    "RIVALInversion": "alignext.pipelines.rival",
    "RIVALPipeline": "alignext.pipelines.rival",
    "RIVALXLControlNetPipeline": "alignext.pipelines.rival",
    "RIVALXLPipeline": "alignext.pipelines.rival",
    "SampleGridCallback": "alignext.trainers.diffusion_preference",
    "SearchConfig": "alignext.search",
    "SearchScheduler": "alignext.search",
    "SmPOConfig": "alignext.trainers.diffusion_preference",
    "SmPOTrainer": "alignext.trainers.diffusion_preference",
    "StableDiffusion3SearchPipeline": "alignext.pipelines.latent_search",
    "StableDiffusionSearchPipeline": "alignext.pipelines.latent_search",
    "StableDiffusionXLSearchPipeline": "alignext.pipelines.latent_search",
    "StyleReference": "alignext.pipelines.alignedgen",
    "WanSearchPipeline": "alignext.pipelines.latent_search",
    "WeightedReward": "alignext.rewards",
    "aligned_attention": "alignext.pipelines.alignedgen",
    "calibrate_weights": "alignext.rewards",
    "guided_generate": "alignext.decoding.guided",
}

__all__ = [
    "AlignedAttention",
    "AlignedGenFlux2KleinPipeline",
    "AlignedGenFlux2Pipeline",
    "AlignedGenKontextPipeline",
    "AlignedGenPipeline",
    "AlignedGenPipelineOutput",
    "AlignedGenQwenImagePipeline",
    "AnimateDiffSearchPipeline",
    "AutoModelForCausalLMWithObjectiveHeads",
    "BCOConfig",
    "BCOTrainer",
    "CogVideoXSearchPipeline",
    "DiffusionDPOConfig",
    "DiffusionDPOTrainer",
    "FDPGConfig",
    "FDPGTrainer",
    "FluxSearchPipeline",
    "HunyuanVideoSearchPipeline",
    "InversionDPOConfig",
    "InversionDPOTrainer",
    "LTXSearchPipeline",
    "LatentSearch",
    "LatteSearchPipeline",
    "MAHDPOConfig",
    "MAHDPOTrainer",
    "ProcessRewardConfig",
    "ProcessRewardTrainer",
    "RIVALControlNetPipeline",
    "RIVALInversion",
    "RIVALPipeline",
    "RIVALXLControlNetPipeline",
    "RIVALXLPipeline",
    "SampleGridCallback",
    "SearchConfig",
    "SearchScheduler",
    "SmPOConfig",
    "SmPOTrainer",
    "StableDiffusion3SearchPipeline",
    "StableDiffusionSearchPipeline",
    "StableDiffusionXLSearchPipeline",
    "StyleReference",
    "WanSearchPipeline",
    "WeightedReward",
    "__version__",
    "aligned_attention",
    "calibrate_weights",
    "guided_generate",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value  # the next access does not come through here
    return value


def __dir__() -> list[str]:
    return list(__all__)
