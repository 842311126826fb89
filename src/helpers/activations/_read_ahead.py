"""Shuffled stretches of rows in memory: one is used while threads read the next."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import NamedTuple

import numpy as np

from helpers.activations._row_selection import RowSelection

__all__ = ["ReadAhead", "Stretch", "placements"]


class Stretch(NamedTuple):
    """Consecutive batches of an epoch that are shuffled together.

    Attributes
    ----------
    random_state, epoch : int
        Which order of the rows.
    batch_size : int
        Rows of a batch.
    part : tuple of int
        First and last row of each batch that are wanted, exclusive.
    first, last : int
        Batches, exclusive.
    """

    random_state: int
    epoch: int
    batch_size: int
    part: tuple[int, int]
    first: int
    last: int


class Placement(NamedTuple):
    """Where rows of a unit of a biosample go."""

    b: int
    unit: int
    rows: np.ndarray
    places: np.ndarray


@dataclass(eq=False)
class _Reading:
    """A stretch in memory, or on its way there."""

    stretch: Stretch
    buffers: dict[int, np.ndarray]
    pieces: list[Future]
    given_up: Event


def placements(sizes: np.ndarray, stretch: Stretch) -> Iterator[Placement]:
    """Lay out a stretch: which rows of which units go where.

    Row p of an epoch is row p // n of biosample p % n, whose own sequence takes its
    units in an order drawn for the epoch. Within the stretch that sequence is shuffled.

    Parameters
    ----------
    sizes : numpy.ndarray, shape (n_biosamples, n_units)
        Rows of each unit; all biosamples have the same sum.
    stretch : Stretch
        What to lay out; places are rows of a buffer that holds nothing else.
    """
    n, (start, stop) = len(sizes), stretch.part
    first, last = (b * stretch.batch_size for b in (stretch.first, stretch.last))
    seed = (stretch.random_state, stretch.epoch)
    for b in range(n):
        # The part of the biosample's own sequence, and the place of each of its rows.
        low, high = ((p + n - 1 - b) // n for p in (first, last))
        rng = np.random.default_rng((*seed, 1 + stretch.first, b))
        position = (low + rng.permutation(high - low)) * n + b - first
        batch, row = np.divmod(position, stretch.batch_size)
        wanted = (start <= row) & (row < stop)
        place = batch * (stop - start) + row - start
        order = np.random.default_rng((*seed, 0, b)).permutation(len(sizes[b]))
        ends = sizes[b][order].cumsum()
        begins = ends - sizes[b][order]
        for i in np.flatnonzero((begins < high) & (ends > low) & (begins < ends)):
            inside = slice(max(begins[i], low) - low, min(ends[i], high) - low)
            taken = np.flatnonzero(wanted[inside])
            rows = taken + inside.start + low - begins[i]
            yield Placement(b, int(order[i]), rows, place[inside][taken])


class ReadAhead:
    """Two buffers of rows: a stretch that is used, and one that threads read.

    A stretch that is asked for again, by another iterator, is there already or is read
    again: buffers hold no state that matters.
    """

    def __init__(
        self, selection: RowSelection, layers: tuple[int, ...], pool: ThreadPoolExecutor
    ) -> None:
        self._selection, self._layers, self._pool = selection, layers, pool
        self._readings: list[_Reading] = []

    def get(self, stretch: Stretch, following: Stretch) -> dict[int, np.ndarray]:
        """Return the rows of a stretch by layer, and begin to read what follows it.

        The rows are overwritten when a later stretch is asked for. What goes wrong
        while reading is raised here.
        """
        reading = self._begin(stretch)
        try:
            while reading.pieces:
                reading.pieces[-1].result()
                reading.pieces.pop()
        except BaseException:
            self._stop(reading)
            raise
        self._begin(following, keep=reading)
        return reading.buffers

    def stop(self) -> None:
        """Give up what is being read."""
        for reading in list(self._readings):
            self._stop(reading)

    def _begin(self, stretch: Stretch, keep: _Reading | None = None) -> _Reading:
        """Begin to read a stretch, unless it is read or being read."""
        for reading in self._readings:
            if reading.stretch == stretch:
                return reading
        n_rows = (stretch.last - stretch.first) * (stretch.part[1] - stretch.part[0])
        shape = (n_rows, self._selection.d_model)
        buffers = None
        if len(self._readings) == 2:
            old = next(r for r in self._readings if r is not keep)
            self._stop(old)
            if len(old.buffers[self._layers[0]]) >= n_rows:
                buffers = old.buffers
        if buffers is None:
            buffers = {layer: np.empty(shape, np.float16) for layer in self._layers}
        given_up = Event()
        pieces = [
            self._pool.submit(self._place, buffers[layer], given_up, layer, placement)
            for placement in placements(self._selection.sizes, stretch)
            for layer in self._layers
        ]
        reading = _Reading(stretch, buffers, pieces, given_up)
        self._readings.append(reading)
        return reading

    def _place(
        self, buffer: np.ndarray, given_up: Event, layer: int, placement: Placement
    ) -> None:
        """Read a unit and put its rows where their batches will be."""
        if not given_up.is_set():
            b, unit, rows, places = placement
            buffer[places] = self._selection.read(layer, b, unit)[rows]

    def _stop(self, reading: _Reading) -> None:
        """Give up a stretch; nothing writes into its buffers afterwards."""
        reading.given_up.set()
        for piece in reading.pieces:
            piece.cancel()
        wait(reading.pieces)
        self._readings.remove(reading)
