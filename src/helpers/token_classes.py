"""Classes of tokens by measured accessibility: which context is the higher one.

Tokens are inner tokens, the ones that the model predicts.
"""

from __future__ import annotations

import numpy as np

from helpers.masked import DIFFERENTIAL_FOLD
from helpers.stages import Study

__all__ = ["CLASSES", "INVARIANT_FOLD", "token_classes"]

CLASSES = ("vivo-up", "vitro-up", "invariant", "background")
INVARIANT_FOLD = 1.5  # of signal + 1, below which an accessible token does not change


def token_classes(study: Study, windows: np.ndarray) -> dict[str, np.ndarray]:
    """Class the tokens of every lineage by their measured accessibility.

    With s the scaled signal of a token, a token is ``vivo-up`` if it lies in a peak of
    the in vivo biosample and (s_vivo + 1) / (s_vitro + 1) >= 3, ``vitro-up`` the other
    way round, ``invariant`` if it lies in a peak of both and the ratio is below 1.5
    either way, ``background`` if it lies in a peak of neither. The 1 is a floor, the
    peak the smallest signal that counts; what is left over has no class.

    Parameters
    ----------
    study : Study
        The run.
    windows : numpy.ndarray of int
        Which windows.

    Returns
    -------
    dict of str to numpy.ndarray, shape (n_windows, n_outputs)
        Per lineage the class of every inner token, one of `CLASSES` or empty.
    """
    dataset, crop = study.dataset, study.model.config.crop
    inner = slice(crop, dataset.n_tokens - crop)
    found = {}
    for lineage in study.lineages:
        pair = study.pair(lineage)
        low, high = (dataset.target(windows, b)[:, inner] + 1 for b in pair)
        in_low, in_high = (dataset.in_peak(b)[windows][:, inner] for b in pair)
        fold = np.log2(high / low)
        differs = np.log2(DIFFERENTIAL_FOLD)
        found[lineage] = np.select(
            [
                in_high & (fold >= differs),
                in_low & (fold <= -differs),
                in_low & in_high & (np.abs(fold) < np.log2(INVARIANT_FOLD)),
                ~in_low & ~in_high,
            ],
            CLASSES,
            default="",
        )
    return found
