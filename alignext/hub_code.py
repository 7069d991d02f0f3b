# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Hub repositories that hold code: blocks of modular pipelines, and custom pipelines. Stock diffusers loads them with
`trust_remote_code=True`; what they run is the alignext that is installed.
"""

import inspect
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, ModelCard, create_repo, file_exists, upload_folder

import alignext
from alignext.files import replacing
from alignext.model_cards import model_card


# Of the files below. A repository says which one it has; an alignext reads its own and all before.
FORMAT = 1
_HEADER = """# Written by alignext {version}. The method itself is in the package: pip install alignext
from alignext.hub_code import saved
"""
_BLOCKS = """from diffusers import {stock}


class Blocks(saved("{name}", format={format}, version="{version}")):
    stock = {stock}
"""
_PIPELINE = """

Pipeline = saved("{name}", format={format}, version="{version}")
"""


def saved(name: str, *, format: int, version: str) -> Any:
    """
    The class that a repository of code asks for.

    Args:
        name (`str`): A public name of alignext.
        format (`int`): Of the repository.
        version (`str`): Of the alignext that wrote it.

    Raises:
        ImportError: The repository is of a later format, or this alignext has no such class. The message says which
            version to install.
    """
    check_format(format, version)
    if name not in alignext.__all__:
        raise ImportError(
            f"This repository was written by alignext {version} and asks for `{name}`, which alignext "
            f"{alignext.__version__} does not have. Install the version that wrote it: pip install alignext=={version}"
        )
    return getattr(alignext, name)


def check_format(format: int, version: str) -> None:
    """
    Refuse a repository that this alignext cannot read, see [`saved`].

    Args:
        format (`int`): Of the repository.
        version (`str`): Of the alignext that wrote it.
    """
    if format > FORMAT:
        raise ImportError(
            f"This repository was written by alignext {version} in format {format}; alignext {alignext.__version__} "
            f"reads formats up to {FORMAT}. Install a newer one: pip install -U alignext"
        )


class BlocksHubMixin:
    """
    Put before `SequentialPipelineBlocks`, makes `save_pretrained` and `push_to_hub` write a repository that
    `ModularPipelineBlocks.from_pretrained(folder, trust_remote_code=True)` loads: `block.py`, `modular_config.json`,
    and a model card where there is none.

    Class attributes to define: `_name`, `_tag_names` and `_paper` as for [`HubMixin`].
    """

    _name: str
    _tag_names: list[str]
    _paper: dict[str, str]
    _requirements = {"alignext": f">={alignext.__version__}"}

    def save_pretrained(self: Any, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> Any:
        """
        Args:
            save_directory (`str` or `os.PathLike`): A folder, which is made if need be.
            push_to_hub (`bool`, *optional*, defaults to `False`): Push it, too, and return the commit.
            kwargs: `repo_id`, by default the folder's name, `commit_message`, `private`, `token` and `create_pr`.

        Raises:
            ValueError: If the blocks are not those of a stock preset, which code could name.
        """
        folder = Path(save_directory)
        repo_id = kwargs.pop("repo_id", folder.resolve().name if push_to_hub else os.fspath(save_directory))
        write_files(folder, blocks_files(self), blocks_card(self, repo_id))
        self.register_to_config(auto_map={"ModularPipelineBlocks": "block.Blocks"}, requirements=self._requirements)
        self.save_config(os.fspath(folder))
        if push_to_hub:
            kwargs.setdefault("commit_message", f"Upload {type(self).__name__}")
            return push_folder(folder, repo_id, **kwargs)

    def push_to_hub(self: Any, repo_id: str, **kwargs) -> CommitInfo:
        """What [`~BlocksHubMixin.save_pretrained`] writes and takes, without a folder to keep."""
        with TemporaryDirectory() as folder:
            return self.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, **kwargs)


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """
    Push a folder to a model repository, which is made if need be. A card that is there stays.

    Args:
        folder (`str` or `os.PathLike`): What to push.
        repo_id (`str`): Such as `"someone/flux-in-one-style"`.
        commit_message (`str`, *optional*): Of the commit.
        private (`bool`, *optional*): Of a new repository.
        token (`str`, *optional*): Of the Hub.
        create_pr (`bool`, *optional*, defaults to `False`): As a pull request.
    """
    repo_id = create_repo(repo_id, exist_ok=True, private=private, token=token).repo_id
    keep_card = file_exists(repo_id, "README.md", token=token)
    return upload_folder(
        repo_id=repo_id,
        folder_path=Path(folder),
        commit_message=commit_message,
        token=token,
        create_pr=create_pr,
        ignore_patterns=["README.md"] if keep_card else None,
    )


def blocks_files(blocks: Any) -> dict[str, str]:
    """The code of a repository of blocks, by path."""
    import diffusers  # decoding methods read this module's format, and need none of it

    around, name = blocks.around, public_name(type(blocks))
    stock = type(around)
    known = getattr(diffusers, stock.__name__, None) is stock and bool(stock.block_classes)
    if not known or _kinds(around) != _kinds(stock()):
        raise ValueError(
            f"`{name}` can be saved around a preset of diffusers as it is, such as `FluxAutoBlocks()`, received "
            f"{stock.__name__} with blocks of its own. Save it around the preset, and change it once it is loaded."
        )
    values = {"name": name, "stock": stock.__name__, "format": FORMAT, "version": alignext.__version__}
    return {"block.py": (_HEADER + _BLOCKS).format(**values)}


def _kinds(blocks: Any) -> Any:
    return {name: (type(block), _kinds(block)) for name, block in getattr(blocks, "sub_blocks", {}).items()}


def pipeline_files(cls: type) -> dict[str, str]:
    """The code of a repository that is a custom pipeline, by path."""
    values = {"name": public_name(cls), "format": FORMAT, "version": alignext.__version__}
    return {"pipeline.py": (_HEADER + _PIPELINE).format(**values), "requirements.txt": "alignext\n"}


def public_name(cls: type) -> str:
    """The public name of a class, or of its nearest parent that has one."""
    return next(c.__name__ for c in cls.__mro__ if c.__name__ in alignext.__all__)


def write_files(folder: str | os.PathLike, files: dict[str, str], card: ModelCard | None = None) -> None:
    """
    Write a repository's files, and its card where there is none.

    Args:
        folder (`str` or `os.PathLike`): Where to.
        files (`dict[str, str]`): Texts by path.
        card (`ModelCard`, *optional*): Its `README.md`.
    """
    if card is not None and not Path(folder, "README.md").exists():
        files = files | {"README.md": str(card)}
    for path, text in files.items():
        Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(folder, path)) as part:
            part.write_text(text, encoding="utf-8")


def blocks_card(blocks: Any, repo_id: str, base: str | None = None) -> ModelCard:
    """The card of a repository of blocks at `repo_id`, for a base model."""
    stock = type(blocks.around).__name__
    text = f"""
The blocks of diffusers' `{stock}` inside {blocks._name}, for Modular Diffusers. This repository holds no weights: they
are those of the base model. The code is the package's: `pip install alignext`.

```python
from diffusers import ModularPipelineBlocks

blocks = ModularPipelineBlocks.from_pretrained("{repo_id}", trust_remote_code=True)
pipe = blocks.init_pipeline("{base or "BASE_MODEL"}")
pipe.load_components()
```

Inputs beside those of `{stock}`: {", ".join(f"`{param.name}`" for param in blocks._own_inputs())}. `print(pipe.doc)`
lists all.
"""
    return _card(blocks, text, ["modular-diffusers", "custom-block"], base)


def write_blocks(blocks: Any, folder: str | os.PathLike, repo_id: str, base: str | None = None) -> None:
    """
    Write a repository of blocks for a base model.

    Args:
        blocks ([`MethodBlocks`]): Around a stock preset.
        folder (`str` or `os.PathLike`): Where to.
        repo_id (`str`): Under which name it will be loaded, for the card.
        base (`str`, *optional*): A folder or Hub id of the base model. With it the folder gets a
            `modular_model_index.json`, and `ModularPipeline.from_pretrained` knows where the components are.
    """
    write_files(folder, {}, blocks_card(blocks, repo_id, base))
    blocks.save_pretrained(folder)
    if base is not None:
        blocks.init_pipeline(base).save_pretrained(os.fspath(folder), overwrite_modular_index=False)


def decoding_card(cls: Any, repo_id: str, base: str | None = None) -> ModelCard:
    """The card of a decoding method at `repo_id`."""
    text = f"""
A decoding method for any causal language model of transformers. This repository holds no weights, and the code is the
package's: `pip install alignext`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{base or "BASE_MODEL"}")
tokenizer = AutoTokenizer.from_pretrained("{base or "BASE_MODEL"}")
inputs = tokenizer(["Once"], return_tensors="pt")
model.generate(**inputs, custom_generate="{repo_id}", trust_remote_code=True, do_sample=True)
```

The settings are in `custom_generate/generate.py`; any of them may be given to `generate`, too.
"""
    return _card(cls, text, ["custom_generate"], base, library_name="transformers")


def pipeline_card(cls: Any, repo_id: str, base: str | None = None) -> ModelCard:
    """The card of a custom pipeline at `repo_id`, for a base model."""
    stock = next(c.__name__ for c in cls.__mro__ if c.__module__.startswith("diffusers."))
    arguments = inspect.signature(cls.__call__).parameters.values()
    own = [p.name for p in arguments if p.kind is p.KEYWORD_ONLY]
    text = f"""
{cls._name} as a custom pipeline over diffusers' `{stock}`. This repository holds no weights: they are those of the
base model. The code is the package's: `pip install alignext`.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{base or "BASE_MODEL"}", custom_pipeline="{repo_id}", trust_remote_code=True)
```

Arguments beside those of `{stock}`: {", ".join(f"`{name}`" for name in own)}. `help(pipe.__call__)` explains them.
"""
    return _card(cls, text, ["custom-pipeline"], base)


def _card(method: Any, text: str, tags: list[str], base: str | None, library_name: str = "diffusers") -> ModelCard:
    name = getattr(method, "_name", None) or method.__name__
    known = {"base_model": base} if base and not Path(base).exists() else {}
    own = getattr(method, "_tag_names", ["alignext", name.lower()])
    return model_card(
        name, text, tags=[*own, *tags], paper=method._paper, library_name=library_name, license="apache-2.0", **known
    )
