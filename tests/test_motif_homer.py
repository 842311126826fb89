"""HOMER's known-motif test against the numbers of `homer2` and against slow loops."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from helpers import motifs
from helpers.motifs import Motif

EDGES = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8)
# What `homer2 known -nlen <k> -stat <method>` (HOMER 4, compiled from its source)
# printed for `homer_world`: targets and background with the motif, and ln p.
HOMER2 = {
    ("binomial", 3): [
        (35, 191, -0.371),
        (33, 173, -0.571),
        (35, 153, -2.145),
        (8, 76, -0.014),
        (4, 36, -0.080),
        (4, 5, -4.138),
    ],
    ("binomial", 0): [
        (35, 185, -0.634),
        (33, 174, -0.647),
        (35, 153, -2.379),
        (8, 73, -0.025),
        (4, 36, -0.088),
        (4, 6, -3.612),
    ],
    ("hypergeometric", 3): [
        (35, 191, -0.382),
        (33, 173, -0.566),
        (35, 153, -1.942),
        (8, 76, -0.020),
        (4, 36, -0.090),
        (4, 5, -3.183),
    ],
    ("hypergeometric", 0): [
        (35, 185, -0.623),
        (33, 174, -0.635),
        (35, 153, -2.146),
        (8, 73, -0.033),
        (4, 36, -0.098),
        (4, 6, -2.853),
    ],
}


@pytest.fixture(scope="module")
def homer_world():
    """GC-rich targets, 78 among 500 sequences, and six random motifs."""
    rng = np.random.default_rng(23)
    share = rng.beta(12, 12, 500)  # of G and C
    is_strong = rng.random((500, 81)) < share[:, None]
    strong, weak = rng.integers(1, 3, (500, 81)), rng.choice([0, 3], (500, 81))
    codes = np.where(is_strong, strong, weak).astype(np.uint8)
    is_target = rng.random(500) < share / 3
    rows = np.round(rng.dirichlet(np.full(4, 0.4), (6, 7)), 3)
    rows[..., 3] = 1 - rows[..., :3].sum(axis=-1)
    collection = [
        Motif(f"M{i}", f"M{i}", np.round(np.maximum(m, 0), 3), threshold=3.5 + i / 2)
        for i, m in enumerate(rows)
    ]
    return codes[is_target], codes[~is_target], collection


@pytest.mark.parametrize(("method", "max_k"), HOMER2)
def test_homer_enrichment_gives_homers_digits(homer_world, method, max_k):
    table = motifs.homer_enrichment(*homer_world, method=method, max_k=max_k)
    expected = np.array(HOMER2[method, max_k])
    np.testing.assert_array_equal(np.trunc(table["target_hits"]), expected[:, 0])
    np.testing.assert_array_equal(np.trunc(table["background_hits"]), expected[:, 1])
    np.testing.assert_allclose(table["log_p"], expected[:, 2], atol=5.1e-4)
    assert int(table["n_target"][0]) == 78
    assert int(table["n_background"][0]) == {3: 406, 0: 414}[max_k]
    assert table.attrs["n_rounds"] == {3: 161, 0: 0}[max_k]
    q_values = stats.false_discovery_control(table["p_value"])
    np.testing.assert_allclose(table["q_value"], q_values)


@pytest.mark.skipif(shutil.which("homer2") is None, reason="homer2 is not on PATH")
@pytest.mark.parametrize(("method", "max_k"), HOMER2)
def test_homer2_itself_agrees(homer_world, method, max_k):
    own = motifs.homer_enrichment(*homer_world, method=method, max_k=max_k)
    its = motifs.run_homer2(*homer_world, method=method, max_k=max_k)
    for column in ("target_hits", "n_target", "background_hits", "n_background"):
        np.testing.assert_array_equal(np.trunc(own[column]), its[column])
    np.testing.assert_allclose(own["log_p"], its["log_p"], atol=5.1e-4)


def test_run_homer2_without_homer_says_what_to_do(homer_world, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="homer2 .* homer_enrichment"):
        motifs.run_homer2(*homer_world)


@pytest.mark.parametrize("status", [1, 0])
def test_run_homer2_hands_on_what_homer_says(
    homer_world, monkeypatch, tmp_path, status
):
    program = tmp_path / "homer2"
    program.write_text(f"#!/bin/sh\necho out of memory >&2\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=f"status {status}: out of memory"):
        motifs.run_homer2(*homer_world)


def word_levels(texts, weights, k):
    """Share of words and of their reverse complements, the last word left out."""
    levels = {}
    for text, weight in zip(texts, weights, strict=True):
        words = [text[i : i + k] for i in range(len(text) - k)]
        words = [w for w in words if "N" not in w]
        for word in words:
            levels[word] = levels.get(word, 0) + weight / len(words)
    turned = str.maketrans("ACGT", "TGCA")
    return {
        word: (levels.get(word, 0) + levels.get(word[::-1].translate(turned), 0)) / 2
        for word in levels
    }


def test_homer_weights_equal_a_loop_over_words():
    rng = np.random.default_rng(3)
    codes = rng.choice(5, (60, 30), p=[0.3, 0.22, 0.2, 0.25, 0.03]).astype(np.uint8)
    texts = ["".join("ACGTN"[c] for c in row) for row in codes]
    targets, background = texts[:20], texts[20:]
    gc = [
        np.searchsorted(
            EDGES, (t.count("G") + t.count("C")) / (30 - t.count("N")), "right"
        )
        for t in texts
    ]
    shared = set(gc[:20]) & set(gc[20:])
    kept_t = [i for i in range(20) if gc[i] in shared]
    kept_b = [i for i in range(20, 60) if gc[i] in shared]
    weight = np.zeros(60)
    for i in kept_b:
        t, b = (sum(gc[j] == gc[i] for j in kept) for kept in (kept_t, kept_b))
        weight[i] = round(t / len(kept_t) * len(kept_b) / b, 5)
    plain = motifs.homer_weights(targets, background, max_k=0)
    np.testing.assert_allclose(plain.background, weight[20:], rtol=1e-12)
    np.testing.assert_array_equal(plain.targets, [i in kept_t for i in range(20)])

    def one_round(k):
        target = word_levels([texts[i] for i in kept_t], np.ones(len(kept_t)), k)
        own = word_levels([texts[i] for i in kept_b], weight[kept_b], k)
        words = set(target) | set(own)
        t_total, b_total = sum(target.values()), sum(own.values())
        ratio = {
            w: max(target.get(w, 0), 0.5 / t_total)
            / t_total
            / (max(own.get(w, 0), 0.5 / b_total) / b_total)
            for w in words
        }
        for i in kept_b:
            inside = [texts[i][j : j + k] for j in range(30 - k)]
            inside = [w for w in inside if "N" not in w]
            new = weight[i] * np.mean([ratio[w] for w in inside])
            new = min(max(new, 1e-3), 1e3)
            step = new - weight[i]
            if (step > 0 and new > 1) or (step < 0 and new < 1):
                step /= max(new, 1 / new) ** 2
            weight[i] += step
        return sum((r - 1) ** 2 for r in ratio.values()) / 4

    last = np.inf
    for _ in range(160):
        error = one_round(1)
        if error >= last:
            break
        last = error
    one_round(1)
    tuned = motifs.homer_weights(targets, background, max_k=1)
    np.testing.assert_allclose(tuned.background, weight[20:], rtol=1e-6)


def test_homer_background_follows_the_targets_gc_and_fills_up_from_below():
    target_gc = np.array([0.55] * 30 + [0.42] * 10 + [0.9] * 5)  # no candidate at 0.9
    pool_gc = np.array([0.55] * 20 + [0.47] * 100 + [0.42] * 500)
    drawn = motifs.homer_background(target_gc, pool_gc, n_total=145, random_state=0)
    n_high = int(30 / 40 * 100 + 0.49999999)
    n_low = int(10 / 40 * 100 + 0.49999999)
    taken = pool_gc[drawn]
    assert (taken == 0.55).sum() == 20  # all there are
    assert (taken == 0.42).sum() == n_low + n_high - 20
    assert len(set(drawn)) == len(drawn)
    again = motifs.homer_background(target_gc, pool_gc, n_total=145, random_state=0)
    np.testing.assert_array_equal(drawn, again)
    twice = motifs.homer_background(target_gc, pool_gc, n_total=10, random_state=0)
    assert len(twice) == 45  # as many as targets
    with pytest.raises(ValueError, match="none of 2 background sequences"):
        motifs.homer_background(target_gc, np.array([0.1, 0.3]), random_state=0)


def test_homer_functions_reject_what_they_cannot_use(homer_world):
    targets, background, collection = homer_world
    with pytest.raises(ValueError, match="method must be"):
        motifs.homer_enrichment(targets, background, collection, method="fisher")
    bare = [replace(collection[0], threshold=None)]
    with pytest.raises(ValueError, match="no threshold of its own"):
        motifs.homer_enrichment(targets, background, bare)
    with pytest.raises(ValueError, match="no GC bin holds both"):
        motifs.homer_weights(["AATT"], ["GGCC"])
