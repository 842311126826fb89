"""Outcomes of interventions: how much of a gap is closed, how large an effect is.

Arrays have windows first, (n_windows, ...): outcomes are predicted accessibilities, or
one number per window. Sums run over windows before any ratio is taken, and nothing is
clipped. Intervals come from `helpers.blockstats.block_bootstrap`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = [
    "LOG_FLOOR",
    "EffectSize",
    "GapClosed",
    "OutputRescale",
    "effect_size",
    "gap_closed",
    "gap_terms",
    "output_rescale",
    "poisson_loss",
]

LOG_FLOOR = 1e-7  # inside the logarithm of the loss, as in training


class GapClosed(NamedTuple):
    """How far steering moves a prediction towards its target.

    Attributes
    ----------
    gc2 : float
        1 - ||steered - target||^2 / ||base - target||^2; 1 is perfect, 0 is no
        progress, negative is worse than doing nothing. Equals 2p - p^2 - q^2.
    gc_norm : float
        The same with lengths in place of squares, 1 - sqrt(1 - gc2).
    progress : float
        p, the part of the gap walked along its own direction.
    leakage : float
        q, length moved beside that direction, in units of the gap.
    gc_corr : float
        Share of the missing correlation gained; NaN where a correlation is undefined.
    """

    gc2: float
    gc_norm: float
    progress: float
    leakage: float
    gc_corr: float


def gap_closed(
    base: np.ndarray,
    target: np.ndarray,
    steered: np.ndarray,
    weights: np.ndarray | None = None,
) -> GapClosed:
    """Measure how much of the gap between two predictions an intervention closes.

    All sums run over all windows and tokens (a ratio of sums, never a mean of ratios)
    and nothing is clipped.

    Parameters
    ----------
    base, target, steered : array, shape (n_windows, ...)
        Prediction without the intervention, the one aimed at, the one reached.
    weights : array, broadcastable to base, optional
        Non-negative weights, e.g. a mask of a class of tokens.

    Raises
    ------
    ValueError
        If shapes differ, a value is not finite, or there is no gap to close.
    """
    base, target, steered, weights = _outcomes(base, target, steered, weights)
    gap, moved = target - base, steered - base
    gap_square = _dot(gap, gap, weights)
    if gap_square == 0:
        raise ValueError("target equals base: there is no gap to close")
    progress = _dot(moved, gap, weights) / gap_square
    beside = moved - progress * gap
    missed = steered - target
    remaining = _dot(missed, missed, weights) / gap_square
    before = _correlation(base, target, weights)
    after = _correlation(steered, target, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        gc_corr = np.divide(after - before, 1 - before)
    return GapClosed(
        gc2=float(1 - remaining),
        gc_norm=float(1 - np.sqrt(remaining)),
        progress=float(progress),
        leakage=float(np.sqrt(_dot(beside, beside, weights) / gap_square)),
        gc_corr=float(gc_corr),
    )


def gap_terms(
    base: np.ndarray,
    target: np.ndarray,
    steered: np.ndarray,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Split GC2 into window terms for `block_bootstrap`.

    Parameters are those of `gap_closed`.

    Returns
    -------
    remaining, gap : numpy.ndarray, shape (n_windows,)
        Squared distance to the target after and before; GC2 is one minus the ratio of
        their sums.
    """
    base, target, steered, weights = _outcomes(base, target, steered, weights)
    axes = tuple(range(1, base.ndim))
    remaining = (weights * (steered - target) ** 2).sum(axis=axes)
    return remaining, (weights * (base - target) ** 2).sum(axis=axes)


def _outcomes(*arrays: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Check base, target, steered, weights; return float64 arrays of one shape."""
    *outcomes, weights = arrays
    base, target, steered = (np.asarray(x, dtype=np.float64) for x in outcomes)
    if not base.shape == target.shape == steered.shape or base.ndim == 0:
        raise ValueError(
            "base, target and steered must have one shape (n_windows, ...); got "
            f"{base.shape}, {target.shape}, {steered.shape}"
        )
    weights = np.asarray(1.0 if weights is None else weights, dtype=np.float64)
    weights = np.broadcast_to(weights, base.shape)
    if (weights < 0).any():
        raise ValueError("weights must be non-negative")
    for name, x in zip(
        ("base", "target", "steered", "weights"),
        (base, target, steered, weights),
        strict=True,
    ):
        if not np.isfinite(x).all():
            raise ValueError(f"{name} must be finite; got NaN or infinity")
    return base, target, steered, weights


def _dot(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    return float((weights * x * y).sum())


def _correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted Pearson correlation, NaN if either is constant."""
    x = x - np.average(x, weights=weights)
    y = y - np.average(y, weights=weights)
    scale = np.sqrt(_dot(x, x, weights) * _dot(y, y, weights))
    return _dot(x, y, weights) / scale if scale > 0 else np.nan


def poisson_loss(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return the Poisson loss of every value, as in the training of the model.

    Parameters
    ----------
    predicted, measured : array
        Counts, of shapes that broadcast; up to a constant of the measured values.
    """
    return predicted - measured * np.log(predicted + LOG_FLOOR)


class OutputRescale(NamedTuple):
    """Line through two predictions on the log1p scale; call it on new predictions."""

    intercept: float
    slope: float

    def __call__(self, base: np.ndarray) -> np.ndarray:
        """Predict the target from the base, both on the count scale."""
        return np.expm1(self.intercept + self.slope * np.log1p(np.asarray(base)))


def output_rescale(base: np.ndarray, target: np.ndarray) -> OutputRescale:
    """Fit the baseline every intervention must beat: log1p(target) on log1p(base).

    If two contexts differ by scale only, this line closes the gap without any model.

    Parameters
    ----------
    base, target : array of one shape
        Predicted accessibility (counts, > -1) of the training windows.

    Raises
    ------
    ValueError
        If the shapes differ or the base is constant.
    """
    x, y = (np.log1p(np.asarray(v, dtype=np.float64)).ravel() for v in (base, target))
    if x.shape != y.shape or len(x) < 2 or np.ptp(x) == 0:
        raise ValueError(
            "base and target must have one shape and base must vary; got "
            f"{x.size} and {y.size} values"
        )
    deviation = x - x.mean()
    slope = deviation @ (y - y.mean()) / (deviation @ deviation)
    return OutputRescale(float(y.mean() - slope * x.mean()), float(slope))


class EffectSize(NamedTuple):
    """Effect of the selected features against random sets.

    Attributes
    ----------
    effect : float
        Mean over windows.
    d_z : float
        Paired standardized difference over windows to the mean of the random sets,
        Hedges-corrected. Pairing makes it larger than a d between independent groups.
    z, p : float
        Place of the mean effect in the distribution over random sets; p is
        (1 + hits) / (n_sets + 1).
    per_norm, p_per_norm : float
        Effect per length of changed stream, and its p: is it causal or merely big? NaN
        without norms, or if the selected set changes nothing.
    """

    effect: float
    d_z: float
    z: float
    p: float
    per_norm: float
    p_per_norm: float


def effect_size(
    selected: np.ndarray,
    random: np.ndarray,
    *,
    selected_norm: np.ndarray | None = None,
    random_norm: np.ndarray | None = None,
    alternative: str = "two-sided",
) -> EffectSize:
    """Compare the effect of the selected features with those of matched random sets.

    Parameters
    ----------
    selected : array, shape (n_windows,)
        Change of the outcome by editing the selected set.
    random : array, shape (n_sets, n_windows)
        The same for every random set.
    selected_norm, random_norm : arrays, shapes as above, optional
        Norm of the change of the stream (``Effects.norm``).
    alternative : {"two-sided", "greater", "less"}, default "two-sided"
        Which random effects count as hits: larger in size, larger, or smaller.

    Raises
    ------
    ValueError
        If shapes do not fit, or the alternative is unknown.
    """
    selected, random = np.asarray(selected, float), np.asarray(random, float)
    if selected.ndim != 1 or len(selected) < 3 or random.shape[1:] != selected.shape:
        raise ValueError(
            "selected must have shape (n_windows >= 3,) and random (n_sets, n_windows);"
            f" got {selected.shape} and {random.shape}"
        )
    signs = {"two-sided": np.abs, "greater": np.positive, "less": np.negative}
    if alternative not in signs:
        raise ValueError(
            f"alternative must be one of {set(signs)}; got {alternative!r}"
        )
    size = signs[alternative]

    def p_value(value: float, null: np.ndarray) -> float:
        return float((1 + (size(null) >= size(value)).sum()) / (len(null) + 1))

    effect, null = selected.mean(), random.mean(axis=1)
    difference = selected - random.mean(axis=0)
    hedges = 1 - 3 / (4 * (len(selected) - 1) - 1)
    per_norm = p_per_norm = np.nan
    if selected_norm is not None and random_norm is not None and np.any(selected_norm):
        length = np.asarray(random_norm, float).sum(axis=1)
        # A set that changes nothing has no effect per length either.
        null_per_norm = random.sum(axis=1) / np.where(length > 0, length, 1.0)
        per_norm = float(selected.sum() / np.sum(selected_norm))
        p_per_norm = p_value(per_norm, null_per_norm)
    with np.errstate(divide="ignore", invalid="ignore"):
        d_z = hedges * np.divide(difference.mean(), difference.std(ddof=1))
        z = np.divide(effect - null.mean(), null.std(ddof=1))
    return EffectSize(
        float(effect), float(d_z), float(z), p_value(effect, null), per_norm, p_per_norm
    )
