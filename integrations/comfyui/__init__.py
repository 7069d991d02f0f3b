# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""RIVAL, AlignedGen and latent search as nodes of ComfyUI, on diffusers pipelines. See `README.md`."""

# ComfyUI imports the folder as a module of its own name, and looks here for what there is.
from .nodes import LoadPipeline, OneStyle, Search, Variations


NODE_CLASS_MAPPINGS = {
    "AlignextLoadPipeline": LoadPipeline,
    "AlignextRIVAL": Variations,
    "AlignextAlignedGen": OneStyle,
    "AlignextLatentSearch": Search,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "AlignextLoadPipeline": "Load diffusers pipeline (alignext)",
    "AlignextRIVAL": "RIVAL: variations of a picture",
    "AlignextAlignedGen": "AlignedGen: pictures in one style",
    "AlignextLatentSearch": "Latent search: what a reward likes best",
}
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
