# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Pairs of pictures in folders of winners, losers and sources."""

from pathlib import Path

from datasets import Dataset


def pairs_from_folder(folder: str | Path) -> Dataset:
    """
    Pairs of a folder with `winner/` and `loser/`, and `source/` for editing: files of one name belong together, and a
    text file of that name, beside the winner or in the folder itself, is the prompt. A source may have several
    pictures, `NAME_1.png`, `NAME_2.png`, ...

    Raises:
        ValueError: A file has no partner or no text; the message names it.
    """
    folder, rows = Path(folder), []
    sides = {side: _files(folder / side) for side in ("winner", "loser", "source")}
    for stem, winner in sides["winner"].items():
        texts = [path for path in (winner.with_suffix(".txt"), folder / f"{stem}.txt") if path.is_file()]
        if stem not in sides["loser"] or not texts:
            missing = f"winner/{stem}.txt" if stem in sides["loser"] else f"loser/{stem}{winner.suffix}"
            raise ValueError(f"`winner/{winner.name}` needs `{missing}` beside it, and there is none.")
        row = {
            "prompt": texts[0].read_text(encoding="utf-8").strip(),
            "image_chosen": str(winner),
            "image_rejected": str(sides["loser"][stem]),
        }
        if sides["source"]:
            several = [str(path) for name, path in sides["source"].items() if name.rpartition("_")[0] == stem]
            found = [str(sides["source"][stem])] if stem in sides["source"] else several
            if not found:
                raise ValueError(f"`winner/{winner.name}` needs a picture beside it: `source/{stem}{winner.suffix}`.")
            row["source"] = found
        rows.append(row)
    if not rows:
        raise ValueError(f"`{folder}` must have pictures in `winner/` and `loser/`, received an empty `winner/`.")
    return Dataset.from_list(rows)


def _files(folder: Path) -> dict[str, Path]:
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.stem: path for path in found if path.is_file() and path.suffix != ".txt"}
