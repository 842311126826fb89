"""Measure what the workflow costs beyond the computing of its notebooks.

Runs one tissue and one block from nothing, twice: the code of the notebooks page after
page in one process that has imported everything, and the same pages as jobs of
`workflow/Snakefile`, one at a time, one thread each. Prints wall and processor time of
both and where the difference lies. Other work on the machine blurs wall time; processor
time much less.

    python benchmarks/orchestration.py --tissue kidney --block 3
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = {  # by rule, in their order
    "extraction": "01_extraction",
    "dictionary": "02_sae",
    "score": "03_cds",
    "causal": "04_causal",
    "annotation": "05_annotation",
    "results": "results",
}
GOAL = 10.0  # % of the computing, for jobs of a minute or more
MINUTE = 60.0
MODULES = ("annotation", "causal", "claims", "dictionaries", "figures")


def make_project(folder: Path) -> Path:
    """Copy what the workflow needs; the simulated world is shared, not made again."""
    shutil.copytree(ROOT / "workflow", folder / "workflow")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    (folder / "_build" / "runs").mkdir(parents=True)
    data = ROOT / "_build" / "data"
    data.mkdir(parents=True, exist_ok=True)
    (folder / "_build" / "data").symlink_to(data)
    return folder


def write_scripts(
    folder: Path, pages: list[str], tissue: str, block: int
) -> list[Path]:
    """Write the notebooks as scripts with the parameters that the workflow sets."""
    streams = f"_build/runs/{tissue}"
    own = f"{streams}/seed0/block{block}"
    file = ROOT / "notebooks" / "tissues" / f"{tissue}.yml"
    given = yaml.safe_load(file.read_text(encoding="utf-8"))
    paths = []
    for page in pages:
        notebook = jupytext.read(folder / "notebooks" / f"{page}.ipynb")
        run = streams if page == pages[0] else own
        values = given | {"run": run, "streams": streams, "blocks": [block], "seed": 0}
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                lines = [f"{name} = {value!r}" for name, value in values.items()]
                cell.source = "\n".join([cell.source, *lines])
        paths.append(folder / f"{page}.py")
        jupytext.write(notebook, paths[-1], fmt="py:percent")
    return paths


def run_inside(paths: list[str]) -> None:
    """Run scripts in this process and print wall and processor seconds of each."""
    os.environ["MPLBACKEND"] = "Agg"  # there is nobody to show figures to
    start = time.perf_counter(), time.process_time()
    for module in MODULES:
        importlib.import_module(f"helpers.{module}")
    spent = {
        "imports": [time.perf_counter() - start[0], time.process_time() - start[1]]
    }
    for path in paths:
        start = time.perf_counter(), time.process_time()
        with open(os.devnull, "w") as nowhere:
            sys.stdout, kept = nowhere, sys.stdout
            runpy.run_path(path, run_name="__main__")
            sys.stdout = kept
        now = time.perf_counter(), time.process_time()
        spent[Path(path).stem] = [now[0] - start[0], now[1] - start[1]]
    print(json.dumps(spent))


def timed(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Run a command and return wall and processor seconds, and what it printed."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {
        "PATH": programs,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, done.stdout


def cells_seconds(path: Path) -> float:
    """Return the time an executed notebook spent in its cells."""
    cells = nbformat.read(path, as_version=4).cells
    return sum(
        cell.metadata.get("papermill", {}).get("duration") or 0 for cell in cells
    )


def print_fixed_costs(scratch: Path) -> None:
    """Print what a job costs before its first line of work."""
    imports = "\n".join(f"import helpers.{module}" for module in MODULES)
    for label, source in (("papermill and kernel", ""), ("and imports", imports)):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, scratch / "costs.ipynb")
        command = ["papermill", "-k", "python3", "--no-progress-bar"]
        wall, cpu, _ = timed([*command, "costs.ipynb", "done.ipynb"], scratch)
        print(f"a job, {label:<22}{wall:7.1f} s wall, {cpu:.1f} s cpu", flush=True)


def measure(scratch: Path, tissue: str, block: int, until: str) -> None:
    """Run both ways and print the comparison."""
    rules = list(PAGES)[: list(PAGES).index(until) + 1]
    pages = [PAGES[rule] for rule in rules]
    plain = make_project(scratch / "plain")
    scripts = [str(path) for path in write_scripts(plain, pages, tissue, block)]
    _, _, told = timed([sys.executable, __file__, "--inside", *scripts], plain)
    inside = json.loads(told.splitlines()[-1])
    imports = inside.pop("imports")
    compute = [sum(times) for times in zip(*inside.values(), strict=True)]

    project = make_project(scratch / "workflow-project")
    settings = [f"tissues=[{tissue}]", f"blocks=[{block}]", "seeds=[0]", "threads=1"]
    command = ["snakemake", "--snakefile", "workflow/Snakefile", "--cores", "1"]
    command += ["--until", until]
    wall, cpu, _ = timed([*command, "--config", *settings], project)
    jobs, cells = {}, {}
    for page in pages:
        (table,) = project.glob(f"_build/workflow/logs/{tissue}/**/{page}.tsv")
        jobs[page] = float(pd.read_csv(table, sep="\t")["s"].iloc[0])
        cells[page] = cells_seconds(table.with_suffix(".ipynb"))

    print(f"{'page':<16}{'one process':>13}{'job':>9}{'in cells':>10}   wall s")
    for page in pages:
        print(f"{page:<16}{inside[page][0]:13.1f}{jobs[page]:9.1f}{cells[page]:10.1f}")
    in_jobs, in_cells = sum(jobs.values()), sum(cells.values())
    print(f"\ncomputing, one process: {compute[0]:.1f} s wall, {compute[1]:.1f} s cpu")
    print(f"workflow:               {wall:.1f} s wall, {cpu:.1f} s cpu")
    print("of the difference, wall:")
    print(f"  Snakemake itself            {wall - in_jobs:7.1f} s")
    print(f"  papermill, start of kernels {in_jobs - in_cells:7.1f} s")
    print(
        f"  cells beyond one process    {in_cells - compute[0]:7.1f} s (imports, "
        f"{imports[0]:.1f} s a page; figures; opening the run again)"
    )
    for name, value, own in zip(("wall", "cpu"), (wall, cpu), compute, strict=True):
        print(f"overhead, {name}: {100 * (value - own) / own:.1f}% (goal {GOAL:.0f}%)")
    short = [page for page, seconds in jobs.items() if seconds < MINUTE]
    if short:
        print(f"jobs shorter than a minute, for which there is no goal: {short}")


def main() -> None:
    """Measure one tissue and block."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tissue", default="kidney", help="file of notebooks/tissues")
    parser.add_argument("--block", type=int, default=3)
    parser.add_argument("--until", choices=PAGES, default="results", metavar="RULE")
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        run_inside(arguments.inside)
        return
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if shutil.which("snakemake", path=programs) is None:
        print("orchestration: not measured, the extra 'workflow' is not installed")
        return
    with tempfile.TemporaryDirectory() as scratch:
        print_fixed_costs(Path(scratch))
        measure(Path(scratch), arguments.tissue, arguments.block, arguments.until)


if __name__ == "__main__":
    main()
