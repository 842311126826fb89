"""Simulated worlds with planted truth, written in the formats of real data.

A world is a genome whose sequence carries motif instances (real JASPAR matrices), a set
of biosamples in which the planted factors are more or less active, and the files a real
study would have: FASTA, one bigWig of cut-site counts per biosample, peaks, chromatin
states, genes, GO:BP gene sets, motifs, motif activity and tissue YAMLs. Nothing
downstream knows that they were simulated. What was planted is in ``truth/``.

A token is 128 bp. The openness of token ``t`` in biosample ``s`` has the logit::

    eta = BASE + sum_m activity[m, s] * EFFECT[hits[t, m]] + domain + block + site

with ``hits`` counted by scanning the finished sequence, so a chance motif opens
chromatin as a planted one does; cut counts are negative binomial around
``depth * gc * level * (BACKGROUND + AMPLITUDE * sigmoid(eta))``, where ``level`` varies
over 8-kb stretches of every biosample.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pybigtools
import pysam
import yaml

from helpers import motifs, states
from helpers.simulate import _biology as _simulated_biology
from helpers.simulate import _genome as _simulated_genome
from helpers.simulate import _tracks as _simulated_tracks
from helpers.simulate._biology import (
    BIOLOGY_FILE,
    KINDS,
    TOKEN_BP,
    World,
    activity,
    biology,
    biosample_table,
    factor_table,
)
from helpers.simulate._genome import SimulatedGenome, simulate_genome
from helpers.simulate._tracks import (
    chromatin_states,
    peaks,
    runs,
    simulate_openness,
    simulate_track,
)
from helpers.tissues import CONTEXTS

__all__ = [
    "FORMAT",
    "KINDS",
    "World",
    "biosample_table",
    "factor_table",
    "recipe",
    "write_world",
]

FORMAT = 1
"""Version of what a world holds: raised when a change of code alters its files."""

CUTS_PER_TOKEN = 3.0  # depth to which declared scales normalize every track
WIDEN_BP = 5  # readers widen cut sites on both sides, as EpiBERT's pipeline does
BLOCKS_PER_CHROMOSOME = 4
SPLIT = {"select": 12, "tune": 4, "test": 8}  # of every 24 chromosomes
MEMBER_SHARE, STRAY_SHARE, UNPLANTED_SHARE = 0.9, 0.02, 0.06  # of genes, in a set
VECTOR_OPENNESS = 0.5  # of the peaks behind a motif-vector-only world's vectors

_JASPAR_FILE = "jaspar2026_core_vertebrates.meme.gz"
_MOTIF_SOURCE = (
    "Matrices: JASPAR 2026 CORE vertebrates, CC BY 4.0, https://jaspar.elixir.no"
)
_FASTA_LINE = 64
_COMPLETE = "world.json"  # marks a folder that holds a world


class _Sample(NamedTuple):
    """What is kept of a biosample once its files are written."""

    entry: dict  # of the tissue YAML
    summits: np.ndarray  # tokens
    expected: np.ndarray  # scaled signal per token, without count noise


def recipe(world: World) -> dict:
    """Return everything the content of a world depends on.

    Parameters
    ----------
    world : World
        The world. A recipe of files that hold some of its lineages only must name
        them too.

    Returns
    -------
    dict
        JSON types: the ``format`` version, the fields of the ``world``, all
        ``constants`` of noise and effects, and the SHA-256 of the ``biology`` file and
        of the ``motifs`` collection.
    """
    modules = (_simulated_biology, _simulated_genome, _simulated_tracks)
    constants = {
        name: value
        for module in (*modules, sys.modules[__name__])
        for name, value in vars(module).items()
        if name.isupper() and not name.startswith("_")
    }
    for name in ("BIOLOGY_FILE", "CONTEXTS", "FORMAT", "KINDS"):
        del constants[name]
    content = {
        "format": FORMAT,
        "world": asdict(world),
        "constants": constants,
        "biology": _resource_digest(BIOLOGY_FILE),
        "motifs": _resource_digest(_JASPAR_FILE),
    }
    return json.loads(json.dumps(content))  # tuples become lists


def write_world(
    folder: str | Path,
    world: World | None = None,
    *,
    lineages: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write a simulated world in the formats of real data.

    The folder appears complete or not at all: files are written beside it and the
    whole is renamed at the end.

    Parameters
    ----------
    folder : str or Path
        Folder to make; an existing world is replaced.
    world : World, optional
        Size and kind; the default is the planted world of the book.
    lineages : sequence of str, optional
        Lineages to write; all by default. Genome and tracks do not depend on them;
        motif activity does, as its background is all peaks that are written.
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

    Raises
    ------
    ValueError
        If a lineage is unknown, or ``folder`` exists and is not a world.
    """
    world = world or World()
    table = _select(world, lineages)
    folder = Path(folder)
    if folder.exists() and not _is_replaceable(folder):
        raise ValueError(
            f"{folder} exists and is not a simulated world (it has no {_COMPLETE}); "
            "remove it or choose another folder"
        )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name in ("tissues", "truth"):
            (partial / name).mkdir(parents=True)
        _write_files(partial, world, table, progress)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _select(world: World, lineages: Sequence[str] | None) -> pd.DataFrame:
    """Return the biosamples of some lineages."""
    table = biosample_table(world)
    if lineages is None:
        return table
    known = sorted(set(table["lineage"]))
    if len(lineages) == 0 or not set(lineages) <= set(known):
        raise ValueError(
            f"lineages must be one or more of {known}; got {list(lineages)}"
        )
    return table[table["lineage"].isin(lineages)].reset_index(drop=True)


def _resource_digest(name: str) -> str:
    resource = resources.files("helpers") / "resources" / name
    return hashlib.sha256(resource.read_bytes()).hexdigest()


def _is_replaceable(folder: Path) -> bool:
    return folder.is_dir() and (
        (folder / _COMPLETE).is_file() or not any(folder.iterdir())
    )


def _write_files(
    folder: Path,
    world: World,
    table: pd.DataFrame,
    progress: Callable[[str], None] | None,
) -> None:
    genome = simulate_genome(world)
    _write_fasta(folder / "genome.fa", world, genome)
    motifs.write_meme(
        folder / "motifs.meme", genome.motifs, header_comment=_MOTIF_SOURCE
    )
    _windows(world).to_csv(folder / "windows.tsv", sep="\t", index=False)
    _write_genes(folder / "genes.bed", world, genome)
    _write_gene_sets(folder / "go_bp.gmt", world, genome.genes)
    samples = {}
    for _, biosample in table.iterrows():
        name = biosample["name"]
        samples[name] = _write_biosample(folder, world, genome, biosample)
        if progress:
            progress(f"{name}: {len(samples[name].summits)} peaks")
    _write_motif_activity(folder, world, genome, samples)
    for lineage in table["lineage"].unique():
        content = _tissue(lineage, table, samples)
        text = yaml.safe_dump(content, sort_keys=False)
        (folder / "tissues" / f"{lineage}.yml").write_text(text, encoding="utf-8")
    _write_truth(folder / "truth", world, genome, table, samples)
    text = json.dumps(asdict(world))
    (folder / _COMPLETE).write_text(text, encoding="utf-8")


def _write_fasta(path: Path, world: World, genome: SimulatedGenome) -> None:
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)
    with path.open("w", encoding="ascii") as fasta:
        for i, chrom in enumerate(world.chromosomes):
            codes = genome.codes[genome.chrom_of == i]
            lines = letters[codes.reshape(-1, _FASTA_LINE)]
            text = "\n".join(line.tobytes().decode("ascii") for line in lines)
            fasta.write(f">{chrom}\n{text}\n")
    pysam.faidx(str(path))


def _windows(world: World) -> pd.DataFrame:
    """Tile the chromosomes; a chromosome has one split and several blocks."""
    per_chromosome = world.windows_per_chromosome
    index = np.arange(world.n_chromosomes * per_chromosome)
    chrom_idx, position = np.divmod(index, per_chromosome)
    chrom = np.array(world.chromosomes)[chrom_idx]
    splits = np.repeat(list(SPLIT), list(SPLIT.values()))
    block = position // max(1, per_chromosome // BLOCKS_PER_CHROMOSOME)
    return pd.DataFrame(
        {
            "chrom": chrom,
            "start": position * world.window_bp,
            "end": (position + 1) * world.window_bp,
            "split": splits[chrom_idx * len(splits) // world.n_chromosomes],
            "block": [f"{c}:{b}" for c, b in zip(chrom, block, strict=True)],
        }
    )


def _intervals(
    world: World, genome: SimulatedGenome, first: np.ndarray, past: np.ndarray
) -> pd.DataFrame:
    """Return the positions of half-open ranges of tokens."""
    return pd.DataFrame(
        {
            "chrom": np.array(world.chromosomes)[genome.chrom_of[first]],
            "start": genome.start_of[first],
            "end": genome.start_of[np.asarray(past) - 1] + TOKEN_BP,
        }
    )


def _write_bed(path: Path, table: pd.DataFrame) -> None:
    table.to_csv(path, sep="\t", header=False, index=False)


def _write_genes(path: Path, world: World, genome: SimulatedGenome) -> None:
    genes = genome.genes
    bed = _intervals(world, genome, genes["first"], genes["past"])
    _write_bed(path, bed.assign(name=genes["name"], score=0, strand=genes["strand"]))


def _write_gene_sets(path: Path, world: World, genes: pd.DataFrame) -> None:
    """Write a term per programme, which a few other genes join, and random terms."""
    random = world.random("gene sets")
    lines = []
    for programme, term in biology()["programmes"].items():
        own = (genes["programme"] == programme).to_numpy()
        share = np.where(own, MEMBER_SHARE, STRAY_SHARE)
        member = random.random(len(genes)) < share
        lines.append((f"{term['name']} ({term['go']})", member))
    for identifier, name in biology()["unplanted_terms"].items():
        member = random.random(len(genes)) < UNPLANTED_SHARE
        lines.append((f"{name} ({identifier})", member))
    with path.open("w", encoding="utf-8") as gmt:
        for term, member in lines:
            gmt.write("\t".join([term, "", *genes["name"][member]]) + "\n")


def _write_biosample(
    folder: Path, world: World, genome: SimulatedGenome, biosample: pd.Series
) -> _Sample:
    """Write bigWig, peaks and states of a biosample."""
    name = biosample["name"]
    track = simulate_track(world, biosample, genome.factor_hits, genome.gc)
    _write_bigwig(folder / f"{name}.bw", world, track.cuts)

    called = peaks(track.counts, genome.chrom_of)
    bed = _intervals(world, genome, called["first"], called["past"])
    names = [f"{name}_{i}" for i in range(len(called))]
    _write_bed(
        folder / f"{name}.peaks.bed", bed.assign(name=names, cuts=called["cuts"])
    )

    state = chromatin_states(track.openness, genome.genes)
    first, past = runs(state, genome.chrom_of)
    state_names = np.array(list(states.ROADMAP_18))[state[first] - 1]
    bed = _intervals(world, genome, first, past)
    _write_bed(folder / f"{name}.states.bed", bed.assign(state=state_names))

    # Undeclared depth is the point of the depth-only world.
    declared = world.kind != "depth-only"
    wanted = len(track.counts) * CUTS_PER_TOKEN
    normalize = wanted / (track.counts.sum() if declared else wanted)
    widened = 2 * WIDEN_BP + 1  # bases that a cut covers when read
    entry = {
        "name": name,
        "signal": f"{name}.bw",
        "signal_kind": "cut_sites",
        "scale": float(f"{normalize / widened:.6g}"),
        "peaks": f"{name}.peaks.bed",
        "motif_activity": f"{name}.motifs.tsv",
        "states": f"{name}.states.bed",
        "seen_in_training": bool(biosample["training"]),
    }
    return _Sample(entry, called["summit"].to_numpy(), track.expected * normalize)


def _write_bigwig(path: Path, world: World, cuts: np.ndarray) -> None:
    length = world.tokens_per_chromosome * TOKEN_BP
    position, count = np.unique(cuts, return_counts=True)
    chrom_idx, start = np.divmod(position, length)
    chrom = np.array(world.chromosomes)[chrom_idx]
    pybigtools.open(str(path), "w").write(
        dict.fromkeys(world.chromosomes, length),
        zip(
            chrom.tolist(),
            start.tolist(),
            (start + 1).tolist(),
            count.astype(float).tolist(),
            strict=True,
        ),
    )


def _write_motif_activity(
    folder: Path, world: World, genome: SimulatedGenome, samples: dict[str, _Sample]
) -> None:
    """Write a SEA-like table per biosample: its peaks against all peaks."""
    tokens = {name: sample.summits for name, sample in samples.items()}
    if world.kind == "motif-vector-only":
        tokens = _vector_tokens(world, genome, samples)
    hit = genome.hits > 0
    background = hit[np.unique(np.concatenate(list(tokens.values())))]
    for name, own in tokens.items():
        table = motifs.sea_table(hit[own], background, genome.motifs)
        table.to_csv(folder / f"{name}.motifs.tsv", sep="\t", index=False)


def _vector_tokens(
    world: World, genome: SimulatedGenome, samples: dict[str, _Sample]
) -> dict[str, np.ndarray]:
    """Return the tokens that are open in the planted world.

    They are the peaks behind the vectors of the motif-vector-only world, which tell
    the contexts apart while its tracks do not.
    """
    planted = replace(world, kind="planted")
    table = biosample_table(planted).set_index("name", drop=False)
    found = {}
    for name in samples:
        openness = simulate_openness(planted, table.loc[name], genome.factor_hits)
        found[name] = np.flatnonzero(openness > VECTOR_OPENNESS)
    return found


def _tissue(lineage: str, table: pd.DataFrame, samples: dict[str, _Sample]) -> dict:
    """Return the content of a tissue YAML."""

    def relative(name: str) -> dict:
        files = ("signal", "peaks", "motif_activity", "states")
        entry = samples[name].entry
        return {k: f"../{v}" if k in files else v for k, v in entry.items()}

    rows = table[table["lineage"] == lineage]
    pair = rows[rows["replicate"] == 0].set_index("context")["name"]
    further = rows[rows["replicate"] > 0]
    return {
        "tissue": lineage,
        "assembly": "simulated",
        "genome": "../genome.fa",
        "windows": "../windows.tsv",
        "motifs": "../motifs.meme",
        "genes": "../genes.bed",
        "gene_sets": "../go_bp.gmt",
        **{context: relative(pair[context]) for context in CONTEXTS},
        "replicates": [
            {"context": context, **relative(name)}
            for context, name in zip(further["context"], further["name"], strict=True)
        ],
    }


def _write_truth(
    folder: Path,
    world: World,
    genome: SimulatedGenome,
    table: pd.DataFrame,
    samples: dict[str, _Sample],
) -> None:
    factors = factor_table()
    names = factors["name"]
    factors.to_csv(folder / "factors.tsv", sep="\t", index=False)
    table.to_csv(folder / "biosamples.tsv", sep="\t", index=False)
    level = {row["name"]: activity(world, row) for _, row in table.iterrows()}
    pd.DataFrame(level, index=names).to_csv(folder / "activity.tsv", sep="\t")
    tokens = pd.DataFrame(
        {
            "chrom": np.array(world.chromosomes)[genome.chrom_of],
            "start": genome.start_of,
        }
    )
    first = np.append(names.to_numpy(dtype=object), "")[genome.planted]  # -1: none
    hits = pd.DataFrame(genome.factor_hits.astype(np.int8), columns=names.to_list())
    sites = pd.concat([tokens.assign(planted=first), hits], axis=1)
    sites.to_parquet(folder / "sites.parquet")
    expected = pd.DataFrame(
        {name: sample.expected.astype(np.float32) for name, sample in samples.items()}
    )
    expected = pd.concat([tokens, expected], axis=1)
    expected.to_parquet(folder / "expected.parquet")
