"""Tests of the features that can be tested, NaN for the others.

`helpers.confounders` is the public face of this module.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from helpers.blockstats import moderated_t

__all__ = ["feature_table", "tested_effects"]


def tested_effects(
    values: np.ndarray, sizes: np.ndarray, tested: np.ndarray
) -> dict[str, np.ndarray]:
    """Run the moderated t-test on some features.

    Parameters
    ----------
    values, sizes
        As in `helpers.blockstats.moderated_t`.
    tested : numpy.ndarray of bool, shape (n_features,)
        Features that fire in enough blocks; of these, those that vary are tested.

    Returns
    -------
    dict
        ``delta`` (of all features), ``t`` and ``p`` (NaN where not tested).
    """
    n_features = values.shape[1]
    found = {"delta": sizes @ values / sizes.sum()}
    found |= {name: np.full(n_features, np.nan) for name in ("t", "p")}
    moving = tested & (np.ptp(values, axis=0) > 0)
    if moving.any():
        test = moderated_t(values[:, moving], sizes)
        found["t"][moving], found["p"][moving] = test.t, test.p
    return found


def feature_table(columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return columns of one value per feature as a table."""
    return pd.DataFrame(columns).rename_axis("feature")
