"""Damage files at random and read them: ``python tests/fuzz.py --inputs 100000``.

A reader may return, or raise one of the two exceptions that it documents, naming the
file. Anything else is a finding: another exception, a crash of the process, more
memory or time than a small file can need. The tests run a small number of inputs.

A table with a row for each reader is printed, and kept in ``--output``; readers that
are there already are passed over, so that a long run can go on where it stopped.
``--page`` writes the table as a page.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import platform
import resource
import signal
import sys
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from faults import markdown
from fuzz_readers import READERS, Reader

MEMORY = 4 * 2**30  # bytes of address space beyond those in use
SECONDS = 20  # for one input
_TOKENS = [b"-1", b"0", b"nan", b"inf", b"1e309", b"99999999999999999999", b"\t", b"\n"]
_TOKENS += [b"\x00", b"\xff", b" ", b"#", b">", b"{", b"[", b"'", b":", b"\r\n", b"-"]


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Return content with one to four random changes."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(data) + 1))
        length = int(2 ** rng.uniform(0, 6))
        change = rng.integers(7)
        if change == 0 and len(data):  # flip a bit
            data[at % len(data)] ^= 1 << int(rng.integers(8))
        elif change == 1:
            data[at : at + length] = rng.bytes(length)
        elif change == 2:
            del data[at : at + length]
        elif change == 3:
            data[at:at] = _TOKENS[rng.integers(len(_TOKENS))]
        elif change == 4:  # repeat or move a piece
            source = int(rng.integers(len(data) + 1))
            data[at:at] = data[source : source + length]
        elif change == 5:
            del data[at:]
        elif change == 6:  # replace a word
            words = bytes(data).split()
            if words:
                word = words[rng.integers(len(words))]
                new = _TOKENS[rng.integers(len(_TOKENS))]
                data = bytearray(bytes(data).replace(word, new, 1))
    return bytes(data)


def attempt(reader: Reader, files: list[Path], folder: Path, seed: int) -> str:
    """Read one damaged input; return ``read``, ``refused`` or what went wrong."""
    rng = np.random.default_rng(seed)
    path = files[rng.integers(len(files))]
    good = path.read_bytes()
    path.write_bytes(mutated(good, rng))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder)
        return "read"
    except (ValueError, FileNotFoundError) as error:
        named = str(folder) in str(error) or (reader.named or "?") in str(error)
        return "refused" if named else f"{path.name} not named: {error!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{path.name}: {error!r}"
    finally:
        path.write_bytes(good)


def _work(name: str, seeds: range, report: Connection) -> None:
    """Try seeds in a process of its own, which may crash."""
    page = resource.getpagesize()
    size, resident = map(int, Path("/proc/self/statm").read_text().split()[:2])
    resource.setrlimit(resource.RLIMIT_AS, (size * page + MEMORY,) * 2)
    torch.set_num_threads(1)
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries report on their own
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        files = READERS[name].make(Path(folder))
        READERS[name].read(Path(folder))  # undamaged, it must be readable
        for seed in seeds:
            report.send((seed, "", 0.0, 0.0))
            start = time.perf_counter()
            signal.alarm(SECONDS)  # ends the process
            outcome = attempt(READERS[name], files, Path(folder), seed)
            signal.alarm(0)
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            report.send((seed, outcome, seconds, (peak - resident * page) / 2**20))


def fuzz(name: str, seeds: range) -> pd.DataFrame:
    """Read damaged inputs.

    Returns
    -------
    pandas.DataFrame
        One row for each input: ``seed``, ``outcome``, ``seconds``, and ``peak_mb``, the
        memory that the process has taken at most since it began.
    """
    found: dict[int, tuple] = {}
    context = multiprocessing.get_context("fork")
    while len(found) < len(seeds):
        receiver, sender = context.Pipe(duplex=False)
        rest = seeds[len(found) :]
        process = context.Process(target=_work, args=(name, rest, sender))
        process.start()
        sender.close()
        begun = None
        try:
            while True:
                begun, *result = receiver.recv()
                if result[0]:
                    found[begun] = tuple(result)
        except EOFError:
            process.join()
        if begun is None:
            raise RuntimeError(f"{name}: the undamaged input could not be read")
        if begun not in found:
            ended = signal.Signals(-process.exitcode).name if process.exitcode else ""
            found[begun] = (f"died: {ended}", float(SECONDS), np.nan)
    rows = [(seed, *result) for seed, result in found.items()]
    return pd.DataFrame(rows, columns=["seed", "outcome", "seconds", "peak_mb"])


def findings(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table of `fuzz` that should not be."""
    return table[~table["outcome"].isin(["read", "refused"])]


def summary(name: str, table: pd.DataFrame) -> dict[str, object]:
    """Return what a table of `fuzz` says, in one row."""
    counts = table["outcome"].value_counts()
    return {
        "reader": name,
        "inputs": len(table),
        "read": counts.get("read", 0),
        "refused": counts.get("refused", 0),
        "findings": len(findings(table)),
        "seconds": round(table["seconds"].sum()),
        "slowest_ms": round(1000 * table["seconds"].max()),
        "peak_mb": round(table["peak_mb"].max()),
    }


def page(table: pd.DataFrame) -> str:
    """Return a table of summaries as a page."""
    shown = table.drop(columns=["inputs", "findings", "seconds"])
    shown = shown.rename(columns={"slowest_ms": "slowest, ms", "peak_mb": "peak, MiB"})
    n_each, n_all = table["inputs"].min(), table["inputs"].sum()
    minutes = table["seconds"].sum() / 60
    lines = [
        "# What becomes of damaged files",
        "",
        f"Each of {len(table)} readers was given {n_each:,} damaged files.",
        f"{table['findings'].sum()} of {n_all:,} ended in another way than the right:",
        "",
        "- *read*: the damage is none to this reader, or the file is made anew.",
        "- *refused*: a `ValueError` or `FileNotFoundError` names the file.",
        "",
        "A file is damaged in one to four places: a bit flips, bytes are replaced,",
        "removed, moved or repeated, the rest is cut off, a number becomes another,",
        "negative, huge or none. *Forged* files have checksums that fit the damage;",
        "*inside* is beneath the compression. An input that takes more than",
        f"{SECONDS} s or {MEMORY // 2**30} GiB is no right one. The slowest input, and",
        "the memory beyond that of the process before, are in the table.",
        "Inputs that once ended otherwise are tests now (`tests/test_fuzz.py`).",
        "",
        markdown(shown),
        "",
        f"Made by `python tests/fuzz.py --inputs {n_each} --output TSV "
        f"--page FILE` in {minutes:.0f} minutes of one core, Python "
        f"{platform.python_version()}, {platform.system()}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Fuzz readers from the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", default=list(READERS))
    parser.add_argument("--inputs", type=int, default=1000, help="for each reader")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--output", type=Path, help="TSV to add the table to")
    parser.add_argument("--page", type=Path, help="write a page in Markdown")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.inputs)
    rows, n_findings = [], 0
    if arguments.output and arguments.output.is_file():
        rows = pd.read_csv(arguments.output, sep="\t").to_dict("records")
    for name in arguments.readers:
        if name in [row["reader"] for row in rows]:
            continue
        table = fuzz(name, seeds)
        rows.append(summary(name, table))
        print(pd.DataFrame(rows[-1:]).to_string(index=False), flush=True)
        wrong = findings(table)
        n_findings += len(wrong)
        for row in wrong.drop_duplicates("outcome").head(10).itertuples():
            print(f"    seed {row.seed}: {row.outcome[:300]}", flush=True)
        if arguments.output:
            pd.DataFrame(rows).to_csv(arguments.output, sep="\t", index=False)
    if arguments.page:
        arguments.page.write_text(page(pd.DataFrame(rows)), encoding="utf-8")
    sys.exit(n_findings > 0)


if __name__ == "__main__":
    main()
