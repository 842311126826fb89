"""What a code says about its tokens, read from few of its numbers.

k-sparse probing (Gurnee et al. 2023, arXiv 2305.01610): the k numbers that differ most
between a class and the rest on training rows enter a logistic regression, which is
judged on other rows. A concept that one feature holds needs k = 1; one that is spread
over many, as in a stream, needs all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import stats

__all__ = ["sparse_probe"]

_RIDGE = 1e-3  # of standardized numbers: separable classes keep finite weights
_NEWTON_STEPS = 50
_CONVERGED = 1e-7  # of the objective: rankings settle long before the weights


def sparse_probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    n_numbers: Sequence[int] = (1, 2, 4, 8, 16),
) -> pd.DataFrame:
    """Probe a code for the classes of its tokens, each against the rest.

    Parameters
    ----------
    train, test : numpy.ndarray, shapes (n_train, width) and (n_test, width)
        Codes of tokens: features, principal components or raw activations. Test rows
        are of other chromosomes for an honest score.
    train_labels, test_labels : numpy.ndarray of length n_train and n_test
        Class of each row.
    n_numbers : sequence of int
        How many numbers of the code a probe reads; what exceeds the width is left out.

    Returns
    -------
    pandas.DataFrame
        One row per class and number: ``label``, ``n_numbers``, ``auc``, the probability
        that a row of the class scores higher than one of the rest. Of two classes only
        the second is a row, since the first has the same score.

    Raises
    ------
    ValueError
        If shapes disagree, there is one class only, or the two sets of rows do not hold
        the same classes.

    Notes
    -----
    Numbers are ranked by the absolute difference of class means over the standard
    deviation, on training rows. The regression is penalized by 0.001 times the squared
    weights of standardized numbers.
    """
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    for name, code, labels in (
        ("train", train, train_labels),
        ("test", test, test_labels),
    ):
        if code.ndim != 2 or labels.shape != (len(code),):
            raise ValueError(
                f"{name} must have shape (n, width) and {name}_labels (n,); got "
                f"{code.shape} and {labels.shape}"
            )
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"train and test must be equally wide; got {train.shape[1]} and "
            f"{test.shape[1]}"
        )
    classes = np.unique(train_labels)
    if len(classes) < 2 or not np.array_equal(classes, np.unique(test_labels)):
        raise ValueError(
            "train_labels and test_labels must hold the same two or more classes; got "
            f"{list(classes)} and {list(np.unique(test_labels))}"
        )
    width = train.shape[1]
    sizes = sorted({n for n in n_numbers if n <= width})
    mean, sd = train.mean(axis=0, dtype=float), train.std(axis=0, dtype=float)
    sd = np.where(sd > 0, sd, 1.0)
    rows = []
    for label in classes[1:] if len(classes) == 2 else classes:
        is_label = train_labels == label
        inside = train[is_label].mean(axis=0, dtype=float)
        outside = train[~is_label].mean(axis=0, dtype=float)
        order = np.argsort(-np.abs(inside - outside) / sd, kind="stable")
        for n in sizes:
            chosen = order[:n]
            known, new = (
                (code[:, chosen] - mean[chosen]) / sd[chosen] for code in (train, test)
            )
            score = new @ _logistic_weights(known, is_label)
            auc = _auc(score, test_labels == label)
            rows.append({"label": label, "n_numbers": n, "auc": auc})
    return pd.DataFrame(rows)


def _logistic_weights(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the weights of a logistic regression with intercept, by Newton's method.

    The intercept moves no ranking and is not returned. In torch, whose threads sleep
    between small products where those of numpy may spin.
    """
    design = torch.from_numpy(np.column_stack([np.ones(len(x)), x]))
    target = torch.from_numpy(y).to(design)
    penalty = torch.full(design.shape[1:], _RIDGE).to(design)
    penalty[0] = 0.0

    def objective(weights: torch.Tensor) -> float:
        logits = design @ weights
        loss = F.binary_cross_entropy_with_logits(logits, target)
        return float(loss + 0.5 * (penalty * weights**2).sum())

    weights = torch.zeros_like(penalty)
    reached = objective(weights)
    for _ in range(_NEWTON_STEPS):
        p = torch.sigmoid(design @ weights)
        slope = design.T @ (p - target) / len(y) + penalty * weights
        curvature = (design * (p * (1 - p))[:, None]).T @ design / len(y)
        step = torch.linalg.solve(curvature + torch.diag(penalty + 1e-12), slope)
        for _ in range(30):  # a full step may overshoot far from the optimum
            found = objective(weights - step)
            if found <= reached:
                break
            step /= 2
        gained, weights, reached = reached - found, weights - step, found
        if gained < _CONVERGED:
            break
    return weights[1:].numpy()


def _auc(score: np.ndarray, inside: np.ndarray) -> float:
    """Return the probability that a row inside scores higher than one outside."""
    n_in, n_out = int(inside.sum()), int((~inside).sum())
    ranks = stats.rankdata(score)[inside].sum() - n_in * (n_in + 1) / 2
    return float(ranks / (n_in * n_out))
