# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The same training in one process and in two that torch starts on the CPU, for the tests that compare them."""

import json
import subprocess
import sys
from pathlib import Path


BEGINNING = """
import json, sys
import torch

folder, *arguments, processes = sys.argv[1:]
processes = int(processes)
torch.set_num_threads(1)
"""

END = """
with open(f"{folder}/outcome-{trainer.args.process_index}.json", "w") as file:
    json.dump(outcome, file)
trainer.end()
"""

# It listens on a free port from the start; accelerate's launcher looks for one first, which others may have taken when
# it is used.
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def alone_and_shared(body: str, tmp_path: Path, *arguments: str) -> tuple[dict, dict, dict]:
    """
    What a training comes to: in one process, and in the first and the second of two.

    Args:
        body (`str`): The program's middle. It finds a `folder` to write to, the `arguments` and the number of
            `processes`, and leaves behind a `trainer` and its `outcome`, a dict that JSON can hold.
        tmp_path (`Path`): Where all is written.
        arguments (`str`): Handed to `body`.
    """
    script = tmp_path / "run.py"
    script.write_text(BEGINNING + body + END)
    outcomes: list[dict] = []
    for processes, launcher in ((1, []), (2, TWO)):
        folder = tmp_path / str(processes)
        folder.mkdir()
        command = [sys.executable, *launcher, str(script), str(folder), *arguments, str(processes)]
        answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert answer.returncode == 0, answer.stderr[-3000:]
        written = [json.loads(file.read_text()) for file in sorted(folder.glob("outcome-*.json"))]
        assert len(written) == processes
        outcomes += written
    alone, first, second = outcomes
    return alone, first, second


def logged(outcome: dict, metrics: list[str]) -> list[dict[str, float]]:
    """These metrics of every step in the outcome's `log`."""
    return [{name: step[name] for name in metrics} for step in outcome["log"]]
