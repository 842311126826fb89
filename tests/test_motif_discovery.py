"""Motifs learned from sequences with planted sites, and from sequences without any."""

import numpy as np
import pytest

from helpers import motifs


def random_codes(n, rng):
    return rng.integers(0, 4, (n, 100), dtype=np.uint8)


def plant(codes, matrix, rng, share=0.6):
    """Put a site into a share of the sequences, on either strand."""
    for row in np.flatnonzero(rng.random(len(codes)) < share):
        site = np.array([rng.choice(4, p=p) for p in matrix], dtype=np.uint8)
        site = site if rng.random() < 0.5 else 3 - site[::-1]
        at = rng.integers(10, 90 - len(site))
        codes[row, at : at + len(site)] = site
    return codes


@pytest.fixture(scope="module")
def known():
    return {m.name.upper(): m for m in motifs.jaspar_vertebrates()}


@pytest.mark.parametrize("name", ["SPI1", "CTCF", "TP53", "EBF1"])
def test_discover_motif_finds_what_was_planted(known, name):
    rng = np.random.default_rng(sum(map(ord, name)))
    targets = plant(random_codes(200, rng), known[name].probabilities, rng)
    found = motifs.discover_motif(targets, random_codes(800, rng), name="mine")
    assert found.log_p < -20
    assert found.fold > 3
    assert found.n_sites > 40
    others = [m for m in known.values() if m.width >= 8]
    closest, likeness = motifs.closest_motif(found.motif, others)
    # JASPAR knows some families by two names, as "EBF-related" and another one.
    assert closest.family == known[name].family or name[:3] in closest.name.upper()
    assert likeness > 0.7
    assert motifs.closest_motif(found.motif, [known[name]])[1] > 0.7


def test_discover_motif_is_calibrated_without_a_motif():
    rng = np.random.default_rng(4)
    p_values = [
        np.exp(
            motifs.discover_motif(random_codes(60, rng), random_codes(240, rng)).log_p
        )
        for _ in range(60)
    ]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.1
    assert min(p_values) > 1e-4


def test_discover_motif_passes_over_unknown_bases(known):
    rng = np.random.default_rng(5)
    targets = plant(random_codes(120, rng), known["SPI1"].probabilities, rng)
    targets[rng.random(targets.shape) < 0.01] = 4
    targets[:3] = 4  # all N
    found = motifs.discover_motif(targets, random_codes(400, rng))
    assert found.log_p < -10


def test_discover_motif_rejects_what_it_cannot_use():
    rng = np.random.default_rng(6)
    enough = random_codes(20, rng)
    with pytest.raises(ValueError, match="targets must be uint8 codes of at least 20"):
        motifs.discover_motif(enough[:5], enough)
    with pytest.raises(ValueError, match="background must be uint8"):
        motifs.discover_motif(enough, enough.astype(np.int64))
    with pytest.raises(ValueError, match="of one length, at least 14; got 100 and 90"):
        motifs.discover_motif(enough, enough[:, :90])
    with pytest.raises(ValueError, match="at least 14; got 10 and 10"):
        motifs.discover_motif(enough[:, :10], enough[:, :10])
