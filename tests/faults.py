"""Break a study in every way that machines do: ``python tests/faults.py``.

Every case disturbs one stage of a small study and runs it again. It ends right if the
second run gives what an undisturbed one gives, byte for byte, or if it refuses with an
error that names the file, and gives the same after what the error asks for. The table
of cases is printed; ``--page`` writes it as a page, ``--output`` as TSV. Disks are
filled by root only.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from fault_stages import (
    CONTEXT,
    PORTAL,
    STAGES,
    STUDY_STAGES,
    Place,
    Worker,
    write_world,
)
from local_server import LocalServer
from portal_world import PortalWorld

N_MOMENTS = 2  # random ones at which a stage is killed, and as many renames of files
N_KINDS = 5  # of artifacts of a stage that are damaged, at most
REFUSALS = ("ValueError", "FileNotFoundError", "RuntimeError", "OSError")
REFUSALS += ("ConnectionError",)
_WHO = re.compile(r"process \d+ on \S+")
_FULL = ("No space left", "bytes left", "more bytes are needed")
_TIMES = re.compile(rb'\d{4}-\d\d-\d\dT[0-9:.+Z-]+|"modified_ns": \d+')
# A registration keeps what it supersedes and which results were there before it, so a
# plan of another seed leaves a trace.
_HISTORY = re.compile(rb'"(superseded|results_before)": \[.*?\]', re.DOTALL)
_SHOWN = 240  # letters of an error on the page
_LISTS = (".bed", ".gmt")  # half of a list is a list: nothing can tell


def contents(run: Path) -> dict[str, str]:
    """Return digests of the artifacts of a run by name, times of the day left out."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and not path.name.endswith(".recipe.json"):
            content = path.read_bytes()
            if path.suffix in (".json", ".yml"):
                content = _HISTORY.sub(b"", _TIMES.sub(b"", content))
            found[str(name)] = hashlib.sha256(content).hexdigest()
    return found


def refuses(problem: str) -> bool:
    """Return whether an error is one that is documented."""
    return problem.startswith(REFUSALS)


def kind_of(name: str) -> str:
    """Return what kind of artifact a file is."""
    path = Path(name)
    if "/c/" in name:
        return "zarr chunk"
    if path.name == "zarr.json":
        return "zarr metadata"
    return f"*{''.join(path.suffixes[-2:])}" if "." in path.name else path.name


class Server:
    """A local portal in a process of its own, always at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = None

    def start(self, *, vanish_at: int | None = None, **behavior: object) -> None:
        """Serve, for good or until a number of requests."""
        self.stop()
        ready = CONTEXT.Event()
        self._process = CONTEXT.Process(
            target=self._serve, args=(ready, vanish_at, behavior), daemon=True
        )
        self._process.start()
        ready.wait(60)

    def stop(self) -> None:
        """Be gone."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _serve(self, ready, vanish_at: int | None, behavior: dict) -> None:
        def watch() -> None:
            while len(server.requests) < vanish_at:
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGKILL)

        with LocalServer(self.folder, port=self.port, **behavior) as server:
            ready.set()
            if vanish_at is not None:
                threading.Thread(target=watch, daemon=True).start()
            signal.pause()


class Faults:
    """The cases; every method disturbs a stage and returns what came of it.

    Parameters
    ----------
    folder : Path
        Where everything is done.
    stages : sequence of str
        Stages to disturb, in their order; all by default.
    seed : int
        Seed of moments, places and files.
    """

    def __init__(
        self, folder: Path, stages: Sequence[str] = tuple(STAGES), seed: int = 0
    ) -> None:
        self.folder, self.stages = folder, tuple(stages)
        self.world, self.run = folder / "world", folder / "runs" / "run"
        self.server = Server(folder / "served")
        self.rng = np.random.default_rng(seed)
        self.seconds: dict[str, float] = {}
        self.n_renames: dict[str, int] = {}
        self.expected: dict[tuple[str, int], dict[str, str]] = {}
        self.produced: dict[tuple[str, int], list[str]] = {}

    # --- Undisturbed ---

    def prepare(self) -> None:
        """Run the stages undisturbed, with two seeds; keep what each begins with."""
        _in_a_process(self._write_inputs)
        self.server.start()
        for seed in (1, 0):
            shutil.rmtree(self.run, ignore_errors=True)
            self.run.mkdir(parents=True)
            before: dict[str, str] = {}
            for stage in self.stages:
                if seed == 0:
                    shutil.copytree(self.run, self._state(stage))
                began = time.monotonic()
                worker = Worker(stage, Place(self.run, self.world, seed))
                if problem := worker.finish():
                    raise RuntimeError(f"undisturbed {stage} failed: {problem}")
                self.seconds[stage] = time.monotonic() - began
                self.n_renames[stage] = worker.n_renames
                found = self.expected[stage, seed] = contents(self.run)
                self.produced[stage, seed] = [n for n in found if n not in before]
                before = found
        shutil.copytree(self.run, self._state(None))

    def _write_inputs(self) -> None:
        write_world(self.world)
        self.server.folder.mkdir()
        portal = PortalWorld(self.server.folder, self.world, self.server.url)
        portal.tissue(self.world / PORTAL, "blood")

    def _state(self, stage: str | None) -> Path:
        """Return where a copy of the run lies as it is before a stage, or at last."""
        return self.folder / f"before {stage}" if stage else self.folder / "finished"

    def _restore(self, stage: str | None) -> Place:
        """Make the run what it is before a stage."""
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self._state(stage), self.run)
        (self.run / ".in-use.json").unlink(missing_ok=True)
        return Place(self.run, self.world)

    def again(self, stage: str, seed: int = 0) -> str:
        """Run a stage undisturbed and compare what it made."""
        problem = Worker(stage, Place(self.run, self.world, seed)).finish()
        if problem:
            return f"WRONG: {problem}"
        found, expected = contents(self.run), self.expected[stage, seed]
        # Of another seed, only what the stage needs is made anew.
        names = set(expected) | set(found) if seed == 0 else self.produced[stage, seed]
        wrong = sorted(n for n in names if found.get(n) != expected.get(n))
        return f"WRONG: {wrong}" if wrong else "same"

    def tidy(self, outcome: str) -> str:
        """Return an outcome without what differs from one machine to the next."""
        outcome = " ".join(outcome.split()).replace(str(self.run), "RUN")
        outcome = outcome.replace(str(self.folder), "FOLDER")
        outcome = outcome.replace(str(self.server.port), "PORT")
        return _WHO.sub("process N on HOST", outcome)

    # --- Cases ---

    def cases(self) -> Iterator[tuple[str, str, str, Callable[[], str]]]:
        """Yield fault, stage, detail, and what to do."""
        for stage in self.stages:
            for moment in self.rng.uniform(0.05, 0.95, N_MOMENTS):
                at = f"at {moment:.0%} of its time"
                yield "killed", stage, at, lambda s=stage, m=moment: self.kill(s, m)
            n = self.n_renames[stage]
            for rename in self.rng.choice(n, min(N_MOMENTS, n), replace=False):
                at = f"at rename {rename} of {n}"
                case = lambda s=stage, r=rename: self.kill_at_rename(s, int(r))  # noqa: E731
                yield "killed", stage, at, case
            share = self.rng.uniform(0.2, 0.8)
            if os.geteuid() == 0:
                at = f"with {share:.0%} of what it needs"
                case = lambda s=stage, x=share: self.fill_disk(s, x)  # noqa: E731
                yield "disk full", stage, at, case
            yield "two at once", stage, "", lambda s=stage: self.run_two(s)
            if stage in STUDY_STAGES:
                yield (
                    "two that differ",
                    stage,
                    "",
                    lambda s=stage: self.run_different(s),
                )
                yield "another seed", stage, "", lambda s=stage: self.change_seed(s)
            by_kind = pd.Series(self.produced[stage, 0], dtype=str)
            groups = list(by_kind.groupby(by_kind.map(kind_of)))
            self.rng.shuffle(groups)
            for kind, names in sorted(groups[:N_KINDS]):
                name = str(self.rng.choice(names.to_numpy()))
                for fault, how in (("byte changed", self.flip), ("cut", self.cut)):
                    case = lambda s=stage, n=name, h=how: self.damage(s, n, h)  # noqa: E731
                    yield fault, stage, kind, case
        for stage in ("pre-training", "dictionaries"):
            if stage in self.stages:
                case = lambda s=stage: self.damage_checkpoint(s)  # noqa: E731
                yield "byte changed", stage, "checkpoint of a training", case
        if "downloads" in self.stages:
            for detail, case in self.network_cases():
                yield "network", "downloads", detail, case
        if "annotation" in self.stages:
            yield from self.input_cases()

    def kill(self, stage: str, moment: float) -> str:
        """Kill the process in the middle of its work."""
        worker = Worker(stage, self._restore(stage))
        worker.kill(moment * self.seconds[stage])
        return self.again(stage)

    def kill_at_rename(self, stage: str, number: int) -> str:
        """Kill the process when it renames a file."""
        worker = Worker(stage, self._restore(stage), die_at=number)
        problem = worker.finish()
        # How often a training is saved depends on the time: it may have ended before.
        known = problem in ("died silently", "")
        return self.again(stage) if known else f"WRONG: {problem}"

    def fill_disk(self, stage: str, share: float) -> str:
        """Leave the disk a part of what the stage needs, then more."""
        before, after = self._state(stage), self._state(None)
        size = _size(path for path in before.rglob("*") if path.is_file())
        needed = _size(after / name for name in self.produced[stage, 0])
        shutil.rmtree(self.run, ignore_errors=True)
        with small_disk(self.run.parent, size + int(share * needed)) as grow:
            problem = Worker(stage, self._restore(stage)).finish()
            if problem and not any(words in problem for words in _FULL):
                return f"WRONG: {problem}"
            if not problem and (1 - share) * needed > 2**18:
                return "WRONG: nothing noticed"
            grow()
            return self.again(stage)

    def run_two(self, stage: str) -> str:
        """Start the same stage twice in one folder."""
        place = self._restore(stage)
        problems = [w.finish() for w in [Worker(stage, place) for _ in range(2)]]
        return f"WRONG: {problems}" if any(problems) else self.again(stage)

    def run_different(self, stage: str) -> str:
        """Start a stage with another seed while one is at work."""
        place = self._restore(stage)
        first = Worker(stage, place)
        while not _is_shared(self.run / ".in-use.json"):
            time.sleep(0.001)
        first.pause()
        problem = Worker(stage, place._replace(seed=1)).finish()
        first.resume()
        if "in use by process" not in problem:
            return f"WRONG: the second said {problem!r}"
        if said := first.finish():
            return f"WRONG: the first said {said!r}"
        outcome = self.again(stage)
        return f"refused: {problem}" if outcome == "same" else outcome

    def change_seed(self, stage: str) -> str:
        """Kill a stage half-way and run the study with another seed."""
        worker = Worker(stage, self._restore(stage))
        worker.kill(0.5 * self.seconds[stage])
        return self.again(stage, seed=1)

    def flip(self, content: bytes) -> bytes:
        """Change a bit."""
        changed = bytearray(content)
        changed[self.rng.integers(len(content))] ^= 1 << int(self.rng.integers(8))
        return bytes(changed)

    def cut(self, content: bytes) -> bytes:
        """Cut off the end."""
        return content[: self.rng.integers(len(content))]

    def damage(self, stage: str, name: str, how: Callable[[bytes], bytes]) -> str:
        """Damage an artifact of a stage; run the stage again, and those after it."""
        following = self.stages[self.stages.index(stage) + 1 :]
        place = self._restore(following[0] if following else None)
        path = self.run / name
        path.write_bytes(how(path.read_bytes()))
        for later in (stage, *following):
            if problem := Worker(later, place).finish():
                return self._cured(later, name, problem)
            if contents(self.run) == self.expected[later, 0]:
                return "same"
        found, last = contents(self.run), self.expected[self.stages[-1], 0]
        differ = [n for n in last if found.get(n) != last[n]]
        # What came of it is there and whole.
        return "not read again" if differ == [name] else f"WRONG: {differ}"

    def _cured(self, stage: str, name: str, problem: str) -> str:
        """Check that an error names what to remove, and that removing it helps."""
        named = [self.run / name, *(self.run / name).parents]
        named = [p for p in named if p.is_relative_to(self.run) and p != self.run]
        named = [path for path in named if str(path) in problem]
        if not refuses(problem) or not named or "remove" not in problem:
            return f"WRONG: {problem}"
        for path in named[-1:]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        outcome = self.again(stage)
        return f"refused: {problem}" if outcome == "same" else outcome

    def damage_checkpoint(self, stage: str) -> str:
        """Damage the checkpoint of a training that was killed."""
        for number in range(1, self.n_renames[stage], 2):
            place = self._restore(stage)
            Worker(stage, place, die_at=number).finish()
            if found := list(self.run.rglob("training.pt")):
                break
        else:
            return "WRONG: no checkpoint"
        found[0].write_bytes(self.flip(found[0].read_bytes()))
        problem = Worker(stage, place).finish()
        return self._cured(stage, str(found[0].relative_to(self.run)), problem)

    # --- Network ---

    def network_cases(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Yield what the server does, and the case."""
        served = self.server.folder
        alignments, other = sorted(served.rglob("*.bam"))
        genome = served / "genome" / "hg38.fa.gz"
        for path in (alignments, other, genome):
            name = str(path.relative_to(served))
            n = int(self.rng.integers(1, path.stat().st_size))
            for how, behavior in (
                ("cuts the connection", {"cut_after": {name: n}}),
                ("falls silent", {"cut_after": {name: n}, "stall_s": 3.0}),
            ):
                detail = f"{how} after {n} bytes of {path.name}"
                yield detail, lambda b=behavior: self.misbehave(b)
        for n in (1, 3):
            behavior = {"unavailable": n}
            yield f"answers {n} times with 503", lambda b=behavior: self.misbehave(b)
        for n in self.rng.integers(1, 8, 2):
            detail = f"vanishes at request {n}, returns"
            behavior = {"vanish_at": int(n)}
            yield detail, lambda b=behavior: self.misbehave(b, self.server.url)
        yield "is not there, comes", lambda: self.misbehave(None, self.server.url)
        for path in (alignments, genome):
            name = str(path.relative_to(served))
            detail = f"sends another {path.name}, then the right one"
            behavior = {"corrupt": [name]}
            yield detail, lambda b=behavior, n=name: self.misbehave(b, n)
        name = str(alignments.relative_to(served))
        yield "vanishes; what came is damaged", lambda: self.damage_part(name)

    def misbehave(self, behavior: dict | None, named: str = "") -> str:
        """Run against a bad server, and if that is refused by name, a good one."""
        place = self._restore("downloads")
        self.server.stop()
        if behavior is not None:
            self.server.start(**behavior)
        problem = Worker("downloads", place).finish()
        self.server.start()
        if bool(problem) != bool(named) or not (refuses(problem) or not problem):
            return f"WRONG: {problem or 'nothing noticed'}"
        if named not in problem:
            return f"WRONG: {named} is not named: {problem}"
        outcome = self.again("downloads")
        return f"refused: {problem}" if problem and outcome == "same" else outcome

    def damage_part(self, name: str) -> str:
        """Damage what a vanished server has sent."""
        place = self._restore("downloads")
        content = (self.server.folder / name).read_bytes()
        folder = self.run / "data" / "public" / "downloads"
        folder.mkdir(parents=True)
        part = folder / f"{Path(name).name}.part"
        part.write_bytes(self.flip(content[: len(content) // 2]))
        state = {"url": f"{self.server.url}/{name}", "size": len(content)}
        part.with_name(f"{part.name}.json").write_text(
            json.dumps(state | {"validator": ""})
        )
        self.server.start()
        problem = Worker("downloads", place).finish()
        if name not in problem or not refuses(problem):
            return f"WRONG: {problem}"
        outcome = self.again("downloads")
        return f"refused: {problem}" if outcome == "same" else outcome

    # --- Inputs ---

    def input_cases(self) -> Iterator[tuple[str, str, str, Callable[[], str]]]:
        """Yield a case for every kind of input file."""
        kinds: dict[str, Path] = {}
        for path in sorted(self.world.rglob("*")):
            inside = path.relative_to(self.world)
            if path.is_file() and inside.parts[0] not in (
                "truth",
                PORTAL,
                "world.json",
            ):
                kinds.setdefault(
                    re.sub("^(blood|liver)(_in_[a-z]+)?(_r[0-9]+)?", "*", path.name),
                    inside,
                )
        for kind, inside in kinds.items():
            case = lambda p=inside: self.cut_input(p)  # noqa: E731
            yield "input cut", "annotation", kind, case

    def cut_input(self, inside: Path) -> str:
        """Cut an input file and open the study again."""
        place = self._restore("annotation")
        world = self.folder / "cut"
        shutil.rmtree(world, ignore_errors=True)
        shutil.copytree(self.world, world)
        path = world / inside
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        problem = Worker("annotation", place._replace(world=world)).finish()
        if not problem and inside.suffix in _LISTS:
            return "shorter list"
        named = str(path) in problem or f"{inside.stem.split('.')[0]}" in problem
        right = refuses(problem) and named
        return f"refused: {problem}" if right else f"WRONG: {problem or 'unnoticed'}"


def _in_a_process(work: Callable[[], None]) -> None:
    """Do something in another process: libraries start threads, which forks lose."""
    process = CONTEXT.Process(target=work)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{work} failed")


def _is_shared(path: Path) -> bool:
    """Return whether a process has claimed a run, and is done with claiming it."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return file.read().endswith(b"}")


def _size(files: Iterable[Path]) -> int:
    """Return what files take on a disk of pages."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(-(-path.stat().st_size // page) * page for path in files)


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[Callable[[], object]]:
    """Mount a disk of some bytes, needs root; yield what makes it larger."""
    folder.mkdir(exist_ok=True)
    size = n_bytes + 2**16  # for folders
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True
    )
    larger = ["mount", "-o", "remount,size=1G", folder]
    try:
        yield lambda: subprocess.run(larger, check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


# --- Report ---


def crossed(table: pd.DataFrame) -> pd.DataFrame:
    """Return stages by faults: how many cases ended how."""

    def cell(outcomes: pd.Series) -> str:
        counts = Counter(outcome.partition(":")[0] for outcome in outcomes)
        return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))

    cells = table.groupby(["stage", "fault"], sort=False)["outcome"].agg(cell)
    stages = [stage for stage in STAGES if stage in set(table["stage"])]
    return (
        cells.reset_index()
        .pivot_table(
            index="stage",
            columns="fault",
            values="outcome",
            aggfunc="first",
            sort=False,
        )
        .fillna("")
        .reindex(stages)
    )


def page(table: pd.DataFrame, made_by: str) -> str:
    """Return the table of cases as a page, and say how it was made."""
    n_wrong = int(table["outcome"].str.startswith("WRONG").sum())
    refused = table[table["outcome"].str.startswith("refused")]
    said = refused["outcome"].str.partition(": ")[2].map(_code)
    rows = zip(refused["stage"], refused["fault"], refused["detail"], said, strict=True)
    words = table["outcome"].str.partition(":")[0].value_counts()
    counts = ", ".join(f"{n} {kind}" for kind, n in words.items())
    lines = [
        "# What happens when things break",
        "",
        "Every stage of a small simulated study was disturbed and run again.",
        f"{len(table)} cases, {len(table) - n_wrong} ended right: {counts}.",
        "",
        "- *same*: the second run gives what an undisturbed run gives, byte for byte.",
        "- *refused*: an error names the file; after what it asks for, the same.",
        "- *not read again*: what was made of the file is there and whole.",
        "- *shorter list*: half of a list is a list; nothing can tell.",
        "",
        markdown(crossed(table).reset_index()),
        "",
        "## What refusals say",
        "",
        markdown(pd.DataFrame(rows, columns=["stage", "fault", "where", "error"])),
        "",
        f"Made by {made_by} on {datetime.now(UTC):%d %B %Y}, Python "
        f"{platform.python_version()}, {platform.system()}.",
        "",
    ]
    return "\n".join(lines)


def _code(text: str) -> str:
    """Return text as it stands, in a cell of a table."""
    short = text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
    return f"`{short.replace('`', chr(39)).replace('|', '/')}`"


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def main() -> None:
    """Run the cases, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", nargs="*", help="which; all by default")
    parser.add_argument("--stages", nargs="*", default=list(STAGES), help="which")
    parser.add_argument("--seed", type=int, default=0, help="of moments and places")
    parser.add_argument("--output", type=Path, help="write the cases as TSV")
    parser.add_argument("--page", type=Path, help="write a page in Markdown")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults") as folder:
        faults = Faults(Path(folder), arguments.stages, arguments.seed)
        try:
            faults.prepare()
            for fault, stage, detail, case in faults.cases():
                if arguments.faults and fault not in arguments.faults:
                    continue
                outcome = faults.tidy(case())
                row = {"stage": stage, "fault": fault, "detail": detail}
                rows.append(row | {"outcome": outcome})
                print(f"{stage:28}{fault:16}{detail:40}{outcome[:200]}", flush=True)
        finally:
            faults.server.stop()
    table = pd.DataFrame(rows)
    n_wrong = int(table["outcome"].str.startswith("WRONG").sum())
    print(crossed(table).to_string())
    print(f"{len(table)} cases, {n_wrong} end wrong")
    if arguments.output:
        table.to_csv(arguments.output, sep="\t", index=False)
    if arguments.page:
        made_by = f"`python tests/faults.py --seed {arguments.seed} --page FILE`"
        arguments.page.write_text(page(table, made_by), encoding="utf-8")
    sys.exit(n_wrong > 0)


if __name__ == "__main__":
    main()
