"""Probes that read few numbers of a code."""

import numpy as np
import pytest
from scipy import optimize, special

from helpers.sparse_probes import _auc, _logistic_weights, sparse_probe


def drawn(n=2_000, width=6, seed=0):
    """Codes in which number 2 tells class b, numbers 3 and 4 together class c."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(list("abc"), size=n)
    code = rng.normal(size=(n, width))
    code[:, 2] += 3 * (labels == "b")
    code[:, [3, 4]] += 0.8 * (labels == "c")[:, None]
    return code, labels


def test_sparse_probe_reads_what_is_there():
    table = sparse_probe(*drawn(), *drawn(seed=1), n_numbers=(1, 2, 6, 9))
    auc = table.pivot_table("auc", "label", "n_numbers")
    assert list(auc.columns) == [1, 2, 6]
    # Two normals 3 SD apart: P(X > Y) = Phi(3 / sqrt 2).
    assert auc.loc["b", 1] == pytest.approx(special.ndtr(3 / 2**0.5), abs=0.01)
    assert auc.loc["c", 1] < auc.loc["c", 2] - 0.03
    code, labels = drawn(seed=1)
    shuffled = np.random.default_rng(3).permutation(labels)
    chance = sparse_probe(*drawn(), code, shuffled, n_numbers=(1, 6))
    assert chance["auc"].between(0.45, 0.55).all()


def test_sparse_probe_ranks_by_training_rows_alone():
    code, labels = drawn()
    test, test_labels = drawn(seed=1)
    test[:, 0] = test_labels == "b"  # perfect, but not in training
    table = sparse_probe(code, labels, test, test_labels, n_numbers=(1,))
    assert table.set_index("label").loc["b", "auc"] < 0.995


def test_two_classes_have_one_row_and_separable_ones_finite_weights():
    code = np.linspace(-1, 1, 50)[:, None]
    labels = np.where(code[:, 0] > 0, "up", "down")
    table = sparse_probe(code, labels, code, labels, n_numbers=(1,))
    assert list(table["label"]) == ["up"]
    assert table["auc"].item() == 1
    assert np.isfinite(_logistic_weights(code, labels == "up")).all()


def test_a_silent_feature_is_no_obstacle():
    code, labels = drawn()
    code[:, 0] = 0.0
    table = sparse_probe(code, labels, code, labels, n_numbers=(6,))
    assert table["auc"].between(0.5, 1).all()


def test_logistic_weights_minimize_the_penalized_loss():
    code, labels = drawn(n=300)
    y = labels == "b"

    def objective(weights):
        logits = weights[0] + code @ weights[1:]
        loss = np.logaddexp(0, logits).mean() - (logits * y).mean()
        return loss + 0.5e-3 * (weights[1:] ** 2).sum()

    best = optimize.minimize(objective, np.zeros(7), tol=1e-10).x
    np.testing.assert_allclose(_logistic_weights(code, y), best[1:], atol=2e-3)


def test_auc_equals_counting_pairs():
    rng = np.random.default_rng(0)
    score, inside = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.4
    wins = [(a > b) + 0.5 * (a == b) for a in score[inside] for b in score[~inside]]
    assert _auc(score, inside) == pytest.approx(np.mean(wins))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.array(["a"])}, r"train_labels \(n,\)"),
        ({"test": np.zeros((2_000, 5))}, "equally wide; got 6 and 5"),
        ({"test_labels": np.full(2_000, "a")}, "same two or more classes"),
        ({"train_labels": np.full(2_000, "a")}, "same two or more classes"),
    ],
)
def test_sparse_probe_names_what_is_wrong(change, message):
    code, labels = drawn()
    given = {"train": code, "train_labels": labels, "test": code, "test_labels": labels}
    with pytest.raises(ValueError, match=message):
        sparse_probe(**(given | change))
