"""What an SAE does to held-out rows: the card, over all of them and per group."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from helpers.sae._model import BatchTopKSAE
from helpers.sae._rows import CHUNK_ROWS, check_matrix, stream

__all__ = ["Card", "evaluate"]


@dataclass(frozen=True)
class Card:
    """What an SAE does to a set of rows.

    Attributes
    ----------
    table : pandas.DataFrame
        One line for ``all`` rows and one for each group: n_rows; norm_mean and norm_sd
        of the raw activations; fvu; shrinkage; l0_mean and l0_sd; dead_percent. A
        group's fvu is relative to the variance around that group's own mean, so an
        offset between the groups flatters none of them.
    density : numpy.ndarray, shape (d_sae,)
        Share of all rows on which each feature fires.
    decoder_cosine : numpy.ndarray, shape (d_sae,)
        Cosine between each decoder row and the one nearest to it.
    """

    table: pd.DataFrame
    density: np.ndarray
    decoder_cosine: np.ndarray


def evaluate(
    sae: BatchTopKSAE,
    activations: torch.Tensor | np.ndarray,
    *,
    groups: Sequence[Any] | np.ndarray | pd.Series | None = None,
) -> Card:
    """Measure sparsity and fidelity of an SAE, over all rows and per group.

    Parameters
    ----------
    sae : BatchTopKSAE
        Evaluated with its fixed threshold.
    activations : torch.Tensor or array-like, shape (n_tokens, d_in)
        Raw activations, held out from training for an honest card; read in chunks.
    groups : sequence of length n_tokens, optional
        Label of each row, such as its context or biosample.

    Returns
    -------
    Card
        See there.

    Raises
    ------
    ValueError
        If shapes disagree or a row is not finite.

    Warns
    -----
    UserWarning
        If mean L0 differs between groups by more than 20 %: a threshold lets tokens of
        larger norm take more features, and a contrast of the groups then says so too.

    Notes
    -----
    FVU = sum |x - x_hat|^2 / sum |x - mean(x)|^2 over the whole set; an average over
    batches has another denominator in each. Shrinkage is
    1 - sum |y|^2 / sum <y, u> with u and y input and reconstruction less mean(x): 0
    when no rescaling improves the reconstruction, positive when it is too short, NaN
    where nothing fires.
    """
    n_rows, d_in = check_matrix("activations", activations, sae.d_in)
    labels = np.zeros(n_rows, dtype=int) if groups is None else np.asarray(groups)
    if labels.shape != (n_rows,):
        raise ValueError(f"groups must have shape ({n_rows},); got {labels.shape}")
    codes, names = pd.factorize(labels, sort=True)
    if (codes < 0).any():
        raise ValueError(f"groups: row {int(np.argmax(codes < 0))} has no label")
    if groups is not None and "all" in list(names):
        raise ValueError("groups must not contain 'all', the name of the first line")

    device = sae.mean.device
    per_row = np.empty((n_rows, 6))
    u_sum = torch.zeros(len(names), d_in, dtype=torch.float64, device=device)
    y_sum = torch.zeros_like(u_sum)
    n_fired = torch.zeros(len(names), sae.d_sae, dtype=torch.float64, device=device)
    for rows, x in stream("activations", activations, device):
        feature_acts = sae.encode(x)
        fires = feature_acts > 0
        # Less the training mean, sums of squares keep their precision.
        u = (x - sae.mean).double()
        y = (sae.decode(feature_acts) - sae.mean).double()
        columns = [x.norm(dim=1), fires.sum(1), (u - y).square().sum(1)]
        columns += [u.square().sum(1), y.square().sum(1), (u * y).sum(1)]
        per_row[rows] = torch.stack(columns, dim=1).cpu().numpy()
        group = torch.from_numpy(codes[rows]).to(device)
        u_sum.index_add_(0, group, u)
        y_sum.index_add_(0, group, y)
        n_fired.index_add_(0, group, fires.double())

    frame = pd.DataFrame(per_row, columns=["norm", "l0", "error2", "u2", "y2", "uy"])
    sums = [value.cpu().numpy() for value in (u_sum, y_sum, n_fired)]
    lines = {"all": _card_line(frame, *(value.sum(0) for value in sums))}
    if groups is not None:
        for code, name in enumerate(names):
            lines[name] = _card_line(frame[codes == code], *(v[code] for v in sums))
    table = pd.DataFrame.from_dict(lines, orient="index").astype({"n_rows": int})
    l0 = table["l0_mean"].drop("all")
    if len(l0) > 1 and l0.max() > 1.2 * l0.min():
        warnings.warn(
            f"mean L0 differs between groups by more than 20 %: {l0.min():.1f} in "
            f"{str(l0.idxmin())!r}, {l0.max():.1f} in {str(l0.idxmax())!r}",
            stacklevel=2,
        )
    return Card(
        table=table,
        density=sums[2].sum(0) / n_rows,
        decoder_cosine=_nearest_cosine(sae.W_dec).cpu().numpy(),
    )


def _card_line(
    rows: pd.DataFrame, u_sum: np.ndarray, y_sum: np.ndarray, n_fired: np.ndarray
) -> dict[str, float]:
    """Return one line of the card from the row-wise numbers of :func:`evaluate`."""
    n_rows, total = len(rows), rows.sum()
    offset, cross = u_sum @ u_sum / n_rows, u_sum @ y_sum / n_rows
    along = total["uy"] - cross  # 0 where every reconstruction is the same
    length = total["y2"] - 2 * cross + offset
    return {
        "n_rows": n_rows,
        "norm_mean": rows["norm"].mean(),
        "norm_sd": rows["norm"].std(ddof=0),
        "fvu": total["error2"] / (total["u2"] - offset),
        "shrinkage": 1 - length / along if along else np.nan,
        "l0_mean": rows["l0"].mean(),
        "l0_sd": rows["l0"].std(ddof=0),
        "dead_percent": 100 * (n_fired == 0).mean(),
    }


def _nearest_cosine(directions: torch.Tensor) -> torch.Tensor:
    """Return each row's largest cosine with another row, a block of rows at a time."""
    unit = F.normalize(directions, dim=1)
    nearest = []
    for first in range(0, len(unit), CHUNK_ROWS):
        cosine = unit[first : first + CHUNK_ROWS] @ unit.T
        row = torch.arange(len(cosine), device=unit.device)
        cosine[row, first + row] = -1.0
        nearest.append(cosine.max(1).values)
    return torch.cat(nearest)
