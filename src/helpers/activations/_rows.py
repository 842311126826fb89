"""Rows of an activation store for training: shuffled, balanced, larger than memory.

An epoch is one long sequence in which the biosamples take turns, row by row: row p is
row p // n of biosample p % n. Each biosample's own sequence goes through its chunks in
random order. A stretch of batches, as long as memory allows, is shuffled as a whole,
and threads read the next one while one is in use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from helpers.activations._read_ahead import ReadAhead, Stretch
from helpers.activations._row_selection import RowSelection
from helpers.activations._store import ActivationStore
from helpers.sae._rows import CHUNK_ROWS

__all__ = ["StoredRows"]

_MEMORY = 2 * 2**30  # bytes
# Threads that read. One thread saturates a disk's checksums; a request to object
# storage mostly waits.
_READERS, _REMOTE_READERS = 1, 8
_COPIES = 4  # of a chunk while it is read: as stored, checked, chosen, handed on
_INDEX_BYTES = 24  # that it takes to know where a row goes


class StoredRows:
    """Tokens of a store as rows to train on: a source for `helpers.sae.train`.

    Batches hold equally many tokens of every biosample (up to one) and tokens of all
    layers at the same places. What fits into `memory` is read once and kept; of what
    does not, half of `memory` is shuffled at a time while the other half is read. The
    same arguments give the same batches in any process.

    Parameters
    ----------
    store : ActivationStore
        Where rows come from.
    layers : sequence of int, optional
        Layers, the names of the source. Default: all.
    biosamples : sequence of str, optional
        Default: all.
    splits : sequence of str, optional
        Values of the windows' split column. Default: all.
    windows : sequence of int, optional
        Positions of windows, combined with `splits`. Default: all.
    classes : numpy.ndarray, shape (n_windows, n_tokens), optional
        Label of each token of the store, the same for all biosamples, or with an axis
        of the store's biosamples in front; see `peak_classes`. Default: no classes.
    rates : mapping of label to float, optional
        Share of each class to use, such as ``{0: 0.1, 1: 1.0, 2: 1.0}``; goes with
        `classes`. Without, every token is used.
    random_state : int
        Seed of the tokens drawn. The order of rows has the trainer's.
    memory : int
        Bytes to use, besides one byte for each token of `classes`.

    Attributes
    ----------
    names : tuple of int
        Layers.
    n_rows, d_in : int
        Tokens of all biosamples, width.
    strata : pandas.DataFrame
        One line per biosample and class: biosample, token_class, n_available, n_drawn,
        weight; the weight is how many tokens of the store each row stands for.
    provenance : dict
        The same, and which model and windows.

    Raises
    ------
    ValueError
        If names are unknown, windows are not complete, classes do not fit the store or
        have no rate, or the memory is too small for the chunks of the store. While
        reading: if a chunk is damaged, which is named.
    """

    def __init__(
        self,
        store: ActivationStore,
        layers: Sequence[int] | None = None,
        *,
        biosamples: Sequence[str] | None = None,
        splits: Sequence[str] | None = None,
        windows: Sequence[int] | np.ndarray | None = None,
        classes: np.ndarray | None = None,
        rates: Mapping[int | str, float] | None = None,
        random_state: int = 0,
        memory: int = _MEMORY,
    ) -> None:
        self.names = tuple(store.layers if layers is None else layers)
        self.d_in = store.d_model
        for layer in self.names:
            store.layer(layer)  # is there
        if not self.names:
            raise ValueError("layers must be at least one; got none")
        self._selection = RowSelection(
            store,
            biosamples=biosamples,
            splits=splits,
            windows=windows,
            classes=classes,
            rates=rates,
            random_state=random_state,
        )
        self._sizes = self._selection.sizes
        self._n_biosamples = len(self._sizes)
        self._n_each = int(self._sizes[0].sum())
        self.n_rows = self._n_each * self._n_biosamples
        remote = isinstance(store.path, str)
        self._n_readers = _REMOTE_READERS if remote else _READERS
        self._check_memory(store, memory)

    def _check_memory(self, store: ActivationStore, memory: int) -> None:
        """Decide whether rows stay in memory; find out what a stretch may take."""
        n_layers = len(self.names)
        chunk = 2 * store.chunk_windows * store.n_tokens * self.d_in
        spare = memory - chunk * _COPIES * n_layers * self._n_readers
        row_bytes = 2 * self.d_in * n_layers + _INDEX_BYTES
        self._stays = self.n_rows * row_bytes <= spare
        self._stretch_rows = spare // (2 * row_bytes)
        least = int(self._sizes.max()) * self._n_biosamples  # a unit of each
        if not self._stays and self._stretch_rows < least:
            raise ValueError(
                f"memory must be at least {memory - spare + 2 * row_bytes * least:,} "
                f"bytes for {n_layers} layers of {store.path}; got {memory:,}"
            )

    @property
    def strata(self) -> pd.DataFrame:
        """What was drawn of each biosample and class of token, and its weight."""
        return self._selection.strata

    @property
    def provenance(self) -> dict[str, Any]:
        """What the rows are, JSON-compatible; kept with the SAE trained on them."""
        return self._selection.provenance

    def index(self) -> pd.DataFrame:
        """Return where each row comes from, in the order of :meth:`chunks`.

        Returns
        -------
        pandas.DataFrame
            biosample_idx, window_idx and token_idx in the store, token_class as text,
            and weight, how many tokens of the store the row stands for.
        """
        return self._selection.index()

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int,
        random_state: int,
        first: int = 0,
        part: slice = slice(None),
    ) -> Iterator[dict[int, torch.Tensor]]:
        """Yield the batches of an epoch in half precision; see `RowSource`.

        Of the batches to skip, at most those shuffled together with the first one are
        read.
        """
        if not self._stays and batch_size > self._stretch_rows:
            raise ValueError(
                f"memory holds {self._stretch_rows:,} rows to shuffle; batches of "
                f"{batch_size} want more memory"
            )
        serve = self._from_memory if self._stays else self._from_disk
        bounds, n_batches = part.indices(batch_size)[:2], self.n_rows // batch_size
        whole = Stretch(random_state, epoch, batch_size, bounds, 0, n_batches)
        return serve(whole, first)

    def chunks(self) -> Iterator[dict[int, torch.Tensor]]:
        """Yield every row once, by biosample, window and token."""
        if self._stays:
            yield from _split(self._matrices)
            return
        ahead: deque[dict[int, Future]] = deque()
        try:
            for b, unit in zip(*self._sizes.nonzero(), strict=True):
                reading = {
                    layer: self._pool.submit(self._selection.read, layer, b, unit)
                    for layer in self.names
                }
                ahead.append(reading)
                if len(ahead) > self._n_readers:
                    yield from _split(_results(ahead.popleft()))
            while ahead:
                yield from _split(_results(ahead.popleft()))
        finally:
            for reading in ahead:
                for future in reading.values():
                    future.cancel()

    def close(self) -> None:
        """Stop reading ahead and free the memory; the source can be used again."""
        self.__dict__.pop("_matrices", None)
        if "_ahead" in self.__dict__:
            self.__dict__.pop("_ahead").stop()
        if "_pool" in self.__dict__:
            self.__dict__.pop("_pool").shutdown(cancel_futures=True)

    def __enter__(self) -> StoredRows:
        """Return the source."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._n_readers, "helpers-read")

    @cached_property
    def _ahead(self) -> ReadAhead:
        return ReadAhead(self._selection, self.names, self._pool)

    # --- what fits in memory ----------------------------------------------------------

    @cached_property
    def _matrices(self) -> dict[int, torch.Tensor]:
        """All rows of each layer, (n_rows, d_in)."""
        shape = (self.n_rows, self.d_in)
        found = {layer: torch.empty(shape, dtype=torch.float16) for layer in self.names}
        ends = self._sizes.cumsum().reshape(self._sizes.shape)

        def place(layer: int, b: int, unit: int) -> None:
            rows = slice(ends[b, unit] - self._sizes[b, unit], ends[b, unit])
            found[layer][rows] = torch.from_numpy(self._selection.read(layer, b, unit))

        tasks = [
            self._pool.submit(place, layer, b, unit)
            for layer in self.names
            for b, unit in zip(*self._sizes.nonzero(), strict=True)
        ]
        try:
            for task in tasks:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
        return found

    def _from_memory(
        self, epoch: Stretch, first: int
    ) -> Iterator[dict[int, torch.Tensor]]:
        n, size = self._n_biosamples, epoch.batch_size
        order = np.empty((self._n_each, n), np.int64)
        for b in range(n):
            rng = np.random.default_rng((epoch.random_state, epoch.epoch, 0, b))
            order[:, b] = b * self._n_each + rng.permutation(self._n_each)
        for batch in range(first, self.n_rows // size):
            rows = order.reshape(-1)[batch * size :][slice(*epoch.part)]
            chosen = torch.from_numpy(rows)
            yield {layer: m[chosen] for layer, m in self._matrices.items()}

    # --- what does not ----------------------------------------------------------------

    def _from_disk(
        self, epoch: Stretch, first: int
    ) -> Iterator[dict[int, torch.Tensor]]:
        n_batches, together = self._stretches(epoch.batch_size)
        size = epoch.part[1] - epoch.part[0]

        def stretch(begin: int, number: int) -> Stretch:
            end = min(begin + together, n_batches)
            return epoch._replace(epoch=number, first=begin, last=end)

        for batch in range(first, n_batches):
            now = stretch(batch - batch % together, epoch.epoch)
            ends = now.last == n_batches
            following = stretch(0 if ends else now.last, epoch.epoch + ends)
            buffers = self._ahead.get(now, following)
            rows = slice((batch - now.first) * size, (batch - now.first + 1) * size)
            # A copy: the buffer is written again while the batch may be in use.
            yield {
                layer: torch.from_numpy(buffers[layer][rows].copy())
                for layer in self.names
            }

    def _stretches(self, batch_size: int) -> tuple[int, int]:
        """Return the number of batches of an epoch, and of a stretch."""
        n_batches = self.n_rows // batch_size
        n_stretches = -(-n_batches // (self._stretch_rows // batch_size))
        return n_batches, -(-n_batches // n_stretches)


def _results(reading: dict[int, Future]) -> dict[int, torch.Tensor]:
    return {
        layer: torch.from_numpy(future.result()) for layer, future in reading.items()
    }


def _split(rows: dict[int, torch.Tensor]) -> Iterator[dict[int, torch.Tensor]]:
    """Yield a few rows at a time: who adds them up does so in double precision."""
    n_rows = len(next(iter(rows.values())))
    for first in range(0, n_rows, CHUNK_ROWS):
        yield {layer: m[first : first + CHUNK_ROWS] for layer, m in rows.items()}
