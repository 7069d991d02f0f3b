# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Walks a fresh clone as a visitor does: every block of the README and of the tutorials, as printed, in a clean shell.

    python tests/fresh_clone.py                      # with the packages that are installed here; 22 CPU minutes
    python tests/fresh_clone.py --install            # `make demo` installs everything anew
    python tests/fresh_clone.py --pages README.md    # one page alone

Blocks of `bash` and `python` run in their order, of a page in one shell. Blocks of `sh` need a checkpoint or a GPU of
the reader's and are not run. The Hub is the small one of `tests/fake_hub.py`. Ends with 1 if a block fails, and names
it.
"""

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/start_pictures.md", "docs/start_texts.md", "docs/start_training.md")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the blocks of a page that run, in their order."""
    return re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def script(page: Path) -> str:
    """A page as a shell script, which says what it does and stops at the first block that fails."""
    lines = ["set -euo pipefail"]
    for number, (language, text) in enumerate(blocks(page), start=1):
        lines.append(f"echo '=== {page.name}, block {number} ({language})'")
        lines += (
            [text.rstrip()] if language == "bash" else ["python - <<'END OF BLOCK'", text.rstrip(), "END OF BLOCK"]
        )
    return "\n".join(lines) + "\n"


def clone(folder: Path, *, install: bool) -> Path:
    """The last commit in a new folder; unless installed there, an environment that sees the packages of this one."""
    place = folder / "alignext"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(place)], check=True)
    if not install:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / ".venv")], check=True)
        python = place / ".venv" / "bin" / "python"
        paths = [path for path in sys.path if path.endswith("site-packages")] or [sysconfig.get_path("purelib")]
        where = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
        ).stdout.strip()
        Path(where, "packages.pth").write_text("\n".join(paths) + "\n")
        words = ["install", "-q", "--no-deps", "--no-build-isolation", "-e", str(place)]
        subprocess.run([python, "-m", "pip", "--disable-pip-version-check", *words], check=True)
        (place / ".venv" / ".installed").touch()
    return place


def walk(place: Path, page: str, home: Path, hub: str) -> int:
    """The exit code of a page's script, in a shell that knows nothing but where to find programs."""
    kept = {
        name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS", "PIP_INDEX_URL") if name in os.environ
    }
    online = {"HF_ENDPOINT": hub, "HF_TOKEN": "hf_visitor", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    text = script(place / page)
    if page != "README.md":
        text = f"source .venv/bin/activate\n{text}"
    return subprocess.run(["bash", "-c", text], cwd=place, env=kept | online | {"HOME": str(home)}).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="install everything anew, as a visitor does")
    parser.add_argument("--pages", nargs="+", default=PAGES, help="(default: all)")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.fake_hub import fake_hub

    with tempfile.TemporaryDirectory() as folder, fake_hub() as hub:
        home = Path(folder, "home")
        home.mkdir()
        place = clone(Path(folder), install=args.install)
        for page in args.pages:
            begun = time.perf_counter()
            code = walk(place, page, home, hub.url)
            print(f"=== {page}: {'failed' if code else 'ran'} in {time.perf_counter() - begun:.0f} s", flush=True)
            if code:
                return 1
        print(f"=== on the Hub: {', '.join(sorted(hub.repos)) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
