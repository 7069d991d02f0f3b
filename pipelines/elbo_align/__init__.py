# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""ELBO-T2IAlign: where in a picture a text-to-image model sees what."""

from alignext.pipelines.elbo_align.align import ELBOAlignPipeline
from alignext.pipelines.elbo_align.inputs import ELBOAlignOutput
from alignext.pipelines.elbo_align.maps import AttentionMapsOutput, attention_maps
from alignext.pipelines.elbo_align.reweighting import balanced_phrases


__all__ = ["AttentionMapsOutput", "ELBOAlignOutput", "ELBOAlignPipeline", "attention_maps", "balanced_phrases"]
