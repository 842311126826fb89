"""Time page 04 from nothing of its own, beside the arithmetic it cannot do without.

What the page makes is removed from a run in which pages 01 to 03 are made, all but the
registration, and the notebook is executed by papermill. The floor is the
arithmetic that `helpers.costs` counts for the causal tests at the rate at which one
core multiplies a stream by a square matrix, on every core at once, measured in the same
run. Normalizations, activations, tables, and the tests against planted factors are not
in it.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
import torch

from helpers import stages
from helpers.costs import plan

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "04_causal.ipynb"
GOAL = 120.0  # seconds
MADE = (
    "ablation*",
    "context_features*",
    "dose_response*",
    "factor_*",
    "forward_selection*",
    "lineage_matrix*",
    "other_sets*",
    "seeds_*",
    "single_features*",
    "steering*",
)
N_PRODUCTS, N_TOKENS = 200, 8192


def main() -> None:
    """Print Markdown tables: the page, and its longest cells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("_build/runs/simulated"))
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    os.chdir(ROOT)  # as `make` does: recipes name files
    if not (arguments.run / "cds.parquet").is_file():
        parser.error(f"{arguments.run} has no cds.parquet: make pages 01 to 03 first")
    cores = len(os.sched_getaffinity(0))
    study = stages.open_study(str(arguments.run), data="simulated")
    flop = operations(study)
    # Other trainings; those of the last block are made by page 02.
    made = [f"dictionaries/block{b}_seed_*" for b in sorted(study.blocks)[:-1]]
    made += MADE
    print(f"{cores} cores; load average {os.getloadavg()[0]:.1f} at the start\n")
    print("| wall, s | goal, s | processor time, s | floor, s | wall over floor |")
    print("| --- | --- | --- | --- | --- |")
    for _ in range(arguments.repeats):
        floor = flop / (cores * product_rate(study.model.config.d_model))
        wall, cpu, cells = execute(arguments.run, made)
        times = f"{wall:.0f} | {GOAL:.0f} | {cpu:.0f} | {floor:.0f}"
        print(f"| {times} | {wall / floor:.1f} |", flush=True)
    print("\n| cell | s |\n| --- | --- |")
    for seconds, source in sorted(cells, reverse=True)[:8]:
        print(f"| `{source}` | {seconds:.1f} |")


def operations(study: stages.Study) -> float:
    """Count the operations of the causal tests of a run."""
    table = plan(
        study.model.config,
        tissues=len(study.lineages),
        windows=len(study.dataset.windows),
        blocks=len(study.blocks),
        stages=["causal"],
    ).table
    return 1e15 * table["pflop"].sum()


def product_rate(d_model: int) -> float:
    """Return the operations a second of one core, tokens times a square matrix."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x, weight = torch.randn(N_TOKENS, d_model), torch.randn(d_model, d_model)
    torch.mm(x, weight)
    start = time.perf_counter()
    for _ in range(N_PRODUCTS):
        torch.mm(x, weight)
    seconds = time.perf_counter() - start
    torch.set_num_threads(n_threads)
    return N_PRODUCTS * 2 * N_TOKENS * d_model**2 / seconds


def execute(
    run: Path, made: Sequence[str]
) -> tuple[float, float, list[tuple[float, str]]]:
    """Execute the page and return wall time, processor time and those of its cells."""
    for path in (path for pattern in made for path in run.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = recipes(run, made)
    with tempfile.TemporaryDirectory() as scratch:
        executed = Path(scratch) / "executed.ipynb"
        command = [sys.executable, "-m", "papermill", "--no-progress-bar"]
        command += ["-k", "python3", "-p", "run", str(run), NOTEBOOK, executed]
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        wall = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"the page failed:\n{done.stderr[-3000:]}")
        notebook = nbformat.read(executed, as_version=4)
    if again := [name for name, at in before.items() if at != recipes(run, made)[name]]:
        raise SystemExit(f"made again, so make pages 01 to 03 first: {again}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    cells = [
        (cell.metadata.papermill.duration, cell.source.splitlines()[0])
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source
    ]
    return wall, cpu, cells


def recipes(run: Path, made: Sequence[str]) -> dict[str, int]:
    """Return when the artifacts of other pages were made."""
    found = {str(p.relative_to(run)): p for p in run.rglob("*.recipe.json")}
    return {
        name: path.stat().st_mtime_ns
        for name, path in found.items()
        if not any(fnmatch.fnmatch(name, pattern) for pattern in made)
    }


if __name__ == "__main__":
    main()
