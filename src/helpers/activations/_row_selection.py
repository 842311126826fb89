"""Which tokens of a store are rows, and how they are read: a chunk at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from helpers.activations._store import ActivationStore
from helpers.activations._token_draw import TokenDraw, draw_tokens

__all__ = ["RowSelection"]


class RowSelection:
    """Tokens of some biosamples and windows, equally many of each biosample.

    What is read at a time is a unit: the windows of one biosample that share a chunk.
    Parameters and errors are those of `StoredRows`, which orders the rows.

    Attributes
    ----------
    d_model : int
        Width.
    sizes : numpy.ndarray, shape (n_biosamples, n_units)
        Rows of each unit.
    strata : pandas.DataFrame
        What was drawn of each biosample and class, and its weight.
    """

    def __init__(
        self,
        store: ActivationStore,
        *,
        biosamples: Sequence[str] | None,
        splits: Sequence[str] | None,
        windows: Sequence[int] | np.ndarray | None,
        classes: np.ndarray | None,
        rates: Mapping[int | str, float] | None,
        random_state: int,
    ) -> None:
        self._store, self._random_state = store, random_state
        self.d_model = store.d_model
        self.biosamples = list(store.biosamples if biosamples is None else biosamples)
        self._rows_of = [store.biosample_idx(name) for name in self.biosamples]
        self._windows = store.positions(splits, windows)
        if not (self.biosamples and len(self._windows)):
            raise ValueError(
                f"no rows to use: {len(self.biosamples)} biosamples, "
                f"{len(self._windows)} windows"
            )
        self._classes = self._chosen_classes(classes, rates)
        self._labels = ["all"] if rates is None else list(rates)
        self._kept, self.strata = self._draw(rates)
        units = self._windows // store.chunk_windows
        _, first = np.unique(units, return_index=True)
        self._bounds = np.append(first, len(self._windows))
        self.sizes = np.add.reduceat(self._kept.sum(2), first, axis=1)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the rows are, JSON-compatible, for the SAE trained on them."""
        windows = self._store.windows.iloc[self._windows]
        known = self.strata.notna()  # a class without tokens has no weight
        strata = self.strata.astype(object).where(known, None)
        return {
            "model_hash": self._store.model_hash,
            "splits": sorted(set(windows["split"])),
            "n_windows": len(windows),
            "strata": strata.to_dict("records"),
            "random_state": self._random_state,
        }

    def index(self) -> pd.DataFrame:
        """Return where each row comes from, in the order of the units.

        Returns
        -------
        pandas.DataFrame
            biosample_idx, window_idx and token_idx in the store, token_class as text,
            and weight, how many tokens of the store the row stands for.
        """
        b, window, token = self._kept.nonzero()
        table = pd.DataFrame(
            {
                "biosample_idx": np.array(self._rows_of)[b],
                "window_idx": self._windows[window],
                "token_idx": token,
            }
        )
        stratum = np.zeros(len(table), dtype=np.int64)
        if self._classes is not None:
            labels = np.broadcast_to(self._classes, self._kept.shape)[self._kept]
            for number, label in enumerate(self._labels):
                stratum[labels == label] = number
        stratum += b * len(self._labels)
        of_row = self.strata[["token_class", "weight"]].take(stratum)
        return table.join(of_row.reset_index(drop=True))

    def read(self, layer: int, b: int, unit: int) -> np.ndarray:
        """Read the rows of a unit of a biosample, (n_rows, d_in) in half precision."""
        chosen = slice(self._bounds[unit], self._bounds[unit + 1])
        windows, kept = self._windows[chosen], self._kept[b, chosen]
        low, high = windows[0], windows[-1] + 1
        block = self._store.layer(layer)[self._rows_of[b], low:high]
        if len(windows) < high - low:
            block = block[windows - low]
        return block.reshape(-1, self.d_model) if kept.all() else block[kept]

    def _chosen_classes(
        self, classes: np.ndarray | None, rates: Mapping[int | str, float] | None
    ) -> np.ndarray | None:
        """Return the classes of the tokens of the windows and biosamples used."""
        if (classes is None) != (rates is None):
            raise ValueError("classes and rates go together; got one of them")
        if classes is None:
            return None
        store = self._store
        expected = (len(store.biosamples), len(store.windows), store.n_tokens)
        if classes.shape not in (expected, expected[1:]):
            raise ValueError(
                f"classes must have shape {expected[1:]} or {expected}; got "
                f"{classes.shape}"
            )
        if classes.ndim == 3:
            classes = classes[self._rows_of]
        return classes[..., self._windows, :]

    def _draw(self, rates: Mapping[int | str, float] | None) -> TokenDraw:
        names = self.biosamples
        if rates is not None:
            return draw_tokens(
                self._classes, rates, names, random_state=self._random_state
            )
        shape = (len(names), len(self._windows), self._store.n_tokens)
        n_each = shape[1] * shape[2]
        strata = pd.DataFrame(
            {
                "biosample": names,
                "token_class": "all",
                "n_available": n_each,
                "n_drawn": n_each,
                "weight": 1.0,
            }
        )
        return TokenDraw(np.broadcast_to(np.True_, shape), strata)
