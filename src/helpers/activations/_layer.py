"""One layer of an activation store: what is read is what was written, or an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from helpers.activations._files import ADVICE

if TYPE_CHECKING:
    from helpers.activations._store import ActivationStore

__all__ = ["LayerArray", "all_finite"]

# Bit patterns of half precision from which on a number is infinite or NaN.
_LIMIT = np.array(np.inf, np.float16).view(np.int16)
_NEGATIVE_LIMIT = np.array(-np.inf, np.float16).view(np.uint16)


def all_finite(values: np.ndarray) -> bool:
    """Return whether no value in half precision is NaN or infinite.

    Compares bit patterns, ten times faster than `numpy.isfinite` on this type.
    """
    return not values.size or bool(
        values.view(np.int16).max() < _LIMIT
        and values.view(np.uint16).max() < _NEGATIVE_LIMIT
    )


class LayerArray:
    """One layer of a store: a lazy array that vouches for what it returns.

    Indexing reads only the chunks it touches. A damaged chunk, a window that has not
    been written, and values that are not finite raise ValueError.

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
            intact = all_finite(np.asarray(values))
        except (ValueError, RuntimeError, TypeError, KeyError):  # zarr's, for damage
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
        except (ValueError, RuntimeError, TypeError, KeyError) as error:
            return f"chunk is damaged ({error}); {ADVICE}"
        if all_finite(values):
            return None
        if not np.isnan(values).all():
            token = int(np.argmin(np.isfinite(values).all(axis=1)))
            return f"window {window}, token {token} holds NaN or infinity"
        written = self._store.complete[window]
        return f"chunk is missing; {ADVICE}" if written else "chunk is not written yet"
