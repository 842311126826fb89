"""The genome of a simulated world: sequence with motif instances, and genes.

Token arrays run over the whole genome, chromosome after chromosome; a token is 128 bp.
`helpers.simulate` is the public face of this module.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers import motifs
from helpers.motifs import Motif
from helpers.simulate._biology import DOMAIN_TOKENS, TOKEN_BP, World, biology

__all__ = ["SimulatedGenome", "simulate_genome"]

HIT_P_VALUE = 5e-5  # of a motif hit on one strand
N_DECOYS, MIN_DECOY_WIDTH = 35, 9  # motifs that nothing was planted with
POOL_SIZE, POOL_DRAWS, POOL_MARGIN_BITS = 256, 200, 0.5  # instances clear the threshold

GC_BETA = (14, 17)  # GC content of a domain: mean 0.45, SD 0.09
GENE_SPACING_TOKENS = 128
GENE_BODY_TOKENS = (16, 64)
SITE_SHARE = 0.28  # of tokens that carry motif instances
OWN_PROGRAMME_SHARE = 0.5  # of sites near a gene, a factor of its programme
PARTNER_SHARE = 0.3  # of sites that carry a second factor
MAIN_COPIES, PARTNER_COPIES = (2, 4), (1, 3)  # half-open


@dataclass(frozen=True)
class SimulatedGenome:
    """Sequence and genes of a world.

    Attributes
    ----------
    codes : numpy.ndarray, shape (n_tokens, 128), uint8
        Bases 0 to 3 for A, C, G, T.
    planted : numpy.ndarray, shape (n_tokens,)
        First factor planted in a token, an index of the factor table; -1 for none.
    motifs : list of Motif
        Planted motifs and decoys, in the order of their identifiers.
    factor_idx : list of int
        Position in ``motifs`` of every factor, in the order of the factor table.
    hits : numpy.ndarray, shape (n_tokens, n_motifs)
        Motif hits of both strands, by scanning the finished sequence.
    gc : numpy.ndarray, shape (n_tokens,)
        GC content.
    chrom_of, start_of : numpy.ndarray, shape (n_tokens,)
        Index of the chromosome, and position on it in bp.
    genes : pandas.DataFrame
        ``name``, ``strand``, ``programme`` (empty: none), ``tss``, ``first`` and
        ``past``: the token of the transcription start, and the half-open range of
        tokens of the gene with its start.
    """

    codes: np.ndarray
    planted: np.ndarray
    motifs: list[Motif]
    factor_idx: list[int]
    hits: np.ndarray
    gc: np.ndarray
    chrom_of: np.ndarray
    start_of: np.ndarray
    genes: pd.DataFrame

    @property
    def factor_hits(self) -> np.ndarray:
        """Hits of the planted factors, shape (n_tokens, n_factors)."""
        return self.hits[:, self.factor_idx]


def simulate_genome(world: World) -> SimulatedGenome:
    """Draw the genes and the sequence of a world, and scan it for motifs."""
    collection, factor_idx = _motif_collection()
    random = world.random("instances")
    pools = [_instances(collection[i], random) for i in factor_idx]
    n_tokens = world.tokens_per_chromosome
    genes, codes, planted = [], [], []
    for i, chrom in enumerate(world.chromosomes):
        here = _genes(world, chrom)
        sequence, first = _chromosome(world, chrom, here, pools)
        positions = ["tss", "first", "past"]
        here[positions] += i * n_tokens
        genes.append(here)
        codes.append(sequence)
        planted.append(first)
    tokens = np.concatenate(codes)
    return SimulatedGenome(
        codes=tokens,
        planted=np.concatenate(planted),
        motifs=collection,
        factor_idx=factor_idx,
        hits=motifs.count_hits(tokens, collection, p_value=HIT_P_VALUE),
        gc=((tokens == 1) | (tokens == 2)).mean(axis=1),
        chrom_of=np.repeat(np.arange(world.n_chromosomes), n_tokens),
        start_of=np.tile(np.arange(n_tokens) * TOKEN_BP, world.n_chromosomes),
        genes=pd.concat(genes, ignore_index=True),
    )


def _motif_collection() -> tuple[list[Motif], list[int]]:
    """Return the motifs of the world's motif file and which of them are planted."""
    jaspar = {m.id: m for m in motifs.jaspar_vertebrates()}
    identifiers = [factor["jaspar"] for factor in biology()["factors"]]
    planted = [jaspar[i] for i in identifiers]
    names = {m.name.upper() for m in planted}
    others = [m for m in jaspar.values() if m.name.upper() not in names]
    picked = np.linspace(0, len(others) - 1, N_DECOYS).astype(int)
    decoys = [others[i] for i in picked if others[i].width >= MIN_DECOY_WIDTH]
    collection = sorted(planted + decoys, key=lambda m: m.id)
    order = [m.id for m in collection]
    return collection, [order.index(i) for i in identifiers]


def _genes(world: World, chrom: str) -> pd.DataFrame:
    """Place a gene about every 16 kb; most belong to a programme."""
    random = world.random("genes", chrom)
    n, spacing = world.tokens_per_chromosome, GENE_SPACING_TOKENS
    tss = np.arange(spacing // 4, n - spacing // 2, spacing)
    tss = tss + random.integers(0, spacing // 4, len(tss))
    programme = random.choice([*biology()["programmes"], ""], len(tss))
    strand = random.choice(["+", "-"], len(tss))
    body = random.integers(*GENE_BODY_TOKENS, len(tss))
    forward = strand == "+"
    return pd.DataFrame(
        {
            "name": [f"{chrom.upper()}G{i + 1}" for i in range(len(tss))],
            "strand": strand,
            "programme": programme,
            "tss": tss,
            "first": np.where(forward, tss, tss - body).clip(0),
            "past": np.where(forward, tss + body, tss + 1).clip(max=n),
        }
    )


def _instances(motif: Motif, random: np.random.Generator) -> np.ndarray:
    """Draw words that pass the scanning threshold, shape (size, width), both strands.

    Raises
    ------
    ValueError
        If no word of the motif passes.
    """
    threshold = motifs.score_threshold(motif, HIT_P_VALUE)
    edges = np.cumsum(motif.probabilities, axis=1)
    draws = random.random((POOL_DRAWS * POOL_SIZE, motif.width, 1))
    codes = (draws > edges[None]).sum(axis=2).clip(0, 3)
    log_odds = np.log2(np.maximum(motif.probabilities, 1e-3) / 0.25)
    score = log_odds[np.arange(motif.width), codes].sum(axis=1)
    passed = codes[score >= threshold + POOL_MARGIN_BITS][:POOL_SIZE]
    if len(passed) == 0:
        raise ValueError(f"motif {motif.id} has no word of p <= {HIT_P_VALUE}")
    flip = random.random(len(passed)) < 0.5
    passed[flip] = 3 - passed[flip, ::-1]
    return passed


def _chromosome(
    world: World, chrom: str, genes: pd.DataFrame, pools: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return base codes and, per token, the first planted factor (-1: none)."""
    random = world.random("sequence", chrom)
    n = world.tokens_per_chromosome
    codes = _background(n, random)
    factors, programmes = biology()["factors"], biology()["programmes"]
    by_programme = {
        p: [i for i, f in enumerate(factors) if f["programme"] == p] for p in programmes
    }
    promoter_factor = [f["name"] for f in factors].index("NRF1")
    tss = genes["tss"].to_numpy()
    nearest = np.abs(np.arange(n)[:, None] - tss[None]).argmin(axis=1)
    programme = genes["programme"].to_numpy()[nearest]
    promoters = set(tss)
    planted = np.full(n, -1)
    for t in range(n):
        if t in promoters:
            main = promoter_factor
        elif random.random() >= SITE_SHARE:
            continue
        elif programme[t] and random.random() < OWN_PROGRAMME_SHARE:
            main = random.choice(by_programme[programme[t]])
        else:
            main = random.integers(len(factors))
        chosen = [main] * int(random.integers(*MAIN_COPIES))
        if random.random() < PARTNER_SHARE:
            partner = random.integers(len(factors))
            chosen += [partner] * int(random.integers(*PARTNER_COPIES))
        _plant(codes[t], [random.choice(pools[f]) for f in chosen], random)
        planted[t] = main
    return codes, planted


def _background(n_tokens: int, random: np.random.Generator) -> np.ndarray:
    """Draw bases of one GC content per domain, shape (n_tokens, 128)."""
    gc = random.beta(*GC_BETA, n_tokens // DOMAIN_TOKENS)
    gc = np.repeat(gc, DOMAIN_TOKENS)[:, None]
    draws = random.random((n_tokens, TOKEN_BP))
    codes = (draws > (1 - gc) / 2).astype(np.uint8)  # past A
    codes += draws > 0.5  # past C
    codes += draws > 0.5 + gc / 2  # past G
    return codes


def _plant(
    token: np.ndarray, instances: list[np.ndarray], random: np.random.Generator
) -> None:
    """Write instances into a token in order, without overlap; the last may not fit."""
    free = len(token) - sum(map(len, instances))
    while free < 0:
        free += len(instances.pop())
    gaps = np.sort(random.integers(0, free + 1, len(instances)))
    used = 0
    for gap, instance in zip(gaps, instances, strict=True):
        start = gap + used
        token[start : start + len(instance)] = instance
        used += len(instance)
