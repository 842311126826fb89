"""The activation store: residual streams of many windows and biosamples on disk.

One zarr (v3) group holds an array ``layer<i>`` of shape (n_biosamples, n_windows,
n_tokens, d_model) per layer, in half precision, every chunk with a CRC-32C checksum. It
is filled a batch of windows at a time; a killed extraction goes on where it stopped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import zarr
from zarr.codecs import Crc32cCodec

__all__ = [
    "ActivationStore",
    "LayerArray",
    "TokenRows",
    "WindowSummary",
    "summarize",
]

_WINDOW_COLUMNS = ["chrom", "start", "end", "split", "block"]
_CHUNK_BYTES = 4 * 2**20  # a chunk of several windows stays below this
_BATCH_WINDOWS = 16  # most windows of a chunk, lost at worst when a run is killed
_ENCODE_TOKENS = 8192  # tokens whose codes `summarize` holds at a time


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


class WindowSummary(NamedTuple):
    """Feature activity of windows, both float32 (n_biosamples, n_windows, n_features).

    Attributes
    ----------
    mean_acts : numpy.ndarray
        Mean feature activation over the tokens of a window.
    firing : numpy.ndarray
        Share of the tokens of a window on which the feature fires.
    """

    mean_acts: np.ndarray
    firing: np.ndarray


class LayerArray:
    """One layer of a store: a lazy array that vouches for what it returns.

    Indexing reads only the chunks it touches. A damaged chunk, and a window that has
    not been written, raise ValueError.

    Attributes
    ----------
    shape : tuple of int
        (n_biosamples, n_windows, n_tokens, d_model)
    dtype : numpy.dtype
        float16
    """

    def __init__(self, store: ActivationStore, layer: int, array: zarr.Array) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self._store, self._layer, self._array = store, layer, array

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read a part of the layer, with integers and slices as in numpy."""
        try:
            values = self._array[key]
            intact = not np.isnan(values).any()
        except ValueError:  # zarr's, for a checksum
            intact = False
        if not intact:
            raise ValueError(self._complaint(key))
        return values

    def _complaint(self, key: Any) -> str:
        """Name the first chunk `key` touches that cannot be used."""
        store, (n_biosamples, n_windows) = self._store, self.shape[:2]
        pairs = np.arange(n_biosamples * n_windows).reshape(
            n_biosamples, n_windows, 1, 1
        )
        touched = np.unique(np.broadcast_to(pairs, self.shape)[key])
        for row, window in zip(*divmod(touched, n_windows), strict=True):
            problem = self._problem(row, window)
            if problem is not None:
                first = window - window % self._array.chunks[1]
                last = min(first + self._array.chunks[1], n_windows) - 1
                return (
                    f"{store.path}: layer {self._layer}, biosample "
                    f"{store.biosamples[row]!r}, windows {first} to {last}: {problem}"
                )
        return f"{store.path}: layer {self._layer} could not be read at [{key}]"

    def _problem(self, row: int, window: int) -> str | None:
        try:
            values = self._array[row, window]
        except ValueError as error:
            return f"chunk is damaged ({error})"
        if not np.isnan(values).any():
            return None
        written = self._store.complete[window]
        return "chunk is missing" if written else "chunk is not written yet"


class ActivationStore:
    """Activations of every biosample, window, layer and token of a run.

    Make one with :meth:`create` or :meth:`open`.

    Attributes
    ----------
    path : pathlib.Path
        Folder of the zarr group.
    biosamples : list of str
        Names, in the order of the first axis.
    windows : pandas.DataFrame
        chrom, start, end, split, block; one line for each entry of the second axis.
    layers : list of int
        Layers held, 0-based.
    n_tokens, d_model : int
        The last two axes.
    model_hash : str
        Identity of the model that made the activations.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "zarr.json").is_file():
            raise FileNotFoundError(f"{self.path}: no activation store")
        # Batches mark themselves; two processes may fill one store side by side.
        self._group = zarr.open_group(self.path, mode="r+")
        attributes = self._group.attrs.asdict()
        try:
            self.biosamples: list[str] = attributes["biosamples"]
            self.windows = pd.DataFrame(attributes["windows"])
            self.layers: list[int] = attributes["layers"]
            self.n_tokens: int = attributes["n_tokens"]
            self.d_model: int = attributes["d_model"]
            self.model_hash: str = attributes["model_hash"]
        except KeyError as error:
            raise ValueError(
                f"{self.path}: not an activation store; its attributes lack {error}"
            ) from error
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
        """Make a store, or continue the one that is there.

        Parameters
        ----------
        path : str or pathlib.Path
            Folder to make; it appears complete or not at all.
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
        path = Path(path)
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
        if not path.exists():
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            _make_arrays(partial, attributes)
            try:
                partial.rename(path)
            except OSError:  # another process was first
                shutil.rmtree(partial)
                if not path.exists():
                    raise
        store = cls(path)
        found = store._group.attrs.asdict()
        for name, value in attributes.items():
            if found[name] != value:
                raise ValueError(
                    f"{path}: holds activations with another {name.replace('_', ' ')}: "
                    f"found {_short(found[name])}, expected {_short(value)}"
                )
        return store

    @classmethod
    def open(
        cls, path: str | Path, *, model_hash: str | None = None
    ) -> ActivationStore:
        """Open a store that is there.

        Parameters
        ----------
        path : str or pathlib.Path
            Folder of the store.
        model_hash : str, optional
            Identity the model must have. Default: any.

        Raises
        ------
        FileNotFoundError
            If there is no store.
        ValueError
            If the folder holds something else, or another model's activations.
        """
        store = cls(path)
        if model_hash is not None and store.model_hash != model_hash:
            raise ValueError(
                f"{store.path}: activations of another model: found model hash "
                f"{store.model_hash!r}, expected {model_hash!r}"
            )
        return store

    @property
    def complete(self) -> np.ndarray:
        """Which windows are on disk for all layers and biosamples, (n_windows,)."""
        return self._group["complete"][:].astype(bool)

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
        step = self._group["complete"].chunks[0]
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
        """
        array, row = self._array(layer), self._biosample_idx(biosample)
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
        finite = np.isfinite(values).all(axis=(1, 2))
        if not finite.all():
            window = windows.start + int(np.argmin(finite))
            raise ValueError(
                f"activations of layer {layer}, biosample {biosample!r}, window "
                f"{window} hold NaN, infinity or values beyond half precision"
            )
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
        self._group["complete"][windows] = 1
        del self._written[windows.start]

    def layer(self, layer: int) -> LayerArray:
        """Return a layer as a lazy array (n_biosamples, n_windows, n_tokens, d_model).

        Raises
        ------
        ValueError
            If the store does not hold the layer.
        """
        return LayerArray(self, layer, self._array(layer))

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
        chosen = self._choose_windows(splits, windows)
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
            row = self._biosample_idx(biosample)
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
        return self._group[f"layer{layer}"]

    def _biosample_idx(self, biosample: str) -> int:
        if biosample not in self.biosamples:
            raise ValueError(
                f"{self.path}: no biosample {biosample!r}; it holds {self.biosamples}"
            )
        return self.biosamples.index(biosample)

    def _check_batch(self, windows: slice) -> None:
        """Refuse parts of a chunk: two writers would overwrite one another."""
        step, n_windows = self._group["complete"].chunks[0], len(self.windows)
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

    def _choose_windows(
        self, splits: Sequence[str] | None, windows: Sequence[int] | np.ndarray | None
    ) -> np.ndarray:
        """Return sorted positions of complete windows."""
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

    def _by_chunk(self, window: np.ndarray) -> Iterator[slice]:
        """Yield the stretches of ascending window numbers that lie in one chunk."""
        step = self._group["complete"].chunks[0]
        edges = np.flatnonzero(np.diff(window // step)) + 1
        bounds = [0, *edges.tolist(), len(window)]
        for first, last in zip(bounds[:-1], bounds[1:], strict=True):
            yield slice(first, last)


def summarize(
    store: ActivationStore,
    layer: int,
    sae: torch.nn.Module,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> WindowSummary:
    """Encode every token of a layer and average the features over each window.

    Codes are averaged as they are made; never more than a few windows' are in memory.

    Parameters
    ----------
    store : ActivationStore
        With every window complete.
    layer : int
        Layer the SAE was trained on.
    sae : BatchTopKSAE
        Anything with `encode`, `d_in` and `d_sae`.
    progress : callable, optional
        Called with the number of (biosample, window) pairs done and their total.

    Returns
    -------
    WindowSummary
        Mean activation and firing share, float32 (n_biosamples, n_windows, n_features).

    Raises
    ------
    ValueError
        If the widths of SAE and store differ, or windows are incomplete or damaged.
    """
    if sae.d_in != store.d_model:
        raise ValueError(
            f"sae expects activations of width {sae.d_in}; {store.path} has "
            f"{store.d_model}"
        )
    n_biosamples, n_windows = len(store.biosamples), len(store.windows)
    store._choose_windows(None, None)
    source = store.layer(layer)
    device = next(sae.parameters()).device
    shape = (n_biosamples, n_windows, sae.d_sae)
    summary = WindowSummary(np.empty(shape, np.float32), np.empty(shape, np.float32))
    step = max(1, _ENCODE_TOKENS // store.n_tokens)
    for row in range(n_biosamples):
        for first in range(0, n_windows, step):
            windows = slice(first, min(first + step, n_windows))
            x = torch.from_numpy(source[row, windows]).to(device).float()
            feature_acts = sae.encode(x)  # (windows, tokens, d_sae)
            summary.mean_acts[row, windows] = feature_acts.mean(1).cpu()
            n_fired = torch.count_nonzero(feature_acts, dim=1)
            summary.firing[row, windows] = (n_fired / store.n_tokens).cpu()
            if progress is not None:
                progress(row * n_windows + windows.stop, n_biosamples * n_windows)
    return summary


def _make_arrays(path: Path, attributes: dict[str, Any]) -> None:
    """Write an empty store."""
    n_biosamples = len(attributes["biosamples"])
    n_windows = len(attributes["windows"]["chrom"])
    n_tokens, d_model = attributes["n_tokens"], attributes["d_model"]
    fitting = _CHUNK_BYTES // (2 * n_tokens * d_model)
    step = max(1, min(fitting, _BATCH_WINDOWS, n_windows))
    group = zarr.create_group(path, zarr_format=3, attributes=attributes)
    for layer in attributes["layers"]:
        group.create_array(
            f"layer{layer}",
            shape=(n_biosamples, n_windows, n_tokens, d_model),
            chunks=(1, step, n_tokens, d_model),
            dtype="float16",
            fill_value=float("nan"),  # a chunk that is missing must not read as zeros
            compressors=[
                Crc32cCodec()
            ],  # the noise of half precision hardly compresses
        )
    # One chunk per batch of windows: marking a batch rewrites nobody else's mark.
    group.create_array(
        "complete",
        shape=(n_windows,),
        chunks=(step,),
        dtype="uint8",
        fill_value=0,
        compressors=[Crc32cCodec()],
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
