# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Tensors in one file, to the Hub and back."""

import os
from dataclasses import MISSING, fields
from importlib import import_module
from json import dumps, loads
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    ModelCard,
    create_commit,
    create_repo,
    file_exists,
    hf_hub_download,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import alignext
from alignext.files import replacing
from alignext.model_cards import model_card


class FileHubMixin:
    """
    Gives a dataclass of tensors a file, and a way to the Hub and back. What is no tensor in it stands in the file's
    metadata, by its own `_plain` and `_fields`.

    Class attributes to define: `_key` (`str`), its name in the metadata; `_file_name` (`str`), the file's in a
    repository; `_method` (`str`), `module:class` whose tags and paper the card takes; `_kind` (`str`), the card's
    heading and tag; `_use` (`str`), what the card says beneath it.
    """

    _key: ClassVar[str]
    _file_name: ClassVar[str]
    _method: ClassVar[str]
    _kind: ClassVar[str]
    _use: ClassVar[str]

    def save(self, path: str | os.PathLike) -> None:
        """
        Write one safetensors file, and the folders above it. An existing file is replaced only when the new one is
        complete.
        """
        found = {f.name: getattr(self, f.name) for f in fields(self)}  # ty: ignore[invalid-argument-type]
        tensors = {name: x.detach().cpu().contiguous().clone() for name, x in found.items() if isinstance(x, Tensor)}
        if Path(path).is_dir():
            raise IsADirectoryError(
                f"`path` must be a file, received the folder {os.fspath(path)!r}. Pass a file in it, such as "
                f"{os.path.join(path, self._file_name)!r}."
            )
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            save_file(tensors, part, metadata={"format": "pt", self._key: dumps(self._plain())})

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read a file that `save` wrote, or the folder of a repository or a training that has it."""
        tensors, plain = cls._read(path, cls._key)
        absent = {f.name: None for f in fields(cls) if f.default is MISSING}  # ty: ignore[invalid-argument-type]
        return cls(**absent | tensors | cls._fields(plain))

    def _plain(self) -> Any:
        """All that is no tensor, as JSON has it."""
        raise NotImplementedError

    @classmethod
    def _fields(cls, plain: Any) -> dict[str, Any]:
        """The fields that `_plain` told of."""
        raise NotImplementedError

    @classmethod
    def _read(cls, path: str | os.PathLike, key: str) -> tuple[dict[str, Tensor], Any]:
        """The tensors of a file of `save`, and what its metadata has under `key`."""
        if os.path.isdir(path):
            path = os.path.join(path, cls._file_name)
        wrong = ValueError(
            f"`path`: {os.fspath(path)!r} is no file that `{cls.__name__}.save` wrote, or not all of it."
        )
        try:
            with safe_open(path, framework="pt") as file:
                if key not in (metadata := file.metadata() or {}):
                    raise wrong
                return {name: file.get_tensor(name) for name in file.keys()}, loads(metadata[key])
        except SafetensorError as error:
            raise wrong from error

    def push_to_hub(
        self,
        repo_id: str,
        *,
        filename: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str | None = None,
    ) -> CommitInfo:
        """
        Put the file of `save` into a model repository on the Hub, which is made if need be, with a card where it has
        none.

        Args:
            repo_id (`str`): Such as `"someone/my-style"`.
            filename (`str`, *optional*): Its path in the repository; by default, one name for all of this class.
            private (`bool`, *optional*): Of a new repository.
            token (`str`, *optional*): Of the Hub.
            commit_message (`str`, *optional*): Of the commit.

        Returns:
            `CommitInfo`: The commit.
        """
        filename = filename or self._file_name
        repo_id = create_repo(repo_id, exist_ok=True, private=private, token=token).repo_id
        with TemporaryDirectory() as folder:
            path = Path(folder, self._file_name)
            self.save(path)
            files = [CommitOperationAdd(filename, path)]
            files += [CommitOperationAdd(name, text.encode()) for name, text in self._more_files().items()]
            if not file_exists(repo_id, "README.md", token=token):
                files.append(CommitOperationAdd("README.md", str(self._card(repo_id, filename)).encode()))
            message = commit_message or f"Upload {self._kind.lower()}"
            return create_commit(repo_id, files, commit_message=message, token=token)

    def _more_files(self) -> dict[str, str]:
        """Texts that go into the repository beside the file, by their paths."""
        return {}

    @classmethod
    def from_hub(cls, repo_id: str, *, filename: str | None = None, **kwargs) -> Self:
        """
        Load what `push_to_hub` put there.

        Args:
            repo_id (`str`): The repository.
            filename (`str`, *optional*): Path of the file in it; by default, the one that `push_to_hub` takes.
            **kwargs: Further arguments of `huggingface_hub.hf_hub_download`, such as `revision` and `token`.
        """
        return cls.load(hf_hub_download(repo_id, filename or cls._file_name, **kwargs))

    def _card(self, repo_id: str, filename: str) -> ModelCard:
        name, (module, method) = type(self).__name__, self._method.split(":")
        pipeline = getattr(import_module(module), method)
        words = "" if filename == self._file_name else f', filename="{filename}"'
        text = f"""
{self._use}

```python
from alignext import {name}

found = {name}.from_hub("{repo_id}"{words})
```

Saved by alignext {alignext.__version__}.
"""
        tags = [*pipeline._tag_names, self._kind.lower().replace(" ", "-")]
        return model_card(self._kind, text, tags=tags, paper=pipeline._paper, library_name="alignext")
