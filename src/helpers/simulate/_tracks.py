"""The tracks of a simulated biosample: openness, cut sites, peaks, chromatin states.

Token arrays run over the whole genome, chromosome after chromosome; a token is 128 bp.
`helpers.simulate` is the public face of this module.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.simulate._biology import DOMAIN_TOKENS, TOKEN_BP, World, activity

__all__ = [
    "Track",
    "chromatin_states",
    "peaks",
    "runs",
    "simulate_openness",
    "simulate_track",
]

BASE = -4.5  # logit of a token without a motif
EFFECT = (0.0, 1.2, 4.5, 6.5)  # added by 0, 1, 2, >= 3 hits: clusters cooperate
BACKGROUND, AMPLITUDE = 0.25, 40.0  # cuts per token, closed and fully open, depth 1
DISPERSION = 20.0  # size of the negative binomial
DOMAIN_SD, SITE_SD = 0.6, 0.3  # of the logit; biosamples share half of the domains'
BLOCK_SD, BLOCK_TOKENS = 0.1, 512
LEVEL_SD, LEVEL_TOKENS = 0.7, 64  # of the log rate: copy number, compartments
GC_CENTER = 0.45
SUMMIT_SD_BP = 24
PEAK_SD = 6.0  # Poisson SD above the median
OPEN, WEAK, PROMOTER_OPEN, SILENT_DOMAIN = 0.5, 0.2, 0.3, 0.25  # openness of states


class Track(NamedTuple):
    """What one biosample shows.

    Attributes
    ----------
    openness : numpy.ndarray, shape (n_tokens,)
        Between 0 and 1.
    expected : numpy.ndarray, shape (n_tokens,)
        Cuts expected at the depth of the biosample.
    counts : numpy.ndarray, shape (n_tokens,)
        Cuts drawn.
    cuts : numpy.ndarray, shape (counts.sum(),)
        Positions of the cuts, sorted, as if the chromosomes were joined.
    """

    openness: np.ndarray
    expected: np.ndarray
    counts: np.ndarray
    cuts: np.ndarray


def simulate_openness(
    world: World, biosample: pd.Series, factor_hits: np.ndarray
) -> np.ndarray:
    """Return the openness of every token in a biosample.

    Parameters
    ----------
    world : World
        The world.
    biosample : pandas.Series
        A row of the biosample table.
    factor_hits : numpy.ndarray, shape (n_tokens, n_factors)
        Motif hits of the planted factors.

    Returns
    -------
    numpy.ndarray, shape (n_tokens,)
        Between 0 and 1.
    """
    noise, _ = _noise(world, biosample["name"], len(factor_hits))
    effect = np.array(EFFECT)[np.minimum(factor_hits, len(EFFECT) - 1)]
    logit = BASE + effect @ activity(world, biosample) + noise
    return 1 / (1 + np.exp(-logit))


def _noise(world: World, name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the noise of a biosample's tokens: of the logit, and of the log rate."""
    own = world.random("site", name)
    shared = world.random("site", "shared")
    size = n // DOMAIN_TOKENS
    domains = own.normal(size=size) + shared.normal(size=size)
    domains = np.sqrt(0.5) * DOMAIN_SD * domains
    blocks = own.normal(0, BLOCK_SD, -(-n // BLOCK_TOKENS))
    logit = np.repeat(domains, DOMAIN_TOKENS) + np.repeat(blocks, BLOCK_TOKENS)[:n]
    logit += own.normal(0, SITE_SD, n)
    # A mean of 1 on the scale of the rate: levels move signal, they do not add any.
    level = own.normal(-(LEVEL_SD**2) / 2, LEVEL_SD, -(-n // LEVEL_TOKENS))
    return logit, np.repeat(level, LEVEL_TOKENS)[:n]


def simulate_track(
    world: World, biosample: pd.Series, factor_hits: np.ndarray, gc: np.ndarray
) -> Track:
    """Draw the cuts of a biosample; the arguments are those of `simulate_openness`.

    ``gc`` is the GC content of every token, shape (n_tokens,).
    """
    openness = simulate_openness(world, biosample, factor_hits)
    _, level = _noise(world, biosample["name"], len(gc))
    log_rate = level + biosample["gc_slope"] * (gc - GC_CENTER)
    rate = biosample["depth"] * np.exp(log_rate)
    expected = rate * (BACKGROUND + AMPLITUDE * openness)
    random = world.random("counts", biosample["name"])
    noise = random.gamma(DISPERSION, 1 / DISPERSION, len(expected))
    counts = random.poisson(expected * noise)
    cuts = _cut_sites(counts, openness, world.random("cuts", biosample["name"]))
    return Track(openness, expected, counts, cuts)


def _cut_sites(
    counts: np.ndarray, openness: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Place cuts in their tokens: around a summit, or anywhere if background."""
    token = np.repeat(np.arange(len(counts)), counts)
    in_peak = AMPLITUDE * openness / (BACKGROUND + AMPLITUDE * openness)
    peaked = random.random(len(token)) < in_peak[token]
    summit = random.normal(TOKEN_BP / 2, SUMMIT_SD_BP, len(token))
    offset = np.where(
        peaked,
        np.clip(summit, 0, TOKEN_BP - 1),
        random.integers(0, TOKEN_BP, len(token)),
    )
    return np.sort(token * TOKEN_BP + offset.astype(np.int64))


def runs(values: np.ndarray, chrom_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return first and past-the-end index of runs of equal value on one chromosome."""
    change = (values[1:] != values[:-1]) | (chrom_of[1:] != chrom_of[:-1])
    edges = np.concatenate([[0], np.flatnonzero(change) + 1, [len(values)]])
    return edges[:-1], edges[1:]


def peaks(counts: np.ndarray, chrom_of: np.ndarray) -> pd.DataFrame:
    """Call runs of tokens with far more cuts than the median token.

    Parameters
    ----------
    counts, chrom_of : numpy.ndarray, shape (n_tokens,)
        Cuts, and the chromosome, of every token.

    Returns
    -------
    pandas.DataFrame
        ``first`` and ``past`` token, ``summit`` (token of most cuts), ``cuts``.
    """
    median = max(np.median(counts), 0.5)
    is_peak = counts > median + PEAK_SD * np.sqrt(median)
    first, past = runs(is_peak, chrom_of)
    first, past = first[is_peak[first]], past[is_peak[first]]
    spans = [counts[a:b] for a, b in zip(first, past, strict=True)]
    summit = [a + span.argmax() for a, span in zip(first, spans, strict=True)]
    return pd.DataFrame(
        {
            "first": first,
            "past": past,
            "summit": np.array(summit, dtype=np.int64),
            "cuts": np.array([span.sum() for span in spans], dtype=np.int64),
        }
    )


def chromatin_states(openness: np.ndarray, genes: pd.DataFrame) -> np.ndarray:
    """Return the state of every token by openness and genes.

    Parameters
    ----------
    openness : numpy.ndarray, shape (n_tokens,)
        Between 0 and 1.
    genes : pandas.DataFrame
        Genes with their tokens ``tss``, ``first``, ``past``.

    Returns
    -------
    numpy.ndarray, shape (n_tokens,)
        Number of the state in Roadmap's 18-state model.
    """
    tss = genes["tss"].to_numpy()
    in_gene, transcribed = np.zeros((2, len(openness)), dtype=bool)
    for first, past, promoter in zip(
        genes["first"], genes["past"], openness[tss], strict=True
    ):
        in_gene[first:past] = True
        transcribed[first:past] |= promoter > PROMOTER_OPEN
    domain = openness.reshape(-1, DOMAIN_TOKENS).max(axis=1)
    silent = np.repeat(domain < SILENT_DOMAIN, DOMAIN_TOKENS)
    state = np.full(len(openness), 18)  # Quies
    state[silent & ~in_gene] = 17  # ReprPCWk
    state[in_gene] = 6  # TxWk
    state[transcribed] = 5  # Tx
    state[(openness > WEAK) & (openness <= OPEN)] = 11  # EnhWk
    state[openness > OPEN] = 9  # EnhA1
    state[(openness > OPEN) & in_gene] = 7  # EnhG1
    state[tss] = np.where(openness[tss] > PROMOTER_OPEN, 1, 14)  # TssA, TssBiv
    return state
