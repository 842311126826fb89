"""Simulated worlds with planted truth, written in the formats of real data.

A world is a genome whose sequence carries motif instances (real JASPAR matrices), a set
of biosamples in which the planted factors are more or less active, and the files a real
study would have: FASTA, one bigWig of cut-site counts per biosample, peaks, chromatin
states, genes, GO:BP gene sets, motifs, motif activity and tissue YAMLs. Nothing
downstream knows that they were simulated. What was planted is in ``truth/``.

A token is 128 bp. The openness of token ``t`` in biosample ``s`` has the logit::

    eta = BASE + sum_m activity[m, s] * EFFECT[hits[t, m]] + domain + block + site

with ``hits`` counted by scanning the finished sequence, so a chance motif opens chromatin
as a planted one does; cut counts are negative binomial around
``depth * gc * (BACKGROUND + AMPLITUDE * sigmoid(eta))``.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pybigtools
import pysam
import yaml

from helpers import motifs, states

__all__ = ["KINDS", "World", "biosample_table", "factor_table", "write_world"]

KINDS = ("planted", "no-effect", "depth-only", "motif-vector-only", "composition-only")
TOKEN_BP = 128
CONTEXTS = ("in_vitro", "in_vivo")

_HIT_P_VALUE = 5e-5  # of a motif hit on one strand
_EFFECT = np.array([0.0, 1.2, 4.5, 6.5])  # logit by hits in a token: clusters cooperate
_BASE = -4.5
_BACKGROUND, _AMPLITUDE = 0.25, 40.0  # cuts per token, closed and fully open, depth 1
_DISPERSION = 20.0  # size of the negative binomial
_DOMAIN_TOKENS, _DOMAIN_SD = 32, 0.6  # 4-kb domains, half of the variance shared
_BLOCK_SD, _SITE_SD = 0.1, 0.3
_SUMMIT_SD_BP = 24
_CUTS_PER_TOKEN = 3.0  # depth to which declared scales normalize every track
_WIDEN_BP = 5  # cut sites are widened by readers as EpiBERT's pipeline does
_DECOYS = 35  # motifs in the motif file that nothing was planted with


@dataclass(frozen=True)
class World:
    """Size and kind of a simulated world.

    Attributes
    ----------
    kind : str
        ``planted``, or a null world: ``no-effect`` (contexts differ in nothing),
        ``depth-only`` (tissue tracks are scaled by 1.6), ``motif-vector-only`` (only
        the motif activity differs), ``composition-only`` (tissues hold 40 % of another
        lineage).
    n_chromosomes : int
        At least 20: chromosomes are the units of the train/test split.
    windows_per_chromosome : int
        Windows of ``window_bp`` that tile a chromosome.
    window_bp : int
        Multiple of 128.
    n_replicates : int
        Further biosamples of each study condition, for placebo contrasts.
    seed : int
        Seed of the genome and of all noise. The biology does not depend on it.
    """

    kind: str = "planted"
    n_chromosomes: int = 24
    windows_per_chromosome: int = 32
    window_bp: int = 8192
    n_replicates: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}; got {self.kind!r}")
        if self.n_chromosomes < 20:
            raise ValueError(
                f"n_chromosomes must be at least 20; got {self.n_chromosomes}"
            )
        if self.window_bp % (TOKEN_BP * 32) or self.window_bp <= 0:
            raise ValueError(
                f"window_bp must be a multiple of {TOKEN_BP * 32}; got {self.window_bp}"
            )
        if self.windows_per_chromosome < 4:
            raise ValueError(
                "windows_per_chromosome must be at least 4; "
                f"got {self.windows_per_chromosome}"
            )
        if self.n_replicates < 0:
            raise ValueError(f"n_replicates must be >= 0; got {self.n_replicates}")

    @property
    def chromosomes(self) -> list[str]:
        """Chromosome names, ``sim1`` onwards."""
        return [f"sim{i + 1}" for i in range(self.n_chromosomes)]

    @property
    def tokens_per_chromosome(self) -> int:
        """Number of 128-bp tokens of a chromosome."""
        return self.windows_per_chromosome * self.window_bp // TOKEN_BP

    def random(self, *labels: str) -> np.random.Generator:
        """Return the generator of one labelled part, independent of every other part."""
        return np.random.default_rng(
            [self.seed, *(zlib.crc32(label.encode()) for label in labels)]
        )


@cache
def _biology() -> dict:
    resource = resources.files("helpers") / "resources" / "planted_world.yml"
    return yaml.safe_load(resource.read_text(encoding="utf-8"))


def factor_table() -> pd.DataFrame:
    """Return the planted factors.

    Returns
    -------
    pandas.DataFrame
        One row per factor: ``name``, ``jaspar`` (matrix identifier), ``role``,
        ``lineages`` (comma-separated, empty = all), ``programme``.
    """
    table = pd.DataFrame(_biology()["factors"])
    table["lineages"] = [
        ",".join(x) if isinstance(x, list) else "" for x in table["lineages"]
    ]
    return table


def biosample_table(world: World) -> pd.DataFrame:
    """Return the biosamples of a world with their nuisances.

    Parameters
    ----------
    world : World
        The world; its kind removes or adds differences between the contexts.

    Returns
    -------
    pandas.DataFrame
        One row per biosample: ``name``, ``lineage``, ``context``, ``replicate`` (0 is
        the study's own), ``training`` (the small model may learn from it), ``depth``
        (relative), ``gc_slope`` (log rate per unit GC), ``mixed_in`` and ``fraction``
        (a second lineage inside a tissue), ``handling`` (AP-1 activity added by
        dissociating the tissue).
    """
    biology = _biology()
    rows = []
    for group in ("study", "unseen", "training"):
        for lineage in biology[group]:
            n = world.n_replicates + 1 if group == "study" else 1
            rows += [
                (lineage, context, replicate, group)
                for context in CONTEXTS
                for replicate in range(n)
            ]
    table = pd.DataFrame(rows, columns=["lineage", "context", "replicate", "group"])
    table.insert(
        0,
        "name",
        table["lineage"]
        + "_"
        + table["context"]
        + np.where(table["replicate"] > 0, "_r" + table["replicate"].astype(str), ""),
    )
    table["training"] = (table["group"] != "unseen") & (table["replicate"] == 0)
    random = [world.random("biosample", name) for name in table["name"]]
    planted = world.kind == "planted"
    tissue = (table["context"] == "in_vivo").to_numpy()
    table["depth"] = [2 ** r.uniform(-1, 1) if planted else 1.0 for r in random]
    table["gc_slope"] = [r.normal(0, 0.8) if planted else 0.0 for r in random]
    everyone = biology["study"] + biology["training"]
    table["mixed_in"] = [
        r.choice([x for x in everyone if x != own])
        for r, own in zip(random, table["lineage"], strict=True)
    ]
    fraction = [r.uniform(0.1, 0.3) if planted else 0.0 for r in random]
    table["fraction"] = np.where(tissue, fraction, 0.0)
    if world.kind == "composition-only":
        table["fraction"] = np.where(tissue, 0.4, 0.0)
    if world.kind == "depth-only":
        table["depth"] = np.where(tissue, 1.6, 1.0)
    handled = planted & tissue & (table["lineage"] == "liver")
    table["handling"] = np.where(handled, 0.4, 0.0)
    return table.drop(columns="group")


def _activity(world: World, biosample: pd.Series) -> np.ndarray:
    """Return the activity of every factor in a biosample, shape (n_factors,)."""
    inactive = _biology()["inactive"]

    def of(lineage: str, context: str) -> np.ndarray:
        values = []
        for factor in _biology()["factors"]:
            role, here = factor["role"], lineage in factor.get("lineages", [lineage])
            wanted = {"vitro": "in_vitro", "vivo": "in_vivo"}.get(role.split("-")[-1])
            values.append(here and wanted in (None, context))
        return np.where(values, 1.0, inactive)

    own = biosample["lineage"]
    if world.kind == "planted":
        pure, other = (
            of(own, biosample["context"]),
            of(biosample["mixed_in"], biosample["context"]),
        )
    else:  # contexts do not differ: the mean activity stands in both
        pure = (of(own, "in_vitro") + of(own, "in_vivo")) / 2
        mixed = biosample["mixed_in"]
        other = (of(mixed, "in_vitro") + of(mixed, "in_vivo")) / 2
    activity = (1 - biosample["fraction"]) * pure + biosample["fraction"] * other
    names = [factor["name"] for factor in _biology()["factors"]]
    activity[names.index("AP-1")] += biosample["handling"]
    jitter = world.random("activity", biosample["name"]).normal(0, 0.1, len(activity))
    return np.clip(activity * np.exp(jitter), 0, 1.2)


def _genes(world: World, chrom: str) -> pd.DataFrame:
    """Place a gene about every 16 kb; most belong to a programme."""
    random = world.random("genes", chrom)
    spacing = 128
    starts = np.arange(spacing // 4, world.tokens_per_chromosome - spacing // 2, spacing)
    tss = starts + random.integers(0, spacing // 4, len(starts))
    names = [f"{chrom.upper()}G{i + 1}" for i in range(len(tss))]
    programmes = random.choice([*_biology()["programmes"], ""], len(tss))
    return pd.DataFrame(
        {
            "chrom": chrom,
            "tss_token": tss,
            "name": names,
            "programme": programmes,
            "strand": random.choice(["+", "-"], len(tss)),
            "body_tokens": random.integers(16, 64, len(tss)),
        }
    )


class _Planter:
    """Draws motif instances that pass the scanning threshold."""

    def __init__(self, planted: list[motifs.Motif], random: np.random.Generator):
        self.random = random
        self.pools = [self._pool(motif) for motif in planted]

    def _pool(self, motif: motifs.Motif, size: int = 256) -> np.ndarray:
        """Return instances as base codes, shape (size, width), both strands."""
        threshold = motifs.score_threshold(motif, _HIT_P_VALUE)
        if not np.isfinite(threshold):
            raise ValueError(f"motif {motif.id} cannot reach p <= {_HIT_P_VALUE}")
        edges = np.cumsum(motif.probabilities, axis=1)
        draws = self.random.random((200 * size, motif.width, 1))
        codes = (draws > edges[None]).sum(axis=2).clip(0, 3)
        log_odds = np.log2(np.maximum(motif.probabilities, 1e-3) / 0.25)
        score = log_odds[np.arange(motif.width), codes].sum(axis=1)
        passed = codes[score >= threshold + 0.5][:size]
        flip = self.random.random(len(passed)) < 0.5
        passed[flip] = 3 - passed[flip, ::-1]
        return passed

    def plant(self, token: np.ndarray, factors: list[int]) -> None:
        """Write one instance per entry of ``factors`` into a token, without overlap."""
        instances = [self.random.choice(self.pools[f]) for f in factors]
        free = len(token) - sum(map(len, instances))
        while free < 0:
            free += len(instances.pop())
        gaps = np.sort(self.random.integers(0, free + 1, len(instances)))
        position = 0
        for gap, instance in zip(gaps, instances, strict=True):
            start = gap + position
            token[start : start + len(instance)] = instance
            position += len(instance)


def _chromosome(
    world: World, chrom: str, genes: pd.DataFrame, planter: _Planter
) -> tuple[np.ndarray, np.ndarray]:
    """Return base codes and, per token, the first planted factor (-1: none)."""
    random = planter.random = world.random("sequence", chrom)
    n = world.tokens_per_chromosome
    gc = np.repeat(random.beta(14, 17, n // _DOMAIN_TOKENS), _DOMAIN_TOKENS)
    draws = random.random((n, TOKEN_BP))
    gc = gc[:, None]
    codes = (draws > (1 - gc) / 2).astype(np.uint8)
    codes += draws > 0.5
    codes += draws > 0.5 + gc / 2
    factors = _biology()["factors"]
    by_programme = {
        p: [i for i, f in enumerate(factors) if f["programme"] == p]
        for p in _biology()["programmes"]
    }
    nearest = np.abs(
        np.arange(n)[:, None] - genes["tss_token"].to_numpy()[None]
    ).argmin(axis=1)
    programme = genes["programme"].to_numpy()[nearest]
    invariant = by_programme["splicing"]
    planted = np.full(n, -1)
    promoters = set(genes["tss_token"])
    for t in range(n):
        if t in promoters:
            main = invariant[1]
        elif random.random() >= 0.28:
            continue
        elif programme[t] and random.random() < 0.5:
            main = random.choice(by_programme[programme[t]])
        else:
            main = random.integers(len(factors))
        chosen = [main] * random.integers(2, 4)
        if random.random() < 0.3:
            chosen += [random.integers(len(factors))] * random.integers(1, 3)
        planter.plant(codes[t], chosen)
        planted[t] = main
    return codes, planted


def _expected_cuts(
    world: World, biosample: pd.Series, hits: np.ndarray, gc: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return openness and expected cuts per token at the biosample's depth."""
    n = len(hits)
    own = world.random("site", biosample["name"])
    shared = world.random("site", "shared")
    domains = n // _DOMAIN_TOKENS
    domain = np.sqrt(0.5) * _DOMAIN_SD * (own.normal(size=domains) + shared.normal(size=domains))
    blocks = own.normal(0, _BLOCK_SD, -(-n // 512))
    logit = _BASE + _EFFECT[np.minimum(hits, 3)] @ _activity(world, biosample)
    logit += np.repeat(domain, _DOMAIN_TOKENS) + np.repeat(blocks, 512)[:n]
    logit += own.normal(0, _SITE_SD, n)
    openness = 1 / (1 + np.exp(-logit))
    rate = biosample["depth"] * np.exp(biosample["gc_slope"] * (gc - 0.45))
    return openness, rate * (_BACKGROUND + _AMPLITUDE * openness)


def _cut_sites(
    world: World, name: str, counts: np.ndarray, openness: np.ndarray
) -> np.ndarray:
    """Return sorted genome positions of cuts: open chromatin has a summit."""
    random = world.random("cuts", name)
    token = np.repeat(np.arange(len(counts)), counts)
    in_peak = _AMPLITUDE * openness / (_BACKGROUND + _AMPLITUDE * openness)
    peaked = random.random(len(token)) < in_peak[token]
    offset = np.where(
        peaked,
        np.clip(random.normal(TOKEN_BP / 2, _SUMMIT_SD_BP, len(token)), 0, TOKEN_BP - 1),
        random.integers(0, TOKEN_BP, len(token)),
    )
    return np.sort(token * TOKEN_BP + offset.astype(np.int64))


def _chromatin_states(
    openness: np.ndarray, near_tss: np.ndarray, in_gene: np.ndarray, active: np.ndarray
) -> np.ndarray:
    """Return the Roadmap 18-state number of every token."""
    state = np.full(len(openness), 18)  # Quies
    domain = openness.reshape(-1, _DOMAIN_TOKENS).max(axis=1)
    silent = np.repeat(domain < 0.25, _DOMAIN_TOKENS)
    state[silent & ~in_gene] = 17  # ReprPCWk
    state[in_gene] = 6  # TxWk
    state[in_gene & active] = 5  # Tx
    state[(openness > 0.2) & (openness <= 0.5)] = 11  # EnhWk
    state[openness > 0.5] = 9  # EnhA1
    state[(openness > 0.5) & in_gene] = 7  # EnhG1
    state[near_tss] = np.where(openness[near_tss] > 0.3, 1, 14)  # TssA, TssBiv
    return state


def _bed(path: Path, table: pd.DataFrame) -> None:
    table.to_csv(path, sep="\t", header=False, index=False)


def _runs(values: np.ndarray, chrom_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return first and past-the-end index of runs of equal value on one chromosome."""
    change = (values[1:] != values[:-1]) | (chrom_of[1:] != chrom_of[:-1])
    edges = np.concatenate([[0], np.flatnonzero(change) + 1, [len(values)]])
    return edges[:-1], edges[1:]


class _Writer:
    """Writes the files of one world; token arrays run over the whole genome."""

    def __init__(self, world: World, folder: Path):
        self.world, self.folder = world, folder
        self.factors = factor_table()
        collection = {m.id: m for m in motifs.jaspar_vertebrates()}
        planted = [collection[i] for i in self.factors["jaspar"]]
        names = {m.name.upper() for m in planted}
        others = [m for m in collection.values() if m.name.upper() not in names]
        picked = np.linspace(0, len(others) - 1, _DECOYS).astype(int)
        decoys = [others[i] for i in picked if others[i].width >= 9]
        self.motifs = sorted(planted + decoys, key=lambda m: m.id)
        order = [m.id for m in self.motifs]
        self.factor_idx = [order.index(i) for i in self.factors["jaspar"]]
        self._planted = planted

    def genome(self) -> None:
        """Write FASTA, motifs and genes; keep hits and GC of every token."""
        world = self.world
        planter = _Planter(self._planted, world.random("instances"))
        genes, codes, planted = [], [], []
        for chrom in world.chromosomes:
            genes.append(_genes(world, chrom))
            sequence, first = _chromosome(world, chrom, genes[-1], planter)
            codes.append(sequence)
            planted.append(first)
        self.genes = pd.concat(genes, ignore_index=True)
        self.planted = np.concatenate(planted)
        tokens = np.concatenate(codes)
        with open(self.folder / "genome.fa", "w", encoding="ascii") as fasta:
            for chrom, sequence in zip(world.chromosomes, codes, strict=True):
                letters = np.frombuffer(b"ACGT", dtype="S1")[sequence.reshape(-1, 64)]
                lines = letters.view("S64").ravel().astype(str)
                fasta.write(f">{chrom}\n" + "\n".join(lines) + "\n")
        pysam.faidx(str(self.folder / "genome.fa"))
        self.hits = motifs.count_hits(tokens, self.motifs, p_value=_HIT_P_VALUE)
        self.gc = ((tokens == 1) | (tokens == 2)).mean(axis=1)
        n = world.tokens_per_chromosome
        self.chrom_of = np.repeat(np.arange(world.n_chromosomes), n)
        self.start_of = np.tile(np.arange(n) * TOKEN_BP, world.n_chromosomes)
        motifs.write_meme(
            self.folder / "motifs.meme",
            self.motifs,
            header_comment="Matrices: JASPAR 2026 CORE vertebrates, CC BY 4.0, "
            "https://jaspar.elixir.no",
        )
        self._annotation()

    def _annotation(self) -> None:
        """Write genes, gene sets and windows."""
        genes, n = self.genes, self.world.tokens_per_chromosome
        forward = genes["strand"] == "+"
        first = np.where(
            forward, genes["tss_token"], genes["tss_token"] - genes["body_tokens"]
        ).clip(0)
        last = np.where(
            forward, genes["tss_token"] + genes["body_tokens"], genes["tss_token"] + 1
        ).clip(max=n)
        self.gene_tokens = first, last
        bed = genes[["chrom"]].assign(
            start=first * TOKEN_BP, end=last * TOKEN_BP, name=genes["name"], score=0
        )
        _bed(self.folder / "genes.bed", bed.assign(strand=genes["strand"]))
        random = self.world.random("gene sets")
        lines = []
        for programme, term in _biology()["programmes"].items():
            inside = (genes["programme"] == programme).to_numpy()
            member = random.random(len(genes)) < np.where(inside, 0.9, 0.02)
            lines.append((f"{term['name']} ({term['go']})", member))
        for go, name in _biology()["unplanted_terms"].items():
            lines.append((f"{name} ({go})", random.random(len(genes)) < 0.06))
        with open(self.folder / "go_bp.gmt", "w", encoding="utf-8") as gmt:
            for term, member in lines:
                gmt.write("\t".join([term, "", *genes["name"][member]]) + "\n")
        world = self.world
        per_block = max(1, world.windows_per_chromosome // 4)
        roles = np.array(["select"] * 12 + ["tune"] * 4 + ["test"] * 8)
        roles = roles[np.arange(world.n_chromosomes) * 24 // world.n_chromosomes]
        index = np.arange(world.n_chromosomes * world.windows_per_chromosome)
        chrom, position = np.divmod(index, world.windows_per_chromosome)
        windows = pd.DataFrame(
            {
                "chrom": np.array(world.chromosomes)[chrom],
                "start": position * world.window_bp,
                "end": (position + 1) * world.window_bp,
                "split": roles[chrom],
            }
        )
        windows["block"] = [
            f"{c}:{p // per_block}" for c, p in zip(windows["chrom"], position, strict=True)
        ]
        windows.to_csv(self.folder / "windows.tsv", sep="\t", index=False)

    def biosample(self, biosample: pd.Series) -> tuple[dict, np.ndarray, np.ndarray]:
        """Write the files of a biosample; return its YAML entry, hits in peaks, truth."""
        world, name = self.world, biosample["name"]
        openness, expected = _expected_cuts(
            world, biosample, self.hits[:, self.factor_idx], self.gc
        )
        random = world.random("counts", name)
        counts = random.poisson(
            expected * random.gamma(_DISPERSION, 1 / _DISPERSION, len(expected))
        )
        self._bigwig(name, _cut_sites(world, name, counts, openness))
        scaled = world.kind != "depth-only"
        total = counts.sum() if scaled else len(counts) * _CUTS_PER_TOKEN
        scale = len(counts) * _CUTS_PER_TOKEN / total / (2 * _WIDEN_BP + 1)
        open_tokens = self._peaks(name, counts)
        self._states(name, openness)
        entry = {
            "name": name,
            "signal": f"{name}.bw",
            "signal_kind": "cut_sites",
            "scale": float(f"{scale:.6g}"),
            "peaks": f"{name}.peaks.bed",
            "motif_activity": f"{name}.motifs.tsv",
            "states": f"{name}.states.bed",
            "seen_in_training": bool(biosample["training"]),
        }
        return entry, open_tokens, expected * scale * (2 * _WIDEN_BP + 1)

    def _bigwig(self, name: str, cuts: np.ndarray) -> None:
        world = self.world
        length = world.tokens_per_chromosome * TOKEN_BP
        position, count = np.unique(cuts, return_counts=True)
        chrom, start = np.divmod(position, length)
        names = np.array(world.chromosomes)[chrom]
        writer = pybigtools.open(str(self.folder / f"{name}.bw"), "w")
        writer.write(
            {c: length for c in world.chromosomes},
            zip(
                names.tolist(),
                start.tolist(),
                (start + 1).tolist(),
                count.astype(float).tolist(),
                strict=True,
            ),
        )

    def _peaks(self, name: str, counts: np.ndarray) -> np.ndarray:
        """Write runs of tokens with far more cuts than the median level; return them."""
        level = max(np.median(counts), 0.5) + 6 * np.sqrt(max(np.median(counts), 0.5))
        is_peak = counts > level
        first, past = _runs(is_peak, self.chrom_of)
        keep = is_peak[first]
        first, past = first[keep], past[keep]
        signal = np.add.reduceat(counts, first) if len(first) else counts[:0]
        signal = np.array([counts[a:b].sum() for a, b in zip(first, past, strict=True)])
        summit = [a + counts[a:b].argmax() for a, b in zip(first, past, strict=True)]
        table = pd.DataFrame(
            {
                "chrom": np.array(self.world.chromosomes)[self.chrom_of[first]],
                "start": self.start_of[first],
                "end": self.start_of[past - 1] + TOKEN_BP,
                "name": [f"{name}_{i}" for i in range(len(first))],
                "score": signal,
            }
        )
        _bed(self.folder / f"{name}.peaks.bed", table)
        return np.asarray(summit, dtype=np.int64)

    def _states(self, name: str, openness: np.ndarray) -> None:
        n = self.world.tokens_per_chromosome
        offset = np.array([self.world.chromosomes.index(c) for c in self.genes["chrom"]]) * n
        near_tss = np.zeros(len(openness), dtype=bool)
        near_tss[offset + self.genes["tss_token"].to_numpy()] = True
        in_gene, active = np.zeros((2, len(openness)), dtype=bool)
        promoter = openness[offset + self.genes["tss_token"].to_numpy()] > 0.3
        for a, b, on in zip(
            self.gene_tokens[0] + offset, self.gene_tokens[1] + offset, promoter, strict=True
        ):
            in_gene[a:b] = True
            active[a:b] |= on
        state = _chromatin_states(openness, near_tss, in_gene, active)
        first, past = _runs(state, self.chrom_of)
        names = np.array(list(states.ROADMAP_18))
        table = pd.DataFrame(
            {
                "chrom": np.array(self.world.chromosomes)[self.chrom_of[first]],
                "start": self.start_of[first],
                "end": self.start_of[past - 1] + TOKEN_BP,
                "state": names[state[first] - 1],
            }
        )
        _bed(self.folder / f"{name}.states.bed", table)

    def motif_activity(self, peaks: dict[str, np.ndarray]) -> None:
        """Write a SEA-like table per biosample: its peaks against all peaks."""
        hit = self.hits > 0
        background = hit[np.unique(np.concatenate(list(peaks.values())))]
        for name, tokens in peaks.items():
            table = motifs.sea_table(hit[tokens], background, self.motifs)
            path = self.folder / f"{name}.motifs.tsv"
            table.to_csv(path, sep="\t", index=False)


def _tissue(lineage: str, entries: dict[str, dict], table: pd.DataFrame) -> dict:
    """Return the content of a tissue YAML."""
    rows = table[table["lineage"] == lineage]
    own = rows[rows["replicate"] == 0].set_index("context")["name"]
    tissue = {
        "tissue": lineage,
        "assembly": "simulated",
        "genome": "../genome.fa",
        "windows": "../windows.tsv",
        "motifs": "../motifs.meme",
        "genes": "../genes.bed",
        "gene_sets": "../go_bp.gmt",
    }

    def relative(name: str) -> dict:
        files = ("signal", "peaks", "motif_activity", "states")
        return {k: f"../{v}" if k in files else v for k, v in entries[name].items()}

    for context in CONTEXTS:
        tissue[context] = relative(own[context])
    tissue["replicates"] = [
        {"context": row.context, **relative(row.name_)}
        for row in rows[rows["replicate"] > 0].rename(columns={"name": "name_"}).itertuples()
    ]
    return tissue


def write_world(
    folder: str | Path,
    world: World | None = None,
    *,
    lineages: list[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write a simulated world in the formats of real data.

    The folder appears complete or not at all: files are written beside it and the
    whole is renamed at the end.

    Parameters
    ----------
    folder : str or Path
        Folder to make; an existing one is replaced.
    world : World, optional
        Size and kind; the default is the planted world of the book.
    lineages : list of str, optional
        Lineages to write; all by default. The genome does not depend on them.
    progress : callable, optional
        Called with a line of text for every biosample written.

    Returns
    -------
    Path
        The folder. ``tissues/<lineage>.yml`` describe the pairs; ``truth/`` holds
        ``factors.tsv``, ``biosamples.tsv``, ``activity.tsv`` (factor x biosample),
        ``sites.parquet`` (per token: planted factor, hits of each factor) and
        ``expected.parquet`` (per token and biosample: expected scaled signal without
        count noise); ``world.json`` the parameters.
    """
    world = world or World()
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for sub in ("tissues", "truth"):
        (partial / sub).mkdir(parents=True)
    writer = _Writer(world, partial)
    writer.genome()
    table = biosample_table(world)
    if lineages is not None:
        unknown = sorted(set(lineages) - set(table["lineage"]))
        if unknown:
            raise ValueError(f"unknown lineages {unknown}; the world has {sorted(set(table['lineage']))}")
        table = table[table["lineage"].isin(lineages)].reset_index(drop=True)
    entries, peaks, expected = {}, {}, {}
    for _, biosample in table.iterrows():
        name = biosample["name"]
        entries[name], peaks[name], expected[name] = writer.biosample(biosample)
        if progress:
            progress(f"{name}: {len(peaks[name])} peaks")
    writer.motif_activity(_vector_peaks(world, writer, table, peaks))
    for lineage in table["lineage"].unique():
        text = yaml.safe_dump(_tissue(lineage, entries, table), sort_keys=False)
        (partial / "tissues" / f"{lineage}.yml").write_text(text, encoding="utf-8")
    _write_truth(partial / "truth", writer, table, expected)
    (partial / "world.json").write_text(json.dumps(asdict(world)), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _vector_peaks(
    world: World, writer: _Writer, table: pd.DataFrame, peaks: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the peaks behind each motif vector.

    In the motif-vector-only world they are those of the planted world, so that the
    vector tells the contexts apart while the tracks do not.
    """
    if world.kind != "motif-vector-only":
        return peaks
    planted = World(**{**asdict(world), "kind": "planted"})
    found = {}
    for _, biosample in biosample_table(planted).iterrows():
        if biosample["name"] in peaks:
            openness, _ = _expected_cuts(
                planted, biosample, writer.hits[:, writer.factor_idx], writer.gc
            )
            found[biosample["name"]] = np.flatnonzero(openness > 0.5)
    return found


def _write_truth(
    folder: Path, writer: _Writer, table: pd.DataFrame, expected: dict[str, np.ndarray]
) -> None:
    writer.factors.to_csv(folder / "factors.tsv", sep="\t", index=False)
    table.to_csv(folder / "biosamples.tsv", sep="\t", index=False)
    names = writer.factors["name"]
    activity = pd.DataFrame(
        {b["name"]: _activity(writer.world, b) for _, b in table.iterrows()}, index=names
    )
    activity.to_csv(folder / "activity.tsv", sep="\t")
    tokens = pd.DataFrame(
        {
            "chrom": np.array(writer.world.chromosomes)[writer.chrom_of],
            "start": writer.start_of,
            "planted": np.where(
                writer.planted < 0, "", names.to_numpy()[writer.planted]
            ),
        }
    )
    hits = pd.DataFrame(
        writer.hits[:, writer.factor_idx].astype(np.int8), columns=names.to_list()
    )
    pd.concat([tokens, hits], axis=1).to_parquet(folder / "sites.parquet")
    frame = pd.DataFrame({k: v.astype(np.float32) for k, v in expected.items()})
    pd.concat([tokens[["chrom", "start"]], frame], axis=1).to_parquet(
        folder / "expected.parquet"
    )
