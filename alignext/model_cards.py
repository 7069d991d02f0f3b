# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The model card of all that alignext saves."""

from huggingface_hub import ModelCard, ModelCardData


def model_card(
    name: str, text: str, *, tags: list[str], paper: dict[str, str], library_name: str, **metadata
) -> ModelCard:
    """
    Args:
        name (`str`): The method, the card's heading.
        text (`str`): Markdown between the heading and the citation: what this is and how to load it.
        tags (`list[str]`): Shown and searched by the Hub.
        paper (`dict[str, str]`): `title`, arXiv `id` and BibTeX `citation`.
        library_name (`str`): The library the Hub shows loading code for.
        metadata: Further fields of [`~huggingface_hub.ModelCardData`], such as `base_model` and `license`.
    """
    data = ModelCardData(library_name=library_name, tags=tags, **metadata)
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{text.strip()}\n\n## Citation\n\n"
        f"[{paper['title']}](https://huggingface.co/papers/{paper['id']})\n\n```bibtex\n{paper['citation'].strip()}\n```\n"
    )
