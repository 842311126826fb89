"""Tissue files: which biosamples form a pair, and where their data lie.

A tissue is one YAML file that names a genome, annotation files, and one biosample of
either context: in vitro and in vivo, or what ``contrast`` names. Paths are relative to
the YAML file; ``~`` and environment variables are expanded. Everything is checked
before any work begins. The file may hold parameters of the notebooks beside it, so that
papermill takes it as it is.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from helpers._yaml_file import YamlFile

__all__ = [
    "CONTEXTS",
    "NOTEBOOK_PARAMETERS",
    "SIGNAL_KINDS",
    "Biosample",
    "Tissue",
    "check_together",
    "companions",
    "contrast_of",
    "read_tissue",
    "read_tissues",
    "tissue_files",
]

_log = logging.getLogger(__name__)
CONTEXTS = ("in_vitro", "in_vivo")
SIGNAL_KINDS = ("cut_sites", "coverage")
NOTEBOOK_PARAMETERS = (
    "run",
    "data",
    "tissues",
    "blocks",
    "streams",
    "saes",
    "seed",
    "device",
    "model",
    "precision",
)


@dataclass(frozen=True)
class Biosample:
    """One ATAC-seq (or DNase-seq) sample.

    Attributes
    ----------
    name : str
        Unique name.
    signal : Path
        bigWig of the track.
    peaks : Path
        BED of peaks.
    motif_activity : Path
        MEME SEA table, one row per motif of the tissue's motif file.
    signal_kind : str
        ``cut_sites``: counts of Tn5 cut sites per base, widened by 5 bp on both sides
        when read, as the authors of EpiBERT do; ``coverage``: used as it is.
    scale : float
        Factor that brings the track to the common depth (20 M fragments for the
        published model).
    states : Path or None
        BED of chromatin states.
    context : str
        ``in_vitro`` or ``in_vivo``, or one of the tissue's own contrast.
    lineage : str
        Name of the tissue whose pair it belongs to.
    replicate : int
        0 for the biosample of the pair, 1, 2, ... for further ones of its context.
    seen_in_training : bool or None
        Whether the model was trained on it; None if unknown.
    accession, description : str
        Where it comes from.
    """

    name: str
    signal: Path
    peaks: Path
    motif_activity: Path
    signal_kind: str = "coverage"
    scale: float = 1.0
    states: Path | None = None
    context: str = ""
    lineage: str = ""
    replicate: int = 0
    seen_in_training: bool | None = None
    accession: str = ""
    description: str = ""


@dataclass(frozen=True)
class Tissue:
    """A matched pair of biosamples with its genome and annotation.

    Attributes
    ----------
    name : str
        Name of the tissue, also the lineage of its biosamples.
    path : Path
        The YAML file.
    assembly : str
        Genome assembly; tissues of one run must share it.
    genome : Path
        FASTA with ``.fai``; records are chromosomes or regions ``chrom:start-end``.
    windows : Path
        TSV with columns ``chrom``, ``start``, ``end``, ``split``, ``block``.
    motifs : Path
        Motifs in MEME format, of the motif activity and of the annotation.
    pair : tuple of two Biosample
        One of each context, in the order of ``contrast``.
    contrast : tuple of two str
        Names of the contexts; differences are the second less the first.
    replicates : tuple of Biosample
        Further samples of either context.
    genes, gene_sets : Path or None
        Genes (BED6 with symbols) and gene sets (GMT).
    notes : str
        Caveats that every page about this tissue must show.
    """

    name: str
    path: Path
    assembly: str
    genome: Path
    windows: Path
    motifs: Path
    pair: tuple[Biosample, Biosample]
    contrast: tuple[str, str] = CONTEXTS
    replicates: tuple[Biosample, ...] = ()
    genes: Path | None = None
    gene_sets: Path | None = None
    notes: str = ""

    @property
    def biosamples(self) -> tuple[Biosample, ...]:
        """The pair and the replicates."""
        return (*self.pair, *self.replicates)


_TISSUE_FILES = ("genome", "windows", "motifs", "genes", "gene_sets")
_TISSUE_TEXT = (*_TISSUE_FILES, "tissue", "assembly", "notes")
_TISSUE_REQUIRED = ("tissue", "assembly", "genome", "windows", "motifs")
_TISSUE_KEYS = {*_TISSUE_TEXT, *NOTEBOOK_PARAMETERS, "contrast", "replicates"}
_SAMPLE_FILES = ("signal", "peaks", "motif_activity", "states")
_SAMPLE_TEXT = (*_SAMPLE_FILES, "name", "accession", "description")
_SAMPLE_REQUIRED = [f.name for f in fields(Biosample) if f.default is MISSING]
_SAMPLE_KEYS = {f.name for f in fields(Biosample)} - {"lineage", "replicate"}
_SHARED = ("assembly", "genome", "windows", "motifs", "contrast")


def read_tissue(path: str | Path) -> Tissue:
    """Read and check one tissue file.

    Parameters
    ----------
    path : str or Path
        YAML file.

    Returns
    -------
    Tissue
        With absolute or working-directory-relative paths that exist.

    Raises
    ------
    FileNotFoundError
        If the YAML file or files it names do not exist; all missing ones are listed.
    ValueError
        If the YAML is malformed, a key is unknown or missing, or a value is of the
        wrong type or out of range; all problems are listed with their lines.
    """
    path = Path(path)
    file = YamlFile(path, (*_TISSUE_REQUIRED, *CONTEXTS))
    content = file.content
    contrast = contrast_of(file)
    file.check_keys(
        content,
        (),
        known=_TISSUE_KEYS | set(contrast),
        required=(*_TISSUE_REQUIRED, *contrast),
        text=_TISSUE_TEXT,
    )
    replicates = content.get("replicates") or []
    if not isinstance(replicates, list):
        file.complain(
            f"key 'replicates' must be a list; got {replicates!r}", "replicates"
        )
        replicates = []
    samples = [((c,), content[c], (c,)) for c in contrast if content.get(c) is not None]
    samples += [(("replicates", i), r, contrast) for i, r in enumerate(replicates)]
    for at, entry, contexts in samples:
        _check_sample(file, at, entry, contexts)
    names: set[str] = set()
    for at, entry, _ in samples:
        name = str(entry.get("name")) if isinstance(entry, dict) else None
        if name in names:
            file.complain(f"name {name!r} is used twice", *at, "name")
        names.add(name)
    file.raise_if_wrong()

    missing = []

    def resolved(entry: dict, keys: Sequence[str], files: Sequence[str]) -> dict:
        """Take the keys that are given, with names of files as paths."""
        found = {key: entry[key] for key in keys if entry.get(key) is not None}
        for key in files:
            if key in found:
                found[key] = _resolve(found[key], path.parent)
                if not found[key].is_file():
                    missing.append(f"{key}: {found[key]}")
        return found

    def biosample(entry: dict, context: str, replicate: int) -> Biosample:
        values = resolved(entry, sorted(_SAMPLE_KEYS), _SAMPLE_FILES)
        values["scale"] = float(values.get("scale", 1.0))
        values |= {"context": context, "lineage": content["tissue"]}
        return Biosample(**values, replicate=replicate)

    own = resolved(content, _TISSUE_TEXT, _TISSUE_FILES)
    own["name"] = own.pop("tissue")
    pair = tuple(biosample(content[context], context, 0) for context in contrast)
    counts = dict.fromkeys(contrast, 0)
    further = []
    for entry in replicates:
        context = entry["context"]
        counts[context] += 1
        further.append(biosample(entry, context, counts[context]))
    if missing:
        raise FileNotFoundError(f"{path}: files not found: " + "; ".join(missing))
    return Tissue(
        path=path, pair=pair, contrast=contrast, replicates=tuple(further), **own
    )


def tissue_files(folder: str | Path, names: Sequence[str] | None = None) -> list[Path]:
    """Return the tissue files of a folder.

    Parameters
    ----------
    folder : str or Path
        Folder of tissue files, ``*.yml`` or ``*.yaml``; or one such file.
    names : sequence of str, optional
        File stems; all files in alphabetical order if empty.

    Raises
    ------
    FileNotFoundError
        If the folder has no tissue file or lacks one of ``names``.
    ValueError
        If two files have one stem.
    """
    folder = Path(folder)
    if folder.suffix in (".yml", ".yaml"):
        return [folder]
    found = sorted([*folder.glob("*.yml"), *folder.glob("*.yaml")])
    if not found:
        raise FileNotFoundError(f"no tissue files (*.yml, *.yaml) in {folder}")
    by_stem: dict[str, Path] = {}
    for path in found:
        if path.stem in by_stem:
            raise ValueError(f"{path} and {by_stem[path.stem]} are the same tissue")
        by_stem[path.stem] = path
    unknown = sorted(set(names or []) - by_stem.keys())
    if unknown:
        raise FileNotFoundError(
            f"no tissue files for {unknown} in {folder}; it has {sorted(by_stem)}"
        )
    return [by_stem[name] for name in (names or by_stem)]


def read_tissues(
    folder: str | Path, names: Sequence[str] | None = None
) -> list[Tissue]:
    """Read tissues of a folder that can be studied together.

    Parameters
    ----------
    folder : str or Path
        Folder of tissue files, ``*.yml`` or ``*.yaml``; or one such file.
    names : sequence of str, optional
        File stems to read; all files in alphabetical order if empty.

    Returns
    -------
    list of Tissue
        In the order of ``names``.

    Raises
    ------
    FileNotFoundError
        If the folder has no tissue file or lacks one of ``names``.
    ValueError
        If a file is not valid, two files have one stem, or the tissues do not fit
        together (`check_together`).
    """
    tissues = [read_tissue(path) for path in tissue_files(folder, names)]
    check_together(tissues)
    return tissues


def check_together(tissues: Sequence[Tissue]) -> None:
    """Check that tissues can be studied together.

    Raises
    ------
    ValueError
        If there is none, or they differ in assembly, genome, windows, motifs or
        contrast, or share a name or the name of a biosample.
    """
    if not tissues:
        raise ValueError("tissues must hold at least one tissue; got none")
    for key in _SHARED:
        values = {str(getattr(tissue, key)): tissue.path.name for tissue in tissues}
        if len(values) > 1:
            raise ValueError(f"tissues of one run must share {key}; found {values}")
    lineages = [tissue.name for tissue in tissues]
    samples = [b.name for tissue in tissues for b in tissue.biosamples]
    for what, used in (("tissue", lineages), ("biosample", samples)):
        twice = sorted({name for name in used if used.count(name) > 1})
        if twice:
            raise ValueError(f"{what} names used by two tissue files: {twice}")


def companions(tissues: Sequence[Tissue]) -> list[Tissue]:
    """Return tissues, and those beside the first one that can be studied with them.

    A folder of tissue files need not be one study: files that are of other genomes,
    windows or contrasts, or that cannot be read, are left out.

    Parameters
    ----------
    tissues : sequence of Tissue
        Tissues that fit together.

    Returns
    -------
    list of Tissue
        The given ones first, then others in alphabetical order of their files.
    """
    found = list(tissues)
    for path in tissue_files(found[0].path.parent):
        if path.stem in {tissue.path.stem for tissue in found}:
            continue
        try:
            other = read_tissue(path)
            check_together([*found, other])
        except (ValueError, FileNotFoundError) as error:
            _log.info("%s: not studied with %s: %s", path, found[0].name, error)
        else:
            found.append(other)
    return found


def contrast_of(file: YamlFile) -> tuple[str, str]:
    """Return the two contexts of a tissue file; the usual ones if it is wrong there."""
    contrast = file.content.get("contrast")
    if contrast is None:
        return CONTEXTS
    taken = _TISSUE_KEYS | {"all"}
    if not isinstance(contrast, list) or len(contrast) != 2:
        file.complain(
            f"key 'contrast' must list two names of contexts; got {contrast!r}",
            "contrast",
        )
    elif not all(isinstance(c, str) and c.isidentifier() for c in contrast):
        file.complain(
            "key 'contrast' must list names of letters, digits and underscores; got "
            f"{contrast!r}",
            "contrast",
        )
    elif contrast[0] == contrast[1] or taken & set(contrast):
        file.complain(
            f"key 'contrast' must list two names that differ and mean nothing else in "
            f"this file; got {contrast!r}",
            "contrast",
        )
    else:
        return contrast[0], contrast[1]
    return CONTEXTS


def _resolve(value: str, base: Path) -> Path:
    expanded = os.path.expanduser(os.path.expandvars(value))
    return Path(os.path.normpath(base / expanded))


def _check_sample(
    file: YamlFile, at: tuple, entry: object, contexts: tuple[str, ...]
) -> None:
    """Note what is wrong with a biosample, which must be of one of some contexts."""
    where = at[0] if len(at) == 1 else f"{at[0]}[{at[1]}]"
    if not isinstance(entry, dict):
        file.complain(
            f"{where}: expected a biosample (name, signal, ...); got {entry!r}", *at
        )
        return
    file.check_keys(
        entry, at, known=_SAMPLE_KEYS, required=_SAMPLE_REQUIRED, text=_SAMPLE_TEXT
    )
    context = entry.get("context", contexts[0] if len(contexts) == 1 else None)
    kind = entry.get("signal_kind", "coverage")
    for key, value, allowed in (
        ("context", context, contexts),
        ("signal_kind", kind, SIGNAL_KINDS),
    ):
        if value not in allowed:
            wanted = " or ".join(map(repr, allowed))
            file.complain(
                f"{where}: key {key!r} must be {wanted}; got {value!r}", *at, key
            )
    scale = entry.get("scale", 1.0)
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not number or not 0 < scale < math.inf:
        file.complain(
            f"{where}: key 'scale' must be a number above 0; got {scale!r}",
            *at,
            "scale",
        )
    seen = entry.get("seen_in_training")
    if not isinstance(seen, bool | None):
        file.complain(
            f"{where}: key 'seen_in_training' must be true or false; got {seen!r}",
            *at,
            "seen_in_training",
        )
