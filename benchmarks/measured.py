# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""One page of everything that was measured, read from the result files: `docs/measured.md`.

    python benchmarks/measured.py   # writes the page, its pictures, a table of docs/costs.md, what the demo says

A row names a result file, a table in it, a line of that table and a column. Nothing is typed in by hand: a file that
was made again changes the page, and a line that is gone is an error.
"""

import json
import re
from math import hypot
from pathlib import Path
from typing import NamedTuple

import PIL.Image

from alignext.methods import METHODS


ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "measured.md"
ASSETS, COSTS = ROOT / "docs" / "assets", ROOT / "docs" / "costs.md"
SHIPPED = ROOT / "alignext" / "demos" / "measured.json"


class Row(NamedTuple):
    """
    A line of the page. In `effect`, `cost` and `memory`, `{file#1: line > column}` stands for a cell of a result's
    table 1, from 0; `#0` may be left out. `line` is how its line begins, cells parted by `|`. `gallery`, `method:
    what`, is for methods that the demo shows by this row, since a run of them takes too long there.
    """

    page: str
    what: str
    command: str
    effect: str = ""
    cost: str = ""
    memory: str = ""
    gallery: str = ""


CELL = re.compile(r"\{([\w-]+)(?:#(\d))?: (.+?) > (.+?)\}")
ROWS = (
    Row(
        "rival",
        "palette of the picture, minus text-to-image",
        "rival.py",
        effect="{rival-effect#1: text-to-image > same palette}",
        cost="{rival-cost: 1|ours, null reference prompt > of stock} of stock at 1 image, {rival-cost: "
        "8|ours, null reference prompt > of stock} at 8",
    ),
    Row(
        "rival",
        "what the prompt names, minus img2img at 0.4",
        "rival.py",
        effect="{rival-effect#1: img2img 0.4 > is the concept}",
    ),
    Row(
        "alignedgen",
        "texture of a set, style left open, all layers, minus stock",
        "alignedgen_effect.py",
        effect="{alignedgen-open#2: stock > texture}",
        cost="{alignedgen-time: aligned, 4 images at once > of stock} of stock",
        memory="{alignedgen-memory: aligned, 4 images at once > extra MiB} MiB more at FLUX.1's size",
    ),
    Row(
        "alignedgen",
        "style features, a picture's style, all layers, minus stock",
        "alignedgen_effect.py",
        effect="{alignedgen-picture#2: stock > style features}",
    ),
    Row(
        "alignedgen",
        "style features of a set, prompts that name the style, minus stock",
        "alignedgen_effect.py",
        effect="{alignedgen-named#1: stock > style features}",
    ),
    Row(
        "latent_search",
        "style in 10 steps, beam minus best of 8 at as many evaluations",
        "latent_search.py",
        effect="{latent-search-effect-style#1: beam 4 x 2 > style (searched)}",
        cost="{latent-search-cost: 1|alignext > of the loop} of a plain loop",
    ),
    Row(
        "latent_search",
        "size of pictures as JPEG in 50 steps, in kB less, beam minus best of 8",
        "latent_search.py",
        effect="{latent-search-effect-compressibility-50-steps#1: beam 4 x 2 > compressibility (searched)}",
    ),
    Row(
        "latent_search",
        "motion of clips, beam minus best of 8",
        "latent_search_video.py",
        effect="{latent-search-effect-video-motion#1: beam 4 x 2 > motion (searched)}",
    ),
    Row(
        "diffusion_preference",
        "preferred style, Diffusion-DPO (change)",
        "diffusion_preference_effect.py",
        effect="{diffusion-preference-effect: diffusion-dpo > preferred style}",
        cost="{diffusion-preference-cost: Diffusion-DPO > ratio} of one loop written for the purpose",
    ),
    Row(
        "diffusion_preference",
        "the same, Inversion-DPO with recovered targets",
        "diffusion_preference_effect.py",
        effect="{diffusion-preference-effect: inversion-dpo, recovered > preferred style}",
        cost="{diffusion-preference-cost: Inversion-DPO, kept inversions > ratio} with kept inversions",
        gallery="Inversion-DPO: share in the preferred style, with recovered targets",
    ),
    Row(
        "diffusion_preference",
        "the same, SmPO",
        "diffusion_preference_effect.py",
        effect="{diffusion-preference-effect: smpo > preferred style}",
        cost="{diffusion-preference-cost: SmPO, 10 steps, one round of re-noising > ratio}",
        gallery="SmPO: share in the preferred style",
    ),
    Row(
        "diffusion_preference",
        "preferred style in 20 updates: votes, Diffusion-KTO (change)",
        "diffusion_votes_effect.py",
        effect="{diffusion-votes-effect: sd-kto > after}",
        gallery="Diffusion-KTO: share in a preferred style, after 20 updates on votes",
    ),
    Row(
        "diffusion_preference",
        "as many ratings as pairs, Diffusion-DPO (change)",
        "diffusion_votes_effect.py",
        effect="{diffusion-votes-effect: sd-dpo > after}",
    ),
    Row(
        "diffusion_preference",
        "the same on mini-Flux, which draws half in that style before",
        "diffusion_votes_effect.py",
        effect="{diffusion-votes-effect: flux-dpo > after}",
    ),
    Row(
        "diffusion_preference",
        "motion of mini-video, from 19.5, Diffusion-DPO (change)",
        "diffusion_votes_effect.py",
        effect="{diffusion-votes-effect: video-dpo > after}",
    ),
    Row(
        "diffusion_preference",
        "an update of Diffusion-DPO against one of a plain LoRA, mini-Flux",
        "diffusion_families.py",
        cost="{diffusion-families-cost: mini-flux > ratio}",
        memory="{diffusion-families-cost: mini-flux > Diffusion-DPO, MiB} MiB beside the weights",
    ),
    Row(
        "alignprop",
        "probability of a style, K = 8 (change)",
        "diffusion_reward_effect.py",
        effect="{diffusion-reward-effect: style-k8 > reward}",
        cost="{diffusion-reward-cost: AlignProp, K = a sixth > ratio of time} of drawing the same pictures",
        memory="{diffusion-reward-memory#1: SD 1.5 > steps, MiB} MiB a step for "
        "{diffusion-reward-memory#1: SD 1.5 > nothing recomputed, MiB} at SD 1.5's size",
    ),
    Row(
        "alignprop",
        "the same, pairwise distance of a prompt's pictures",
        "diffusion_reward_effect.py",
        effect="{diffusion-reward-effect: style-k8 > pairwise}",
    ),
    Row(
        "ddpo",
        "the same style at as many evaluations (change)",
        "diffusion_reward_effect.py",
        effect="{diffusion-reward-effect: style-ddpo > reward}",
        cost="{diffusion-reward-cost: DDPO > ratio of time} of drawing the same pictures",
        gallery="DDPO: probability of a style, before and change",
    ),
    Row(
        "d2_align",
        "pairwise distance after training on CLIP with the vector (change)",
        "diffusion_reward_effect.py",
        effect="{diffusion-reward-effect: clip-k8-d2 > pairwise}, without it "
        "{diffusion-reward-effect: clip-k8 > pairwise}",
        gallery="D²-Align: diversity after training on CLIP, before and change",
    ),
    Row(
        "bco",
        "stories that speak",
        "bco.py",
        effect="{bco-effect: BCO > speaks} for BCO, {bco-effect: KTO > speaks} for KTO, one seed",
        cost="{bco-cost: BCOTrainer > seconds_ratio} of KTO without its KL term",
        memory="{bco-cost: BCOTrainer > peak_mib_ratio}",
    ),
    Row(
        "f_dpg",
        "a rare word, `js`, 2 seeds",
        "f_dpg_effect.py",
        effect="{f-dpg-effect: binary|js > satisfaction}",
        cost="{f-dpg-cost: FDPGTrainer, js > seconds_ratio} of RLOO",
    ),
    Row(
        "mah_dpo",
        "stories that speak at its weight 1",
        "mah_dpo_effect.py",
        effect="{mah-dpo-effect#1: speaks=1 > speaks} (base {mah-dpo-effect#1: base > speaks})",
        cost="{mah-dpo-cost: MAHDPOTrainer, 3 full heads > ratio} of a step of DPO",
    ),
    Row(
        "process_reward",
        "pleasant stories, guided decoding minus plain",
        "guided_decoding.py",
        effect="{guided-decoding-effect: guided, 5 candidates a sentence > gain}",
        cost="{guided-decoding-cost: 1|guided_generate > time ratio} of a plain loop",
    ),
    Row(
        "process_reward",
        "the same, best of 5 whole stories",
        "guided_decoding.py",
        effect="{guided-decoding-effect: best of 5 whole stories > gain}",
    ),
    Row(
        "qalign",
        "reward at about 300 tokens a story",
        "decoding_effect.py",
        effect="{decoding-effect: QAlign|16 > reward} (best of 8: {decoding-effect: best of n|8 > reward})",
        cost="{decoding-cost-lm: a Metropolis step : a sample by generate > ratio} of a plain sample a step",
    ),
    Row(
        "transfer_q",
        "reward at about 280 tokens a story",
        "decoding_effect.py",
        effect="{decoding-effect: Transfer Q*|3 > reward} (best of 8: {decoding-effect: best of n|8 > reward})",
        cost="{decoding-cost-lm: a token of Transfer Q* : one of generate > ratio} of a plain token",
    ),
    Row(
        "svdecode",
        "exact match over the warm start",
        "svdecode_effect.py",
        effect="{svdecode-effect: kl_gradient, alpha 0.1 > gain}",
        cost="{decoding-cost-lm: a token of SVDecode : one of generate > ratio} of a plain token",
        gallery="SVDecode: exact match, over the warm start",
    ),
    Row(
        "steering",
        "stories with dialogue, StMP at 2",
        "steering_effect.py",
        effect="{steering-effect#3: StMP|2 > stories with the trait} (plain "
        "{steering-effect#2: plain > stories with the trait})",
        cost="tokens per second {steering: 8|StMP, open > ratio to plain} of plain",
    ),
    Row(
        "cdas",
        "stories with dialogue that was asked for, steered against it",
        "steering_effect.py",
        effect="{steering-effect#2: asked for, Concept DAS against it > stories with the trait} (asked for "
        "{steering-effect#2: asked for > stories with the trait})",
        gallery="Concept DAS: stories with dialogue that was asked for, steered against it",
    ),
    Row(
        "ches",
        "rank correlation with the change of chosen answers",
        "ches_effect.py",
        effect="{ches-effect#1: `ln_ches` > rank correlation with the change (negative: it tells the fall)}",
        cost="{data-scores: CHES > ratio} of a step of DPO on the same rows",
        gallery="CHES: rank correlation with the change of chosen answers",
    ),
    Row(
        "gist",
        "useful rows among the chosen twentieth",
        "gist_effect.py",
        effect="{gist-effect: gist > dialogue among the chosen}, divided by the whole gradient "
        "{gist-effect: gist, full > dialogue among the chosen} (random "
        "{gist-effect: random > dialogue among the chosen})",
        cost="{data-scores#1: GIST > ratio} of a training step on the same rows",
        gallery="GIST: useful rows among the chosen twentieth",
    ),
    Row(
        "fade",
        "distance of texts",
        "fade.py",
        effect="{fade: texts, rao_blackwell > total} (plain Monte Carlo {fade: texts, mc > total})",
    ),
    Row(
        "elbo_align",
        "overlap of segments, mini-Flux, minus not calibrated",
        "elbo_align.py",
        effect="{elbo-align: flux|calibrated by the loss > gain}",
        memory="{elbo-align-memory: SD 1.5 > kept afterwards, MiB} MiB more than a plain pass at SD 1.5's size",
    ),
)
# What parts of the demo say of longer runs than theirs.
QUOTED = {
    "alignedgen": "{alignedgen-open#2: stock > texture}",
    "search": "{latent-search-effect-video-motion#1: beam 4 x 2 > motion (searched)}",
}
# Pictures of the pages: which result's, and how much of it from the top, in pixels.
PICTURES = {
    "alignedgen.png": ("alignedgen-open.png", 1504),
    "alignedgen-levers.png": ("alignedgen-levers.png", None),
    "diffusion-preference.png": ("diffusion-preference-effect.png", 224),
    "diffusion-preference-methods.png": ("diffusion-preference-effect.png", None),
    "latent-search.png": ("latent-search-effect-style.png", None),
    "latent-search-effect.png": ("latent-search-effect-compressibility-50-steps.png", None),
    "process-reward.png": ("guided-decoding-effect.png", None),
}


def tables(text: str) -> list[list[list[str]]]:
    """All Markdown tables of a text: lines of cells, the head first."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not inside:
            found.append([])
        if not all(set(cell) <= set("-: ") for cell in cells) or not any(cells):
            found[-1].append(cells)
        inside = True
    return found


def cell(file: str, table: int, line: str, column: str) -> str:
    """
    A cell of a result file.

    Raises:
        LookupError: It has no such table, line or column.
    """
    found = tables((RESULTS / f"{file}.md").read_text(encoding="utf-8"))
    if table >= len(found):
        raise LookupError(f"{file}.md has {len(found)} tables, none numbered {table}.")
    head, *lines = found[table]
    wanted = line.split("|")
    match = [cells for cells in lines if cells[: len(wanted)] == wanted]
    if len(match) != 1 or column not in head:
        raise LookupError(f"{file}.md, table {table}, has {len(match)} lines {line!r}, and columns {head}.")
    return match[0][head.index(column)]


def filled(text: str) -> str:
    """A text with its cells."""
    return CELL.sub(lambda found: cell(found[1], int(found[2] or 0), found[3], found[4]), text)


HEAD = """# What was measured

On the [embedded models](mini.md), which are small, on a CPU. Intervals are 95 % intervals, `±` half of one; what they
are over, the number of seeds, and all that is not shown here stand in the result files in `benchmarks/results`. Of a
change, the value afterwards is given, or the one before and a number with a sign, and in brackets the interval of the
change: one that holds 0 is none that could be told. `python benchmarks/COMMAND` makes a row again,
`python benchmarks/measured.py` this page.

| method | what | effect | cost, as a ratio | memory | command |
|---|---|---|---|---|---|
"""


def picture(name: str) -> PIL.Image.Image:
    """A picture of the pages, in 128 colours where it has more."""
    file, height = PICTURES[name]
    whole = PIL.Image.open(RESULTS / file)
    part = whole.crop((0, 0, whole.width, height or whole.height))
    return part if part.mode == "P" else part.convert("RGB").quantize(128)


def page() -> str:
    """The page's text."""
    names: dict[str, list[str]] = {}
    for method in METHODS:
        names.setdefault(method.page, []).append(method.name)
    links = {to: f"[{known[0]}{' and kin' if len(known) > 2 else ''}]({to}.md)" for to, known in names.items()}
    lines = [
        f"| {links[row.page]} | {row.what} | {filled(row.effect)} | {filled(row.cost)} | {filled(row.memory)} | "
        f"`{row.command}` |"
        for row in ROWS
    ]
    rest = [link for to, link in links.items() if to not in {row.page for row in ROWS}]
    return HEAD + "\n".join(lines) + (f"\n\nWithout a row: {', '.join(rest)}.\n" if rest else "\n")


def costs() -> str:
    """The text of `docs/costs.md` with what commands took on the embedded models."""
    head, *lines = tables((RESULTS / "embedded-jobs.md").read_text(encoding="utf-8"))[0]
    rows = [head, ["---"] * len(head), *lines]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    before, mark, rest = COSTS.read_text(encoding="utf-8").partition("<!-- embedded jobs -->\n\n")
    _, end, after = rest.partition("\n\n<!-- end of embedded jobs -->")
    if not mark or not end:
        raise LookupError("docs/costs.md has lost the marks of the table that is written there.")
    return f"{before}{mark}{table}{end}{after}"


def distance(effect: str) -> float:
    """
    How far from nothing an effect is, in halves of its 95 % interval: beyond 1 and -1 it was told.

    Of `a (b to c)` the interval is that of a change, of one `a ± b` that of the number, and of several that of the
    difference of the first to the last.
    """
    if found := re.search(r"\(([+-]?[\d.]+) to ([+-]?[\d.]+)\)", effect):
        low, high = map(float, found.groups())
        return (low + high) / (high - low)
    numbers = [tuple(map(float, pair)) for pair in re.findall(r"([+-]?[\d.]+) ± ([\d.]+)", effect)]
    if not numbers:
        raise ValueError(f"no interval in {effect!r}")
    (value, half), (other, wide) = numbers[0], numbers[-1] if len(numbers) > 1 else (0.0, 0.0)
    return (value - other) / hypot(half, wide)


def shipped() -> str:
    """What the demo shows and says of runs that take too long for it, as JSON."""
    rows = []
    for row in ROWS:
        if row.gallery:
            effect = filled(row.effect)
            name, _, what = row.gallery.partition(": ")
            rows.append(
                {
                    "method": name,
                    "what": what,
                    "effect": effect,
                    "distance": round(distance(effect), 2),
                    "command": f"python benchmarks/{row.command}",
                }
            )
    quoted = {name: filled(text) for name, text in QUOTED.items()}
    return json.dumps({"rows": rows, "quoted": quoted}, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    COSTS.write_text(costs(), encoding="utf-8")
    SHIPPED.write_text(shipped(), encoding="utf-8")
    for name in PICTURES:
        picture(name).save(ASSETS / name, optimize=True)
