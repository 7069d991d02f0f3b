# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What a command of each kind takes on a CPU: the jobs of the README's table, on the embedded models.

    python benchmarks/embedded_jobs.py                  # about fifteen minutes
    python benchmarks/embedded_jobs.py --job rival bco

Each command runs in a process of its own with one thread, and is counted whole, from its imports to its files:
processor seconds, and the largest memory that it held. Rounds go by turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from alignext import mini
from common import ROOT, about, by_turns, parser, table, write


NAME = "embedded-jobs"
# What it is, and the words of the command.
JOBS = {
    "start": ("starting and leaving: `alignext methods`", "methods"),
    "rival": (
        "RIVAL, mini-SD: 4 variations, 50 steps",
        "rival drawing.png --prompt fox --steps 50 --out OUT",
    ),
    "alignedgen": (
        "AlignedGen, mini-Flux: 4 images, 28 steps",
        "alignedgen fox owl house car --steps 28 --out OUT",
    ),
    "search": (
        "search, mini-SD: 4 beams of 2, lookahead 1, 50 steps",
        "search fox --reward brightness --beams 4 --candidates 2 --lookahead 1 --steps 50 --out OUT",
    ),
    "bco": (
        "BCO, mini-LM, LoRA: 100 updates of 8 rows",
        "bco --dataset_name thumbs.jsonl --output_dir OUT --use_peft --max_steps 100 --use_cpu --report_to none",
    ),
    "diffusion-dpo": (
        "Diffusion-DPO, mini-SD, LoRA: 60 updates of 12 pairs",
        "diffusion-dpo --dataset_name pairs.jsonl --output_dir OUT --use_peft --max_steps 60 "
        "--per_device_train_batch_size 12 --use_cpu --report_to none",
    ),
}  # fmt: skip


def data(folder: Path) -> None:
    """What the commands read."""
    drawn = mini.pictures("train")
    for k, picture in enumerate(drawn[:24]):
        picture.image.save(folder / f"{k}.png")
    drawn[0].image.save(folder / "drawing.png")
    pairs = [{"prompt": "a fox", "chosen": f"{k}.png", "rejected": f"{k + 1}.png"} for k in range(0, 24, 2)]
    thumbs = [
        {"prompt": "One day", "completion": f" Tom found a box and said it was {k}.", "label": k % 2 > 0}
        for k in range(64)
    ]
    for name, rows in (("pairs", pairs), ("thumbs", thumbs)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def run(words: str) -> tuple[float, float]:
    """Processor seconds and the peak of memory in GiB."""
    with tempfile.TemporaryDirectory() as folder:
        data(Path(folder))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", _COUNTED, *words.replace("OUT", "out").split()]
        answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if answer.returncode:
        raise SystemExit(f"{words} failed:\n{answer.stderr[-3000:]}")
    seconds, kilobytes = map(float, answer.stdout.split()[-2:])
    return seconds, kilobytes / 2**20


_COUNTED = """
import resource, sys
from alignext.cli import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print()
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(used.ru_utime + used.ru_stime, peak)  # ru_maxrss begins with what the parent had
sys.exit(code)
"""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--job", nargs="+", choices=JOBS, default=list(JOBS))
    options.add_argument("--rounds", type=int, default=3)
    args: argparse.Namespace = options.parse_args()
    found = by_turns({name: lambda name=name: run(JOBS[name][1]) for name in args.job}, args.rounds)
    rows: list[dict[str, Any]] = []
    for name, values in found.items():
        seconds, memory = zip(*values, strict=True)
        rows.append({"job": name, "seconds": list(seconds), "GiB": list(memory)})
    made = about("cpu", "diffusers", "transformers", "trl")
    heads = ["job, on the embedded models", "seconds", "range", "GiB"]
    lines = []
    for row in rows:
        seconds, memory = row["seconds"], median(row["GiB"])
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        lines.append([JOBS[row["job"]][0], f"{median(seconds):.1f}", spread, f"{memory:.2f}"])
    text = f"Processor seconds of one thread, with the start of Python; {args.rounds} rounds by turns.\n\n"
    write(NAME, "Commands on the embedded models", made, {"runs": rows}, text + table(heads, lines))


if __name__ == "__main__":
    main()
