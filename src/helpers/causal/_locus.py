"""Tracks along one window: before, after steering by every dose, and the target."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.causal._moves import Moves
from helpers.causal._registration import registered_windows
from helpers.causal._selection import dictionaries
from helpers.causal._steering import N_TEST
from helpers.causal._sweep import best_dose, moved, steer_all, steering_sweep
from helpers.stages import Study
from helpers.token_classes import token_classes

__all__ = ["SteeredLocus", "steered_locus"]


class SteeredLocus(NamedTuple):
    """Predictions along a window, log1p.

    Attributes
    ----------
    place : str
        Chromosome, start and end, 0-based and half-open.
    lineage : str
        Whose in vitro input is steered.
    layer : int
        Block that is edited.
    alpha : float
        Dose chosen on ``tune``.
    position : numpy.ndarray, shape (n_outputs,)
        Center of every token, bp.
    classes : numpy.ndarray of str, shape (n_outputs,)
        Class of every token.
    base, target : numpy.ndarray, shape (n_outputs,)
        Predictions from the in vitro and the in vivo input.
    steered : dict of float to numpy.ndarray
        Prediction by dose.
    """

    place: str
    lineage: str
    layer: int
    alpha: float
    position: np.ndarray
    classes: np.ndarray
    base: np.ndarray
    target: np.ndarray
    steered: dict[float, np.ndarray]


def steered_locus(study: Study, lineage: str, doses: list[float]) -> SteeredLocus:
    """Steer the ``test`` window with most vivo-up tokens along the SAE direction.

    The window is chosen by measured signal alone, not by what steering does to it.

    Parameters
    ----------
    study : Study
        The run; `helpers.causal.register` must have been called.
    lineage : str
        Lineage whose in vitro input is steered.
    doses : list of float
        Doses to show.

    Raises
    ------
    FileNotFoundError, ValueError
        If the analysis is not registered, or no dose is given.
    """
    if not doses:
        raise ValueError("doses must hold at least one dose; got none")
    windows = registered_windows(study, N_TEST)
    classes = token_classes(study, windows)[lineage]
    chosen = int((classes == "vivo-up").sum(axis=1).argmax())
    window = windows[[chosen]]
    direction = "vitro-to-vivo"
    layer, alpha = best_dose(steering_sweep(study), "SAE", direction)
    moves = Moves(study, {layer: dictionaries(study)[layer]})
    move = moves.of("SAE", layer, lineage, direction)
    edits = {("SAE", dose): moved([move], dose) for dose in doses}
    base, target, steered = steer_all(study, layer, lineage, direction, window, edits)
    crop = study.model.config.crop
    tokens: pd.DataFrame = study.dataset.token_table(window)
    tokens = tokens.iloc[crop : len(tokens) - crop]
    first, last = tokens.iloc[0], tokens.iloc[-1]
    return SteeredLocus(
        f"{first['chrom']}:{first['start']:,}-{last['end']:,}",
        lineage,
        layer,
        alpha,
        (tokens["start"] + tokens["end"]).to_numpy() / 2,
        classes[chosen],
        base[0],
        target[0],
        {dose: reached[0, 0] for (_, dose), reached in steered.items()},
    )
