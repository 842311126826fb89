"""Time the two commands of the README from an empty clone, and what a rerun costs.

Clones the last commit into a temporary folder and runs, one after the other: `make
book` with installation, `make book` with nothing changed, `make book` after a change of
one notebook, and `make test`. Prints wall time and the peak memory of the largest
process.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {  # seconds, from the project's goals
    "make book, empty clone": 720,
    "make book, nothing changed": 60,
    "make test": 300,
}


def timed(label: str, command: list[str], folder: Path) -> None:
    """Run a command in a folder and print how long it took."""
    start = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    seconds = time.monotonic() - start
    if done.returncode:
        tail = done.stdout[-3000:] + done.stderr[-3000:]
        raise SystemExit(f"{label} failed:\n{tail}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    goal = f"(goal {TARGETS[label]} s)" if label in TARGETS else ""
    print(
        f"{label:<40}{seconds:8.1f} s  peak so far {peak:.2f} GiB  {goal}", flush=True
    )


def main() -> None:
    """Run the sequence once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        timed("make book, empty clone", ["make", "book"], clone)
        timed("make book, nothing changed", ["make", "book"], clone)
        notebook = clone / "notebooks" / "04_causal.ipynb"
        text = notebook.read_text(encoding="utf-8")
        notebook.write_text(
            text.replace("# Limits", "# Limits of this page", 1), encoding="utf-8"
        )
        timed("make book, one notebook edited", ["make", "book"], clone)
        timed("make test", ["make", "test"], clone)


if __name__ == "__main__":
    main()
