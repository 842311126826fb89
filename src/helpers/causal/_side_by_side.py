"""Run independent conditions side by side on the cores of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from tqdm.std import tqdm

from helpers.stages import Study

__all__ = ["side_by_side"]

_SMALL_WINDOW = 512  # tokens, up to which products are too short to be split

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    run: Callable[[Item], Result], items: Sequence[Item], study: Study, *, desc: str
) -> list[Result]:
    """Return ``run(item)`` for every item, in order, as many at a time as pay off.

    Products of a small model are too short to be split over cores, so each core takes
    a condition of its own; torch lets others work meanwhile. Large models, and other
    devices, are kept busy by one condition at a time.

    Parameters
    ----------
    run : callable
        Independent of the order of the items; called from several threads.
    items : sequence
        Conditions.
    study : Study
        Whose model the conditions run.
    desc : str
        Of the progress bar.
    """
    n_threads = torch.get_num_threads()
    small = study.model.config.n_tokens <= _SMALL_WINDOW
    if study.device != "cpu" or not small or n_threads == 1:
        return [run(item) for item in tqdm(items, desc=desc)]
    # The number of threads is each thread's own, as far as it is not yet set.
    pool = ThreadPoolExecutor(
        n_threads, initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        with pool:
            return list(tqdm(pool.map(run, items), total=len(items), desc=desc))
    finally:
        torch.set_num_threads(n_threads)
