"""Break a study in every way that machines do: ``python tests/faults.py``.

Every case disturbs one stage of a small study and runs it again. It ends right if the
second run gives what an undisturbed one gives, byte for byte, or refuses with an error
that names the reason. The table of cases is printed, and written with ``--output``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(map(str, sys.path)),
}
MOMENTS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the time a stage takes undisturbed
REFUSALS = ("ValueError", "FileNotFoundError", "RuntimeError", "OSError")
_TIMEOUT_S = 600
_TIMED = "causal_registration.json"  # says when it was written


def _stages() -> dict[str, Callable]:
    from helpers import annotation, causal, stages

    def ablation(study: stages.Study) -> None:
        causal.register(study)
        causal.ablation(study)
        causal.ablation_random(study)

    return {
        "residual streams": stages.extract,
        "dictionaries": stages.train_saes,
        "summaries": stages.summaries,
        "score": stages.score_context,
        "ablation": ablation,
        "annotation": annotation.annotate,
    }


STAGES = (
    "residual streams",
    "dictionaries",
    "summaries",
    "score",
    "ablation",
    "annotation",
)


def work(stage: str, run: Path, world: Path, seed: int) -> None:
    """Run one stage; what a child process does."""
    from helpers import stages

    study = stages.open_study(
        run, data=str(world / "tissues"), model=str(world / "model"), seed=seed
    )
    print("begun", flush=True)
    _stages()[stage](study)


def write_world(folder: Path) -> None:
    """Write a small simulated world, and a model that fits it."""
    from helpers import simulate
    from helpers.epibert import EpiBERT, EpiBERTConfig
    from helpers.tissues import read_tissues
    from helpers.windows import WindowDataset

    world = simulate.World(
        n_chromosomes=20, windows_per_chromosome=4, window_bp=4096, seed=7
    )
    simulate.write_world(folder, world, lineages=["blood", "liver"])
    dataset = WindowDataset(read_tissues(folder / "tissues"), window_bp=4096)
    config = EpiBERTConfig(
        input_length=4096,
        n_heads=2,
        n_blocks=2,
        sequence_filters=(16,) * 6,
        n_motifs=dataset.motif_activity.shape[1],
        n_random_features=32,
    )
    EpiBERT(config, random_state=3).save_pretrained(folder / "model")


def start(stage: str, run: Path, world: Path, seed: int = 0) -> subprocess.Popen:
    """Start a stage in a process of its own and wait until it is at work."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--work", stage, str(run), str(world), str(seed)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    return process


def finish(process: subprocess.Popen) -> str:
    """Wait for a stage; return its last words if it failed, or nothing."""
    _, said = process.communicate(timeout=_TIMEOUT_S)
    lines = [line for line in said.splitlines() if line.strip()]
    return "" if process.returncode == 0 else (lines or ["died silently"])[-1]


def refuses(problem: str) -> bool:
    """Return whether an error is one that is documented."""
    return problem.startswith(REFUSALS)


def contents(run: Path) -> dict[str, str]:
    """Return digests of the artefacts of a run, by name."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run)
        hidden = any(part.startswith(".") for part in name.parts)
        kept = path.name == _TIMED or path.name.endswith(".recipe.json")
        if path.is_file() and not hidden and not kept:
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Faults:
    """The cases; every method disturbs a stage and returns what came of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world = folder / "world"
        self.seconds: dict[str, float] = {}
        self.before: dict[str, Path] = {}  # a run as it is when a stage begins
        self.expected: dict[tuple[str, int], dict[str, str]] = {}
        self.rows: list[dict[str, str]] = []

    def prepare(self) -> None:
        """Run all stages undisturbed, with two seeds; keep what each begins with."""
        write_world(self.world)
        for seed in (0, 1):
            run = self.folder / f"undisturbed{seed}"
            for stage in STAGES:
                if seed == 0:
                    self.before[stage] = self.folder / f"before {stage}"
                    run.mkdir(exist_ok=True)
                    shutil.copytree(run, self.before[stage])
                process = start(stage, run, self.world, seed)
                began = time.monotonic()
                if problem := finish(process):
                    raise RuntimeError(f"undisturbed {stage} failed: {problem}")
                self.seconds[stage] = time.monotonic() - began
                self.expected[stage, seed] = contents(run)

    def cases(self) -> Iterator[tuple[str, str, Callable[[], str]]]:
        """Yield fault, stage and what to do."""
        for stage in STAGES:
            for moment in MOMENTS:
                yield "killed", stage, lambda s=stage, m=moment: self.kill(s, m)
            yield "disk full", stage, lambda s=stage: self.fill_disk(s)
            yield "two at once", stage, lambda s=stage: self.run_two(s)
            yield "two that differ", stage, lambda s=stage: self.run_different(s)
            yield "another seed", stage, lambda s=stage: self.change_seed(s)
        for name in self.expected[STAGES[-1], 0]:
            if (self.folder / "undisturbed0" / name).stat().st_size:
                yield "byte changed", name, lambda n=name: self.damage(n)
        for path in sorted(self.world.rglob("*")):
            inside = path.relative_to(self.world)
            if path.is_file() and inside.parts[0] not in ("truth", "world.json"):
                yield "input cut", str(inside), lambda p=inside: self.cut_input(p)

    def again(self, stage: str, run: Path, seed: int = 0) -> str:
        """Run a stage undisturbed and compare."""
        if problem := finish(start(stage, run, self.world, seed)):
            return f"{'refused' if refuses(problem) else 'WRONG'}: {problem}"
        found, expected = contents(run), self.expected[stage, seed]
        wrong = [n for n in expected | found if expected.get(n) != found.get(n)]
        return f"WRONG: {wrong}" if wrong else "same result"

    def kill(self, stage: str, moment: float) -> str:
        """Kill the process in the middle of its work."""
        run = self._copy(stage)
        process = start(stage, run, self.world)
        time.sleep(moment * self.seconds[stage])
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return self.again(stage, run)

    def fill_disk(self, stage: str) -> str:
        """Leave the disk half of what the stage needs, then more."""
        before = self.before[stage]
        size = _size(path for path in before.rglob("*") if path.is_file())
        after = self.folder / "undisturbed0"
        needed = _size(after / name for name in self.expected[stage, 0])
        with small_disk(self.folder / "disk", (size + needed) // 2) as disk:
            run = disk / "runs" / "run"
            shutil.copytree(before, run)
            problem = finish(start(stage, run, self.world))
            said = "No space left" in problem or "bytes left" in problem
            if problem and not said:
                return f"WRONG: {problem}"
            if not problem and needed - size > 2**16:
                return "WRONG: nothing noticed"
            subprocess.run(["mount", "-o", "remount,size=1G", disk], check=True)
            return self.again(stage, run)

    def run_two(self, stage: str) -> str:
        """Start the same stage twice in one folder."""
        run = self._copy(stage)
        pair = [start(stage, run, self.world) for _ in range(2)]
        problems = [finish(process) for process in pair]
        if any(problems):
            return f"WRONG: {problems}"
        return self.again(stage, run)

    def run_different(self, stage: str) -> str:
        """Start a stage with another seed while one is at work."""
        run = self._copy(stage)
        first = start(stage, run, self.world, seed=0)
        first.send_signal(signal.SIGSTOP)
        problem = finish(start(stage, run, self.world, seed=1))
        first.send_signal(signal.SIGCONT)
        if "in use by process" not in problem:
            return f"WRONG: the second said {problem!r}"
        if said := finish(first):
            return f"WRONG: the first said {said!r}"
        return self.again(stage, run)

    def change_seed(self, stage: str) -> str:
        """Kill a stage half-way and run the study with another seed."""
        run = self._copy(stage)
        process = start(stage, run, self.world)
        time.sleep(0.5 * self.seconds[stage])
        process.kill()
        process.communicate()
        return self.again(stage, run, seed=1)

    def damage(self, name: str) -> str:
        """Change a byte in the middle of an artefact, and run the last stage."""
        run = self._copy(None)
        path = run / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        for stage in STAGES:
            if problem := finish(start(stage, run, self.world)):
                top = Path(name).parts[0]
                named = top in problem or Path(name).name in problem
                named &= refuses(problem)
                return f"refused: {problem}" if named else f"WRONG: {problem}"
        outcome = self.again(STAGES[-1], run)
        # Chunks that nothing reads again, since what came of them is there.
        return "not read again" if outcome == f"WRONG: {[name]}" else outcome

    def cut_input(self, inside: Path) -> str:
        """Cut an input file in half and open a study of it."""
        world = self.folder / "cut"
        shutil.rmtree(world, ignore_errors=True)
        shutil.copytree(self.world, world)
        path = world / inside
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        run = self.folder / "runs" / "cut"
        shutil.rmtree(run, ignore_errors=True)
        problem = finish(start(STAGES[0], run, world))
        if not problem and inside.suffix in (".bed", ".gmt"):
            return "same result"  # half of a list is a list; nothing can tell
        named = inside.stem.split(".")[0] in problem or inside.name in problem
        named &= refuses(problem)
        return f"refused: {problem}" if named else f"WRONG: {problem or 'unnoticed'}"

    def _copy(self, stage: str | None) -> Path:
        """Return a fresh copy of the run as it is before a stage; of all of it."""
        run = self.folder / "runs" / "run"
        shutil.rmtree(run, ignore_errors=True)
        source = self.before[stage] if stage else self.folder / "undisturbed0"
        shutil.copytree(source, run)
        return run


def _size(files: Iterable[Path]) -> int:
    """Return what files take on a disk of pages."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(-(-path.stat().st_size // page) * page for path in files)


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[Path]:
    """Mount a disk of some bytes; needs root."""
    folder.mkdir(exist_ok=True)
    size = n_bytes + 2**16  # for folders
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
    subprocess.run(["mount", *options, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def main() -> None:
    """Run all cases, or those of some faults, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--faults", nargs="*", help="which; all by default")
    parser.add_argument("--output", type=Path, help="write the table as TSV")
    arguments = parser.parse_args()
    if arguments.work:
        stage, run, world, seed = arguments.work
        return work(stage, Path(run), Path(world), int(seed))
    with tempfile.TemporaryDirectory(prefix="faults") as folder:
        faults = Faults(Path(folder))
        faults.prepare()
        print(json.dumps({k: round(v, 1) for k, v in faults.seconds.items()}))
        rows = []
        for fault, place, case in faults.cases():
            if arguments.faults and fault not in arguments.faults:
                continue
            if fault == "disk full" and os.geteuid() != 0:
                continue
            outcome = case().replace(folder, "...")
            rows.append({"fault": fault, "place": place, "outcome": outcome})
            print(f"{fault:16}{place:36}{outcome[:110]}", flush=True)
    table = pd.DataFrame(rows)
    kinds = table["outcome"].str.split(":").str[0]
    print(pd.crosstab(table["fault"], kinds).to_string())
    print(f"{len(table)} cases, {np.sum(kinds == 'WRONG')} end wrong")
    if arguments.output:
        table.to_csv(arguments.output, sep="\t", index=False)
    sys.exit(bool(np.sum(kinds == "WRONG")))


if __name__ == "__main__":
    main()
