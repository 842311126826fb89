"""Run independent conditions side by side on the cores of a CPU."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import TypeVar

import torch
from tqdm.std import tqdm

from helpers.stages import Study

__all__ = ["side_by_side"]

_SMALL_WINDOW = 512  # tokens, up to which products are too short to be split
_DIE_WITH_PARENT = 1  # Linux's PR_SET_PDEATHSIG

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    run: Callable[[Item], Result], items: Sequence[Item], study: Study, *, desc: str
) -> list[Result]:
    """Return ``run(item)`` for every item, in order, as many at a time as pay off.

    Products of a small model are too short to be split over cores, so each core takes
    a condition of its own, in a process that begins as a copy of this one: threads
    would wait for each other between any two products. Large models, other devices and
    other systems than Linux are kept busy by one condition at a time.

    Parameters
    ----------
    run : callable
        Independent of the order of the items. What it changes in memory is lost; what
        it returns is pickled.
    items : sequence
        Conditions.
    study : Study
        Whose model the conditions run.
    desc : str
        Of the progress bar.

    Raises
    ------
    RuntimeError
        If a process is killed. What `run` raises is raised here.
    """
    n_workers = min(torch.get_num_threads(), len(items))
    small = study.model.config.n_tokens <= _SMALL_WINDOW
    alone = study.device != "cpu" or not small or sys.platform != "linux"
    if alone or n_workers < 2:
        return [run(item) for item in tqdm(items, desc=desc)]
    found = {}
    with _workers(run, items, n_workers) as pipes:
        for k, result in tqdm(_reports(pipes, len(items)), total=len(items), desc=desc):
            found[k] = result
    if lost := len(items) - len(found):
        raise RuntimeError(f"{desc}: {lost} not done, as a process was killed")
    return [found[k] for k in range(len(items))]


@contextmanager
def _workers(
    run: Callable[[Item], Result], items: Sequence[Item], n_workers: int
) -> Iterator[list[Connection]]:
    """Start processes that wait for positions of items, and yield a pipe to each."""
    fork = multiprocessing.get_context("fork")
    processes, pipes = [], []
    try:
        for _ in range(n_workers):
            ours, theirs = fork.Pipe()
            arguments = (run, items, theirs, os.getpid())
            process = fork.Process(target=_work, args=arguments, daemon=True)
            with warnings.catch_warnings():  # that other threads are not copied
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        yield pipes
    finally:
        for process in processes:
            process.kill()
            process.join()


def _work(
    run: Callable[[Item], Result], items: Sequence[Item], pipe: Connection, parent: int
) -> None:
    """Do one item after the other, in a process that does not outlive its parent."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    torch.set_num_threads(1)
    while True:
        k = pipe.recv()
        try:
            report = pickle.dumps((k, run(items[k]), None))
        except Exception as error:
            error.add_note(traceback.format_exc())
            report = pickle.dumps((k, None, error))
        # Plain bytes: torch would share tensors by handles, which die with a process
        pipe.send_bytes(report)


def _reports(pipes: Sequence[Connection], n_items: int) -> Iterator[tuple[int, object]]:
    """Hand out items, and yield position and result of each as they come."""
    pending = iter(range(n_items))
    for pipe, k in zip(pipes, pending, strict=False):
        pipe.send(k)
    busy = list(pipes)
    while busy:
        for pipe in wait(busy):
            try:
                k, result, error = pickle.loads(pipe.recv_bytes())
            except (EOFError, OSError):  # the process was killed
                busy.remove(pipe)
                continue
            if error is not None:
                raise error
            following = next(pending, None)
            if following is None:
                busy.remove(pipe)
            else:
                pipe.send(following)
            yield k, result
