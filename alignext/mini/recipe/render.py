# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Draw openly licensed emoji sets as a concept x style grid of 64 px pictures and split it.

Every picture belongs to one split:

- `train`: what the diffusion model learns, concept by concept;
- `extra`: other drawings of the same sets, for the autoencoder and the style judge only;
- `unseen_concept`: concepts that no generative model sees in any style;
- `unseen_drawing`: single (concept, style) cells of trained concepts that no model sees, judges included;
- `unseen_style`: trained concepts from a set that no model sees.
"""

import functools
import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image


if TYPE_CHECKING:
    import torch

CACHE = Path(os.environ.get("ALIGNEXT_CACHE", "~/.cache/alignext")).expanduser()
SIZE = 64
SEED = 0
UNSEEN_STYLE = "fx"
# style word -> npm set, version, SHA-256 of the tarball
SETS = {
    "noto": ("noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "blob": ("noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    "flat": ("fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
    "glossy": ("fluent-emoji", "1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b"),
    "ink": ("fluent-emoji-high-contrast", "1.2.6", "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0"),
    UNSEEN_STYLE: ("fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
}
STYLES = tuple(style for style in SETS if style != UNSEEN_STYLE)

TRAINED = """
fox wolf dog-face cat-face tiger-face lion bear pig-face cow-face horse-face monkey-face rabbit-face mouse-face hamster
frog chicken baby-chick penguin owl eagle duck snake lizard crocodile elephant rhinoceros gorilla camel goat ewe deer
unicorn butterfly ant honeybee lady-beetle spider crab octopus squid shrimp fish blowfish spouting-whale shark
dragon-face red-apple tangerine lemon banana watermelon grapes melon cherries peach pineapple tomato avocado eggplant
potato ear-of-corn hot-pepper cucumber mushroom bread pancakes cheese-wedge hamburger french-fries hot-dog taco egg
cooking popcorn cookie birthday-cake candy lollipop custard soft-ice-cream hot-beverage wine-glass beer-mug
evergreen-tree deciduous-tree palm-tree seedling four-leaf-clover maple-leaf rose sunflower hibiscus cherry-blossom
airplane rocket locomotive bus automobile fire-engine delivery-truck tractor bicycle motor-scooter speedboat anchor
house castle tent volcano violin trumpet drum hammer wrench scissors pencil light-bulb bell crown gem-stone ring
balloon wrapped-gift umbrella top-hat t-shirt dress running-shoe alarm-clock camera television laptop closed-book
soccer-ball basketball robot ghost skull jack-o-lantern snowman star crescent-moon cloud rainbow fire snowflake
red-heart grinning-face smiling-face-with-sunglasses crying-face
""".split()
UNSEEN = """
panda koala turtle dolphin snail strawberry pear carrot croissant pizza doughnut cactus tulip helicopter taxi sailboat
guitar key backpack trophy
""".split()
WORDS = {
    "fox": "red fox", "ewe": "sheep", "honeybee": "bee", "lady-beetle": "ladybug", "spouting-whale": "whale",
    "blowfish": "pufferfish", "cooking": "fried egg", "grapes": "bunch of grapes",
    "cherries": "pair of cherries", "pancakes": "stack of pancakes", "french-fries": "box of fries",
    "popcorn": "box of popcorn", "hot-beverage": "hot drink", "bread": "loaf of bread",
    "cheese-wedge": "piece of cheese", "evergreen-tree": "fir tree", "deciduous-tree": "green tree",
    "soft-ice-cream": "ice cream", "ear-of-corn": "corn cob", "automobile": "red car",
    "delivery-truck": "truck", "motor-scooter": "scooter", "gem-stone": "diamond", "wrapped-gift": "gift",
    "running-shoe": "shoe", "locomotive": "train", "closed-book": "red book", "jack-o-lantern": "pumpkin",
    "grinning-face": "smiling face", "smiling-face-with-sunglasses": "face with sunglasses",
    "scissors": "pair of scissors",
}  # fmt: skip
# the unseen set names its drawings in its own way
FX_NAMES = {
    "fox": "foxgrin", "wolf": "wolfface", "cat-face": "cat", "dog-face": "dog", "pig-face": "pig",
    "rabbit-face": "bunny", "tiger-face": "tiger", "mouse-face": "mouse", "hamster": "hampster",
    "dragon-face": "dragonhead", "ewe": "sheep", "spouting-whale": "spurtingwhale", "ear-of-corn": "earofmaize",
    "hot-pepper": "chilipepper", "eggplant": "aubergine", "evergreen-tree": "evergreen",
    "soft-ice-cream": "softicecream", "gem-stone": "gem", "wrapped-gift": "present",
    "soccer-ball": "soccerball", "basketball": "basketballandhoop", "locomotive": "steamlocomotive",
    "house": "housebuilding", "closed-book": "closedbook", "castle": "europeancastle",
    "hot-beverage": "hotbeverage", "snowman": "snowmanwithoutsnow", "t-shirt": "mansshirt",
    "camel": "bactriancamel", "grinning-face": "grin", "star": "whitemediumstar",
    "smiling-face-with-sunglasses": "sunglasses", "crying-face": "crying", "deciduous-tree": "deciduoustree",
}  # fmt: skip
CELLS_HELD_OUT = 40
SHIPPED = ("fox", "rocket", "tomato", "owl", "house", "sunflower")  # with their training pictures

# what the video model learns: drawings that the concept judge knows after the autoencoder, in the two styles that the
# style judge tells best; of one family, so that a concept has one outline in both
MOVED = """
fox cat-face dog-face cow-face lion elephant eagle duck fish octopus butterfly banana eggplant avocado mushroom rose
evergreen-tree airplane locomotive automobile rocket tent top-hat t-shirt umbrella anchor scissors light-bulb
soccer-ball star crescent-moon fire
""".split()
MOVED_STYLES = ("glossy", "ink")
FRAMES = 8


def word(name: str) -> str:
    """The concept's name in captions: `dog-face` -> `dog`."""
    return WORDS.get(name, name.removesuffix("-face").replace("-", " "))


def caption(concept: str, style: str | None = None, motion: str | None = None) -> str:
    """`red fox`, `flat`, `left` -> `a red fox, flat style, moving left`; `growing` and `shrinking` stand alone."""
    article = "an" if concept[0] in "aeio" else "a"
    moving = "" if motion in ("growing", "shrinking") else "moving "
    return f"{article} {concept}" + (f", {style} style" if style else "") + (f", {moving}{motion}" if motion else "")


@functools.cache
def icon_set(style: str) -> dict:
    """The icon file of one style, fetched with `npm pack` into the cache and checked."""
    name, version, sha = SETS[style]
    folder = CACHE / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    tarball = folder / f"iconify-json-{name}-{version}.tgz"
    if not tarball.exists():
        subprocess.run(["npm", "pack", "--silent", f"@iconify-json/{name}@{version}"], cwd=folder, check=True)
    found = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if found != sha:
        raise ValueError(f"{tarball} has SHA-256 {found}, expected {sha}: delete the file and fetch it again.")
    with tarfile.open(tarball) as tar:
        return json.load(tar.extractfile("package/icons.json"))


def draw(style: str, name: str) -> np.ndarray:
    """One drawing on white, uint8 (SIZE, SIZE, 3)."""
    import resvg_py

    icons = icon_set(style)
    entry = icons.get("aliases", {}).get(name, {})
    icon = icons["icons"][entry.get("parent", name)]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    body = icon["body"].replace("currentColor", "#000000")
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, background="white")
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def move(drawings: "torch.Tensor", motion: str, rng: "torch.Generator") -> "torch.Tensor":
    """Clips (B, FRAMES, 3, H, W) of drawings (B, 3, H, W) in [0, 1] that move across white paper or change size.

    Speed, place and size vary a little from clip to clip.
    """
    import torch
    import torch.nn.functional as F

    n = len(drawings)
    uniform = torch.rand(4, n, 1, generator=rng) * 2 - 1
    along = torch.linspace(-1, 1, FRAMES).expand(n, -1)
    place = 0.06 * uniform[:2].expand(-1, -1, FRAMES).clone()  # of the centre, in half widths
    size = (0.68 + 0.03 * uniform[2]).expand(-1, FRAMES)
    if motion in ("growing", "shrinking"):
        size = 0.68 * torch.exp(along * (0.38 + 0.05 * uniform[3]) * (1 if motion == "growing" else -1))
    else:
        axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[motion]
        place[axis] = place[axis] * 0.5 + sign * along * (0.3 + 0.04 * uniform[3])
    zero = torch.zeros_like(size)
    theta = torch.stack([1 / size, zero, -place[0] / size, zero, 1 / size, -place[1] / size], dim=-1)
    theta = theta.view(n * FRAMES, 2, 3)
    frames = drawings.repeat_interleave(FRAMES, dim=0)
    grid = F.affine_grid(theta, list(frames.shape), align_corners=False)
    return (1 - F.grid_sample(1 - frames, grid, align_corners=False)).unflatten(0, (n, FRAMES))


def grid() -> dict[tuple[str, str], str]:
    """(name, style) -> split for the concepts of the captions; needs no icon set."""
    cells = sorted((name, style) for name in TRAINED for style in STYLES)
    held_out = random.Random(SEED).sample(sorted(TRAINED), CELLS_HELD_OUT)
    held_out = {(name, STYLES[i % len(STYLES)]) for i, name in enumerate(held_out)}
    splits = {cell: "unseen_drawing" if cell in held_out else "train" for cell in cells}
    return splits | {(name, style): "unseen_concept" for name in UNSEEN for style in STYLES}


def table() -> list[dict]:
    """All pictures as rows of `name`, `style`, `concept`, `caption` and `split`."""
    known = {style: {**icon_set(style)["icons"], **icon_set(style).get("aliases", {})} for style in SETS}
    splits = grid()
    # An extra drawing that shares a word with a held-out one may look like it: leave it out.
    taboo = {part for (name, _), split in splits.items() if split != "train" for part in name.split("-")}
    for name in sorted(set.intersection(*(set(known[style]) for style in STYLES))):
        if name in TRAINED or name in UNSEEN or name.startswith("flag") or "skin-tone" in name:
            continue
        if not taboo & set(name.split("-")):
            splits |= {(name, style): "extra" for style in STYLES}
    for name in TRAINED:
        if FX_NAMES.get(name, name.replace("-", "")) in known[UNSEEN_STYLE]:
            splits[name, UNSEEN_STYLE] = "unseen_style"
    return [
        {"name": name, "style": style, "concept": word(name), "split": split}
        | {"caption": caption(word(name), style if style in STYLES else None)}
        for (name, style), split in sorted(splits.items())
    ]


def load(*splits: str) -> tuple[np.ndarray, list[dict]]:
    """Pictures of these splits, uint8 (N, SIZE, SIZE, 3), and their rows; drawn once, then read from the cache."""
    rows, file = table(), CACHE / "pictures.npz"
    key = hashlib.sha256(json.dumps([rows, SETS, SIZE]).encode()).hexdigest()
    if not file.exists() or str(np.load(file)["key"]) != key:
        fx = {row["name"]: FX_NAMES.get(row["name"], row["name"].replace("-", "")) for row in rows}
        images = [draw(r["style"], fx[r["name"]] if r["style"] == UNSEEN_STYLE else r["name"]) for r in rows]
        np.savez_compressed(file, images=np.stack(images), key=key)
    images = np.load(file)["images"]
    chosen = [i for i, row in enumerate(rows) if row["split"] in splits]
    return images[chosen], [rows[i] for i in chosen]


def ship(folder: Path) -> None:
    """Write the held-out pictures and a few training pictures as an image folder: PNG files and `metadata.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for image, row in zip(*load("train", "unseen_concept", "unseen_drawing", "unseen_style"), strict=True):
        name = row.pop("name")
        if row["split"] != "train" or name in SHIPPED:
            row = {"file_name": f"{name}-{row['style']}.png", **row}
            Image.fromarray(image).save(folder / row["file_name"], optimize=True)
            lines.append(json.dumps(row) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    ship(Path(__file__).parents[1] / "pictures")
