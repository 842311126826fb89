"""Motifs that resemble each other, as archetypes: groups that are one discovery.

Structural families are no substitute: JASPAR has 195 profiles of "more than 3 adjacent
zinc fingers" that share no motif, and two names for the EBF family. Clustering matrices
follows Vierstra et al. (2020, Nature 583:729). `helpers.motifs` is the public face of
this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from helpers.motifs._files import Motif

__all__ = ["closest_motif", "motif_similarity", "with_archetypes"]

_MIN_SIMILARITY = 0.7  # mean within an archetype, where two clusters join


def motif_similarity(first: Sequence[Motif], second: Sequence[Motif]) -> np.ndarray:
    """Compare motifs in their best alignment.

    Parameters
    ----------
    first, second : sequence of Motif
        Motifs to compare.

    Returns
    -------
    numpy.ndarray, shape (len(first), len(second)), float32
        Cosine of both matrices, less 0.25, at the best offset on either strand.
        Positions that one of them lacks count as zeros there, so a part is less like
        the whole than the whole, by what the rest says.

    Raises
    ------
    ValueError
        If one of them is empty.
    """
    if not first or not second:
        raise ValueError("there must be motifs on both sides")
    width = max(motif.width for motif in (*first, *second))
    a, b = _padded(first, width), _padded(second, width)
    best = np.zeros((len(a), len(b)), dtype=np.float32)
    for strand in (b, b[:, ::-1, ::-1]):
        for offset in range(1 - width, width):
            of_a = a[:, max(offset, 0) : width + min(offset, 0)].reshape(len(a), -1)
            of_b = strand[:, max(-offset, 0) : width - max(offset, 0)]
            np.maximum(best, of_a @ of_b.reshape(len(b), -1).T, out=best)
    return best


def _padded(motifs: Sequence[Motif], width: int) -> np.ndarray:
    """Centered matrices of norm 1, filled up with zeros, (n_motifs, width, 4)."""
    padded = np.zeros((len(motifs), width, 4), dtype=np.float32)
    for row, motif in zip(padded, motifs, strict=True):
        centered = motif.probabilities - 0.25
        row[: motif.width] = centered / max(np.linalg.norm(centered), 1e-12)
    return padded


def closest_motif(motif: Motif, collection: Sequence[Motif]) -> tuple[Motif, float]:
    """Return the motif of a collection that resembles another most.

    Parameters
    ----------
    motif : Motif
        To be named.
    collection : sequence of Motif
        Known motifs.

    Returns
    -------
    tuple of Motif and float
        The closest, and its `motif_similarity`.

    Raises
    ------
    ValueError
        If the collection is empty.
    """
    similarity = motif_similarity([motif], collection)[0]
    best = int(similarity.argmax())
    return collection[best], float(similarity[best])


def with_archetypes(motifs: Sequence[Motif]) -> list[Motif]:
    """Group motifs by similarity, and make the group the family of each.

    Clusters join while the mean `motif_similarity` between their motifs is at least
    0.7 (average linkage).

    Parameters
    ----------
    motifs : sequence of Motif
        A collection.

    Returns
    -------
    list of Motif
        The same motifs in the same order; ``family`` is the name of the motif in the
        middle of the archetype, the one most similar to the others.
    """
    if len(motifs) < 2:
        return [replace(motif, family=motif.name) for motif in motifs]
    similarity = motif_similarity(motifs, motifs)
    distance = 1 - np.maximum(similarity, similarity.T)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(np.maximum(distance, 0), checks=False), "average")
    cluster = fcluster(tree, 1 - _MIN_SIMILARITY, criterion="distance")
    families = [""] * len(motifs)
    taken: set[str] = set()
    for label in dict.fromkeys(cluster.tolist()):
        own = np.flatnonzero(cluster == label)
        middle = motifs[own[similarity[np.ix_(own, own)].sum(axis=1).argmax()]]
        name = middle.name if middle.name not in taken else f"{middle.name} {middle.id}"
        taken.add(name)
        for i in own:
            families[i] = name
    return [replace(m, family=f) for m, f in zip(motifs, families, strict=True)]
