# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Alignment methods from papers, each a small subclass of the diffusers pipeline or TRL trainer you already use.

Every public name is importable from here and loaded on first use: `import alignext` itself imports neither torch nor
diffusers nor TRL.
"""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from alignext.data import (
        CHESCallback,
        add_ches_scores,
        add_gradient_scores,
        filter_by_ches,
        gradient_features,
        score_dataloader,
        select_for_task,
    )
    from alignext.decoding.calibration import calibrate_svdecode
    from alignext.decoding.chains import QAlignOutput, QAlignState
    from alignext.decoding.guided import guided_generate
    from alignext.decoding.guided_call import GuidedDecoding
    from alignext.decoding.qalign import QAlign
    from alignext.decoding.svdecode import SVDecodeLogitsProcessor
    from alignext.decoding.transfer_q import TransferQ, TransferQOutput
    from alignext.evaluation import (
        DiversityEvaluator,
        DiversityReport,
        FADECallback,
        FadeScore,
        RewardHackingCallback,
        RewardVsScale,
        fade_score,
        reward_vs_scale,
    )
    from alignext.heads.auto import AutoModelForCausalLMWithObjectiveHeads
    from alignext.pipelines.alignedgen import (
        AlignedAttention,
        AlignedGenBlocks,
        AlignedGenFlux2KleinPipeline,
        AlignedGenFlux2Pipeline,
        AlignedGenKontextPipeline,
        AlignedGenPipeline,
        AlignedGenPipelineOutput,
        AlignedGenQwenImagePipeline,
        StyleReference,
        aligned_attention,
    )
    from alignext.pipelines.elbo_align import (
        AttentionMapsOutput,
        ELBOAlignOutput,
        ELBOAlignPipeline,
        attention_maps,
        balanced_phrases,
    )
    from alignext.pipelines.latent_search import (
        AnimateDiffSearchPipeline,
        CogVideoXSearchPipeline,
        FluxSearchPipeline,
        HunyuanVideoSearchPipeline,
        LatentSearch,
        LatentSearchBlocks,
        LatteSearchPipeline,
        LTXSearchPipeline,
        StableDiffusion3SearchPipeline,
        StableDiffusionSearchPipeline,
        StableDiffusionXLSearchPipeline,
        WanSearchPipeline,
    )
    from alignext.pipelines.rival import (
        RIVALBlocks,
        RIVALControlNetPipeline,
        RIVALInversion,
        RIVALPipeline,
        RIVALXLControlNetPipeline,
        RIVALXLPipeline,
    )
    from alignext.rewards import DirectionalReward, WeightedReward, calibrate_weights
    from alignext.rewards.process import ProcessReward
    from alignext.rewards.sequence import SequenceReward
    from alignext.search import SearchConfig, SearchScheduler
    from alignext.steering import SteeringVector, fit_steering, sweep_steering
    from alignext.trainers.bco import BCOConfig, BCOTrainer
    from alignext.trainers.cdas import CDASConfig, CDASTrainer, make_quads
    from alignext.trainers.diffusion_preference import (
        DiffusionDPOConfig,
        DiffusionDPOTrainer,
        DiffusionKTOConfig,
        DiffusionKTOTrainer,
        InversionDPOConfig,
        InversionDPOTrainer,
        SampleGridCallback,
        SmPOConfig,
        SmPOTrainer,
    )
    from alignext.trainers.diffusion_reward import AlignPropConfig, AlignPropTrainer, DDPOConfig, DDPOTrainer
    from alignext.trainers.f_dpg import FDPGConfig, FDPGTrainer
    from alignext.trainers.mah_dpo import MAHDPOConfig, MAHDPOTrainer
    from alignext.trainers.process_reward import ProcessRewardConfig, ProcessRewardTrainer


__version__ = "0.1.0.dev0"

# Module -> the public names it defines. The only place where alignext points at pipelines and trainers. Type checkers
# read the imports above, which a test holds against this.
_NAMES = {
    "alignext.decoding.calibration": "calibrate_svdecode",
    "alignext.decoding.chains": "QAlignOutput QAlignState",
    "alignext.data": """
        CHESCallback add_ches_scores add_gradient_scores filter_by_ches gradient_features score_dataloader
        select_for_task
    """,
    "alignext.decoding.guided": "guided_generate",
    "alignext.decoding.guided_call": "GuidedDecoding",
    "alignext.decoding.qalign": "QAlign",
    "alignext.decoding.svdecode": "SVDecodeLogitsProcessor",
    "alignext.decoding.transfer_q": "TransferQ TransferQOutput",
    "alignext.evaluation": """
        DiversityEvaluator DiversityReport FADECallback FadeScore RewardHackingCallback RewardVsScale
        fade_score reward_vs_scale
    """,
    "alignext.heads.auto": "AutoModelForCausalLMWithObjectiveHeads",
    "alignext.pipelines.alignedgen": """
        AlignedAttention AlignedGenBlocks AlignedGenFlux2KleinPipeline AlignedGenFlux2Pipeline
        AlignedGenKontextPipeline AlignedGenPipeline AlignedGenPipelineOutput AlignedGenQwenImagePipeline
        StyleReference aligned_attention
    """,
    "alignext.pipelines.elbo_align": """
        AttentionMapsOutput ELBOAlignOutput ELBOAlignPipeline attention_maps balanced_phrases
    """,
    "alignext.pipelines.latent_search": """
        AnimateDiffSearchPipeline CogVideoXSearchPipeline FluxSearchPipeline HunyuanVideoSearchPipeline
        LTXSearchPipeline LatentSearch LatentSearchBlocks LatteSearchPipeline StableDiffusion3SearchPipeline
        StableDiffusionSearchPipeline StableDiffusionXLSearchPipeline WanSearchPipeline
    """,
    "alignext.pipelines.rival": """
        RIVALBlocks RIVALControlNetPipeline RIVALInversion RIVALPipeline RIVALXLControlNetPipeline RIVALXLPipeline
    """,
    "alignext.rewards": "DirectionalReward WeightedReward calibrate_weights",
    "alignext.rewards.process": "ProcessReward",
    "alignext.rewards.sequence": "SequenceReward",
    "alignext.search": "SearchConfig SearchScheduler",
    "alignext.steering": "SteeringVector fit_steering sweep_steering",
    "alignext.trainers.bco": "BCOConfig BCOTrainer",
    "alignext.trainers.cdas": "CDASConfig CDASTrainer make_quads",
    "alignext.trainers.diffusion_preference": """
        DiffusionDPOConfig DiffusionDPOTrainer DiffusionKTOConfig DiffusionKTOTrainer InversionDPOConfig
        InversionDPOTrainer SampleGridCallback SmPOConfig SmPOTrainer
    """,
    "alignext.trainers.diffusion_reward": "AlignPropConfig AlignPropTrainer DDPOConfig DDPOTrainer",
    "alignext.trainers.f_dpg": "FDPGConfig FDPGTrainer",
    "alignext.trainers.mah_dpo": "MAHDPOConfig MAHDPOTrainer",
    "alignext.trainers.process_reward": "ProcessRewardConfig ProcessRewardTrainer",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted([*_MODULES, "__version__"])


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value  # the next access does not come through here
    return value


def __dir__() -> list[str]:
    return list(__all__)
