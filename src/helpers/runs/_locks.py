"""Locks of a run folder: many processes may share one, if they mean the same run."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["claim", "one_at_a_time"]

_log = logging.getLogger(__name__)
_claims: dict[Path, int] = {}  # folders this process holds, and the open files


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock of an artefact; wait, and say so, while another process does.

    The operating system gives the lock back when its holder dies.
    """
    folder = path.parent / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{path.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("%s: another process is making it; waiting", path)
        lock.acquire()
    except NotImplementedError:
        _log.warning("%s: no locks on this file system; run one process", path.parent)
    try:
        yield
    finally:
        lock.release()


def claim(folder: Path, parameters: dict[str, object]) -> None:
    """Hold a folder for a run of some parameters until the process ends.

    Processes of the same parameters share a folder, as the jobs of a cluster do. A
    process that changes its mind gives its former claim back.

    Parameters
    ----------
    folder : Path
        Of the run.
    parameters : dict
        JSON types; everything that artefacts of one name may differ by.

    Raises
    ------
    RuntimeError
        If a process of other parameters holds the folder.
    """
    path = folder.resolve() / ".in-use.json"
    if path in _claims:
        os.close(_claims.pop(path))
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _hold(file, parameters)
        holder = json.loads(os.pread(file, 2**20, 0))
    except OSError as error:
        os.close(file)
        _log.warning("%s: no locks on this file system (%s)", folder, error)
        return
    held = holder["parameters"]
    different = [key for key in parameters if held.get(key) != parameters[key]]
    if different:
        os.close(file)
        found = "; ".join(
            f"{key} = {held.get(key)!r}, here {parameters[key]!r}" for key in different
        )
        raise RuntimeError(
            f"{folder} is in use by process {holder['process']} on {holder['host']} "
            f"with other parameters ({found}); wait for it, or name another run folder"
        )
    _claims[path] = file


def _hold(file: int, parameters: dict[str, object]) -> None:
    """Take a share of the lock; whoever is alone writes what the folder is for."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        text = json.dumps(
            {
                "parameters": parameters,
                "process": os.getpid(),
                "host": platform.node(),
            }
        )
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(), 0)
    # From exclusive to shared another may slip in; it will have written who it is.
    fcntl.flock(file, fcntl.LOCK_SH)
