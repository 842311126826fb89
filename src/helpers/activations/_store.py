"""The activation store: residual streams of many windows and biosamples on disk.

One zarr (v3) group holds an array ``layer<i>`` of shape (n_biosamples, n_windows,
n_tokens, d_model) per layer, in half precision, every chunk with a CRC-32C checksum. It
is filled a batch of windows at a time; a killed extraction goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import zarr

from helpers.activations._files import (
    ADVICE,
    add_layers,
    locate,
    make_store,
    naming,
    open_store,
    read_array,
)
from helpers.activations._layer import LayerArray, all_finite

__all__ = ["ActivationStore", "TokenRows"]

_WINDOW_COLUMNS = ["chrom", "start", "end", "split", "block"]


class TokenRows(NamedTuple):
    """Rows drawn from a store, and where each comes from.

    Attributes
    ----------
    rows : torch.Tensor, shape (n_rows, d_model)
        Activations, ordered by biosample, window and token.
    index : pandas.DataFrame
        biosample_idx, window_idx and token_idx of each row.
    """

    rows: torch.Tensor
    index: pd.DataFrame


class ActivationStore:
    """Activations of every biosample, window, layer and token of a run.

    Make one with :meth:`create` or :meth:`open`: in a folder, or under a URL such as
    ``s3://bucket/activations.zarr`` that fsspec can open. Credentials and other options
    of a file system come from where fsspec looks for them (the provider's own files and
    variables, ``FSSPEC_S3_ANON=true`` and the like).

    Attributes
    ----------
    path : pathlib.Path or str
        Folder of the zarr group, or its URL.
    biosamples : list of str
        Names, in the order of the first axis.
    windows : pandas.DataFrame
        chrom, start, end, split, block; one line for each entry of the second axis.
    layers : list of int
        Layers in view, 0-based; the store may hold more.
    n_tokens, d_model : int
        The last two axes.
    model_hash : str
        Identity of the model that made the activations.
    """

    def __init__(self, path: str | Path, layers: Sequence[int] | None = None) -> None:
        self.path = locate(path)
        # Batches mark themselves; two processes may fill one store side by side.
        self._group, attributes = open_store(self.path)
        self.biosamples: list[str] = attributes["biosamples"]
        self.windows = pd.DataFrame(attributes["windows"])
        self.layers = list(attributes["layers"] if layers is None else layers)
        self.n_tokens: int = attributes["n_tokens"]
        self.d_model: int = attributes["d_model"]
        self.model_hash: str = attributes["model_hash"]
        absent = sorted(set(self.layers) - set(attributes["layers"]))
        if absent:
            raise ValueError(
                f"{self.path}: no layers {absent}; it holds {attributes['layers']}"
            )
        self._arrays: dict[str, zarr.Array] = {}
        self._written: dict[int, set[tuple[int, int]]] = {}

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        biosamples: Sequence[str],
        windows: pd.DataFrame,
        layers: Sequence[int],
        n_tokens: int,
        d_model: int,
        model_hash: str,
    ) -> ActivationStore:
        """Make a store, or continue the one that is there, with more layers if need be.

        Layers that are there already stay as they are and out of view.

        Parameters
        ----------
        path : str or pathlib.Path
            Folder to make, or URL; it appears complete or not at all.
        biosamples : sequence of str
            Distinct names.
        windows : pandas.DataFrame
            Columns chrom, start, end (0-based, half-open, bp), split and block.
        layers : sequence of int
            Layers to hold, 0-based.
        n_tokens, d_model : int
            Tokens a window and width of the residual stream.
        model_hash : str
            Identity of the model, such as the checksum of its weights.

        Raises
        ------
        ValueError
            If the arguments are inconsistent, or a store of something else is there.
        """
        missing = [name for name in _WINDOW_COLUMNS if name not in windows]
        if missing:
            raise ValueError(f"windows lack the columns {missing}")
        attributes = {
            "biosamples": [str(name) for name in biosamples],
            "windows": {
                name: windows[name].to_numpy().tolist() for name in _WINDOW_COLUMNS
            },
            "layers": [int(layer) for layer in layers],
            "n_tokens": int(n_tokens),
            "d_model": int(d_model),
            "model_hash": str(model_hash),
        }
        for name in ("biosamples", "layers"):
            values = attributes[name]
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be distinct, at least one; got {values}")
        if not len(windows) or min(n_tokens, d_model) < 1:
            raise ValueError(
                "windows, n_tokens and d_model must be at least 1; got "
                f"{len(windows)}, {n_tokens} and {d_model}"
            )
        make_store(locate(path), attributes)
        group, found = open_store(locate(path))
        for name, value in attributes.items():
            if name != "layers" and found[name] != value:
                raise ValueError(
                    f"{path}: holds activations with another {name.replace('_', ' ')}: "
                    f"found {_short(found[name])}, expected {_short(value)}"
                )
        add_layers(group, attributes)
        return cls(path, layers)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model_hash: str | None = None,
        layers: Sequence[int] | None = None,
    ) -> ActivationStore:
        """Open a store that is there.

        Parameters
        ----------
        path : str or pathlib.Path
            Folder of the store, or its URL.
        model_hash : str, optional
            Identity the model must have. Default: any.
        layers : sequence of int, optional
            Layers to look at. Default: all that are there.

        Raises
        ------
        FileNotFoundError
            If there is no store.
        ValueError
            If the folder holds something else, another model's activations, or lacks a
            layer.
        """
        store = cls(path, layers)
        if model_hash is not None and store.model_hash != model_hash:
            raise ValueError(
                f"{store.path}: activations of another model: found model hash "
                f"{store.model_hash!r}, expected {model_hash!r}"
            )
        return store

    @property
    def chunk_windows(self) -> int:
        """Windows that share a chunk."""
        return self._member(f"complete{self.layers[0]}").chunks[0]

    @property
    def complete(self) -> np.ndarray:
        """Which windows are on disk for `layers` and all biosamples, (n_windows,)."""
        marks = []
        for layer in self.layers:
            array = self._member(f"complete{layer}")
            try:
                marks.append(array[:])
            except ValueError as error:
                raise ValueError(
                    f"{self.path}: marks are damaged: {error}; {ADVICE}"
                ) from error
        return np.logical_and.reduce(marks)

    def pending(self) -> Iterator[slice]:
        """Yield the batches of windows still to be extracted.

        A batch is what shares a chunk: batches can be written in any order, also by
        several processes, without one touching another's data.

        Examples
        --------
        >>> for batch in store.pending():  # doctest: +SKIP
        ...     for biosample in store.biosamples:
        ...         streams = capture(model, inputs(batch, biosample), store.layers)
        ...         for layer, stream in streams.items():
        ...             store.write(layer, biosample, batch, stream)
        ...     store.mark_complete(batch)
        """
        complete = self.complete
        step = self.chunk_windows
        for first in range(0, len(complete), step):
            batch = slice(first, min(first + step, len(complete)))
            if not complete[batch].all():
                yield batch

    def write(
        self,
        layer: int,
        biosample: str,
        windows: slice,
        activations: torch.Tensor | np.ndarray,
    ) -> None:
        """Write one layer of one biosample for a batch of windows.

        Parameters
        ----------
        layer : int
            One of `layers`.
        biosample : str
            One of `biosamples`.
        windows : slice
            A batch as :meth:`pending` yields it.
        activations : torch.Tensor or numpy.ndarray, shape (n, n_tokens, d_model)
            Rounded to half precision.

        Raises
        ------
        ValueError
            If layer, biosample, batch or shape are not the store's, or a value is not
            finite in half precision (beyond 65,504).
        OSError
            If the disk is full, or the storage refuses. What is marked stays good, and
            the batch is still pending.
        """
        array, row = self._array(layer), self.biosample_idx(biosample)
        self._check_batch(windows)
        if isinstance(activations, torch.Tensor):
            activations = activations.detach().cpu().to(torch.float16).numpy()
        with np.errstate(over="ignore"):  # reported below, with the place
            values = np.asarray(activations, dtype=np.float16)
        expected = (windows.stop - windows.start, self.n_tokens, self.d_model)
        if values.shape != expected:
            raise ValueError(
                f"activations must have shape {expected}; got {values.shape}"
            )
        if not all_finite(values):
            finite = np.isfinite(values).all(axis=(1, 2))
            window = windows.start + int(np.argmin(finite))
            raise ValueError(
                f"activations of layer {layer}, biosample {biosample!r}, window "
                f"{window} hold NaN, infinity or values beyond half precision"
            )
        with naming(
            f"{self.path}: layer {layer}, biosample {biosample!r}, windows "
            f"{windows.start} to {windows.stop - 1}"
        ):
            array[row, windows] = values
        self._written.setdefault(windows.start, set()).add((layer, row))

    def mark_complete(self, windows: slice) -> None:
        """Record that a batch of windows is on disk; until then it is pending.

        Raises
        ------
        ValueError
            If a layer or biosample of the batch has not been written since the store
            was opened.
        """
        self._check_batch(windows)
        written = self._written.get(windows.start, set())
        for layer in self.layers:
            for row, biosample in enumerate(self.biosamples):
                if (layer, row) not in written:
                    raise ValueError(
                        f"{self.path}: windows {windows.start} to {windows.stop - 1} "
                        f"lack layer {layer} of biosample {biosample!r}"
                    )
        with naming(f"{self.path}: mark of windows from {windows.start} on"):
            for layer in self.layers:
                self._member(f"complete{layer}")[windows] = 1
        del self._written[windows.start]

    def layer(self, layer: int) -> LayerArray:
        """Return a layer as a lazy array (n_biosamples, n_windows, n_tokens, d_model).

        Raises
        ------
        ValueError
            If the store does not hold the layer.
        """
        return LayerArray(self, layer, self._array(layer))

    def biosample_idx(self, biosample: str) -> int:
        """Return the place of a biosample on the first axis, or raise ValueError."""
        if biosample not in self.biosamples:
            raise ValueError(
                f"{self.path}: no biosample {biosample!r}; it holds {self.biosamples}"
            )
        return self.biosamples.index(biosample)

    def positions(
        self,
        splits: Sequence[str] | None = None,
        windows: Sequence[int] | np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the sorted positions of the windows of some splits.

        Parameters
        ----------
        splits : sequence of str, optional
            Values of the windows' split column. Default: all.
        windows : sequence of int, optional
            Positions among which to choose. Default: all.

        Raises
        ------
        ValueError
            If a split or position is unknown, or a chosen window is not complete.
        """
        chosen = np.ones(len(self.windows), dtype=bool)
        if splits is not None:
            known = set(self.windows["split"])
            if isinstance(splits, str) or not set(splits) <= known:
                raise ValueError(
                    f"splits must be among {sorted(known)}; got {splits!r}"
                )
            chosen &= self.windows["split"].isin(list(splits)).to_numpy()
        if windows is not None:
            positions = np.asarray(windows)
            outside = positions[(positions < 0) | (positions >= len(chosen))]
            if len(outside):
                raise ValueError(
                    f"windows must be positions below {len(chosen)}; got {outside[0]}"
                )
            chosen &= np.isin(np.arange(len(chosen)), positions)
        n_missing = int((chosen & ~self.complete).sum())
        if n_missing:
            raise ValueError(
                f"{self.path}: {n_missing} of {int(chosen.sum())} windows asked for "
                "are not complete; let the extraction finish"
            )
        return np.flatnonzero(chosen)

    def rows(
        self,
        layer: int,
        *,
        biosamples: Sequence[str] | None = None,
        splits: Sequence[str] | None = None,
        windows: Sequence[int] | np.ndarray | None = None,
        max_tokens: int | None = None,
        random_state: int | np.random.Generator = 0,
        dtype: torch.dtype = torch.float32,
    ) -> TokenRows:
        """Draw token activations, the same number from every biosample.

        Parameters
        ----------
        layer : int
            One of `layers`.
        biosamples : sequence of str, optional
            Biosamples to draw from. Default: all.
        splits : sequence of str, optional
            Values of the windows' split column to draw from. Default: all.
        windows : sequence of int, optional
            Positions of windows to draw from, combined with `splits`. Default: all.
        max_tokens : int, optional
            Upper bound on the number of rows; each biosample gives the same share,
            drawn without replacement. Default: every token.
        random_state : int or numpy.random.Generator
            Seed of the draw.
        dtype : torch.dtype
            Of the rows; float16 is what is stored.

        Returns
        -------
        TokenRows
            Rows and their index.

        Raises
        ------
        ValueError
            If a name is unknown, nothing is left to draw from, or a chosen window is
            not complete or damaged.
        """
        source = self.layer(layer)
        names = self.biosamples if biosamples is None else list(biosamples)
        chosen = self.positions(splits, windows)
        n_available = len(chosen) * self.n_tokens
        n_each = n_available
        if max_tokens is not None:
            n_each = min(n_available, max_tokens // max(1, len(names)))
        if not names or n_each < 1:
            raise ValueError(
                f"no rows to draw: {len(names)} biosamples, {len(chosen)} windows, "
                f"max_tokens = {max_tokens}"
            )
        rng = np.random.default_rng(random_state)
        rows = torch.empty(len(names) * n_each, self.d_model, dtype=dtype)
        index = np.empty((len(rows), 3), dtype=np.int64)
        filled = 0
        for biosample in names:
            row = self.biosample_idx(biosample)
            drawn = np.sort(rng.permutation(n_available)[:n_each])
            window, token = chosen[drawn // self.n_tokens], drawn % self.n_tokens
            for part in self._by_chunk(window):
                low, high = window[part][0], window[part][-1] + 1
                block = source[row, low:high]
                taken = slice(filled + part.start, filled + part.stop)
                rows[taken] = torch.from_numpy(block[window[part] - low, token[part]])
            taken = slice(filled, filled + n_each)
            index[taken] = np.column_stack([np.full(n_each, row), window, token])
            filled += n_each
        columns = ["biosample_idx", "window_idx", "token_idx"]
        return TokenRows(rows, pd.DataFrame(index, columns=columns))

    def _array(self, layer: int) -> zarr.Array:
        if layer not in self.layers:
            raise ValueError(
                f"{self.path}: no layer {layer!r}; it holds layers {self.layers}"
            )
        return self._member(f"layer{layer}")

    def _member(self, name: str) -> zarr.Array:
        if name not in self._arrays:  # a request, where the store is remote
            self._arrays[name] = read_array(self._group, name)
        return self._arrays[name]

    def _check_batch(self, windows: slice) -> None:
        """Refuse parts of a chunk: two writers would overwrite one another."""
        step, n_windows = self.chunk_windows, len(self.windows)
        first = windows.start
        if (
            first % step
            or windows.stop != min(first + step, n_windows)
            or not 0 <= first < n_windows
        ):
            raise ValueError(
                f"windows must be a batch of {step} as pending() yields them; "
                f"got {windows}"
            )

    def _by_chunk(self, window: np.ndarray) -> Iterator[slice]:
        """Yield the stretches of ascending window numbers that lie in one chunk."""
        step = self.chunk_windows
        edges = np.flatnonzero(np.diff(window // step)) + 1
        bounds = [0, *edges.tolist(), len(window)]
        for first, last in zip(bounds[:-1], bounds[1:], strict=True):
            yield slice(first, last)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
