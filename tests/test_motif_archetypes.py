"""Similarity of motifs against a slow loop, and the archetypes of JASPAR."""

import numpy as np
import pytest

from helpers import motifs
from helpers.motifs import Motif


def random_motif(name, width, rng):
    return Motif(name, name, rng.dirichlet(np.full(4, 0.3), width))


def similarity_by_loop(a, b):
    best = 0
    x, y = a.probabilities - 0.25, b.probabilities - 0.25
    for strand in (y, y[::-1, ::-1]):
        for offset in range(-len(x), len(y) + 1):
            pairs = [(i, i + offset) for i in range(len(x)) if 0 <= i + offset < len(y)]
            best = max(best, sum(x[i] @ strand[j] for i, j in pairs))
    return best / np.sqrt((x**2).sum() * (y**2).sum())


def test_motif_similarity_equals_a_loop_over_alignments():
    rng = np.random.default_rng(0)
    first = [random_motif(f"a{i}", w, rng) for i, w in enumerate((4, 9, 12))]
    second = [random_motif(f"b{i}", w, rng) for i, w in enumerate((6, 15))]
    expected = [[similarity_by_loop(a, b) for b in second] for a in first]
    found = motifs.motif_similarity(first, second)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(np.diag(motifs.motif_similarity(first, first)), 1, 1e-5)
    with pytest.raises(ValueError, match="motifs on both sides"):
        motifs.motif_similarity(first, [])


def test_closest_motif_sees_offsets_and_both_strands():
    rng = np.random.default_rng(7)
    whole, other = random_motif("whole", 10, rng), random_motif("other", 10, rng)
    turned = Motif("turned", "turned", whole.probabilities[2:][::-1, ::-1])
    closest, likeness = motifs.closest_motif(whole, [other, turned])
    assert closest is turned
    size = [((m.probabilities - 0.25) ** 2).sum() for m in (turned, whole)]
    assert likeness == pytest.approx((size[0] / size[1]) ** 0.5)


def test_with_archetypes_groups_what_looks_alike():
    rng = np.random.default_rng(1)
    families = [random_motif(f"f{i}", 12, rng) for i in range(3)]
    collection = []
    for i in range(12):
        middle = families[i % 3].probabilities
        noisy = 0.9 * middle + 0.1 * rng.dirichlet(np.ones(4), 12)
        turned = noisy[::-1, ::-1] if i % 2 else noisy[1:]
        collection.append(Motif(f"m{i}", f"m{i}", turned, family="x"))
    grouped = motifs.with_archetypes(collection)
    assert [m.id for m in grouped] == [m.id for m in collection]
    of = [m.family for m in grouped]
    assert len(set(of)) == 3
    assert all(of[i] == of[i % 3] for i in range(12))
    assert set(of) <= {m.name for m in collection}


def test_with_archetypes_keeps_few_motifs_apart():
    rng = np.random.default_rng(2)
    alone = random_motif("alone", 8, rng)
    assert [m.family for m in motifs.with_archetypes([alone])] == ["alone"]
    assert motifs.with_archetypes([]) == []
    same_name = [
        Motif("id1", "TF", np.eye(4)[[0, 1, 2, 3, 0, 1]]),
        Motif("id2", "TF", np.eye(4)[[0, 0, 0, 0, 0, 0]]),
    ]
    families = [m.family for m in motifs.with_archetypes(same_name)]
    assert families == ["TF", "TF id2"]


def test_archetypes_of_jaspar_are_those_of_the_field():
    grouped = motifs.with_archetypes(motifs.jaspar_vertebrates())
    of = {m.name.upper(): m.family for m in reversed(grouped)}
    for alike in (
        ("EBF1", "EBF3"),  # under two structural families
        ("RUNX1", "RUNX2", "RUNX3"),
        ("HNF4A", "HNF4G"),
        ("FOXA1", "FOXA2"),
        ("GATA1", "GATA4"),
        ("TP53", "TP63"),
    ):
        assert len({of[name] for name in alike}) == 1
    for apart in (("CTCF", "ZNF143"), ("RUNX1", "CEBPA"), ("EBF1", "HNF4A")):
        assert len({of[name] for name in apart}) == 2
    assert 200 < len({m.family for m in grouped}) < 400
