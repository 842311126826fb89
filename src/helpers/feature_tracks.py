"""Features in a genome browser: activations as bigWig, top regions as BED, a track hub.

Positions are 0-based and half-open. The folder holds what IGV reads (``.bw``, ``.bed``)
and a hub for the UCSC browser (``hub.txt``, with the regions as bigBed, since a hub
takes no BED). Values are those of the dictionary: 0 where a feature is silent, nothing
where the model was not shown the genome.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pybigtools

from helpers.annotation import universe
from helpers.enrichment import check_regions
from helpers.runs import code_digest
from helpers.stages import Study, feature_acts
from helpers.tissues import CONTEXTS

__all__ = ["write_bed", "write_bigwig", "write_feature_tracks"]

_COLORS = {"in_vitro": (213, 94, 0), "in_vivo": (0, 114, 178)}  # as in the figures
_CHUNK = 32  # windows whose activations are held at a time
_BED_COLUMNS = ["chrom", "start", "end", "name", "score", "strand"]
_MAX_SCORE = 1000  # of BED
_SPLIT = "test"


def write_bigwig(
    path: str | Path,
    regions: pd.DataFrame,
    values: np.ndarray,
    chrom_sizes: Mapping[str, int],
) -> None:
    """Write a value per region as bigWig; equal neighbors become one interval.

    Parameters
    ----------
    path : str or Path
        File to write.
    regions : pandas.DataFrame
        Columns chrom, start, end (0-based, half-open), without overlaps.
    values : numpy.ndarray, shape (n_regions,)
        Finite values.
    chrom_sizes : mapping of str to int
        Chromosome lengths; the order in the file is by name.

    Raises
    ------
    ValueError
        If regions are not as described, lie on an unknown chromosome or past its end,
        overlap, or values are of another number or not finite.
    """
    values = np.asarray(values, dtype=np.float32)
    regions = check_regions(regions)
    if values.shape != (len(regions),) or not np.isfinite(values).all():
        raise ValueError(
            f"values must be finite, one for each of {len(regions)} regions; got shape "
            f"{values.shape}, {int((~np.isfinite(values)).sum())} not finite"
        )
    _check_inside(regions, chrom_sizes)
    table = regions.assign(value=values).sort_values(["chrom", "start"], kind="stable")
    chrom = table["chrom"].to_numpy(dtype=object)
    start, end = table["start"].to_numpy(), table["end"].to_numpy()
    value = table["value"].to_numpy()
    same = chrom[1:] == chrom[:-1]
    overlaps = same & (start[1:] < end[:-1])
    if overlaps.any():
        row = int(overlaps.argmax()) + 1
        raise ValueError(
            f"regions must not overlap; {chrom[row]}:{start[row]}-{end[row]} does "
            f"({int(overlaps.sum())} overlaps)"
        )
    joins = same & (start[1:] == end[:-1]) & (value[1:] == value[:-1])
    first = np.flatnonzero(np.concatenate([[True], ~joins]))
    last = np.concatenate([first[1:], [len(value)]]) - 1
    rows = zip(
        chrom[first].tolist(),
        start[first].tolist(),
        end[last].tolist(),
        value[first].tolist(),
        strict=True,
    )
    sizes = {str(c): int(chrom_sizes[c]) for c in sorted(set(chrom))}
    _write(Path(path), sizes, rows)


def write_bed(
    path: str | Path,
    regions: pd.DataFrame,
    values: np.ndarray,
    *,
    name: str,
    chrom_sizes: Mapping[str, int] | None = None,
) -> None:
    """Write regions as BED6, the score in proportion to their value.

    Parameters
    ----------
    path : str or Path
        File to write; with the suffix ``.bb`` it is a bigBed.
    regions : pandas.DataFrame
        Columns chrom, start, end (0-based, half-open).
    values : numpy.ndarray, shape (n_regions,)
        Not negative; the largest gets the score 1000.
    name : str
        Name of every region; blanks become underscores.
    chrom_sizes : mapping of str to int, optional
        Chromosome lengths, which a bigBed needs.

    Raises
    ------
    ValueError
        If regions or values are not as described, or a bigBed has no chromosome
        lengths.
    """
    path, values = Path(path), np.asarray(values, dtype=np.float64)
    regions = check_regions(regions)
    if values.shape != (len(regions),) or not (values >= 0).all():
        raise ValueError(
            f"values must be at least 0, one for each of {len(regions)} regions; got "
            f"shape {values.shape}"
        )
    scores = np.rint(values / max(values.max(), 1e-12) * _MAX_SCORE).astype(int)
    label = "_".join(name.split())
    table = regions.assign(name=label, score=scores, strand=".")
    table = table[_BED_COLUMNS].sort_values(["chrom", "start"], kind="stable")
    if path.suffix != ".bb":
        partial = path.with_name(f".{path.name}.partial")
        table.to_csv(partial, sep="\t", header=False, index=False)
        partial.replace(path)
        return
    if chrom_sizes is None:
        raise ValueError(f"{path}: a bigBed needs chrom_sizes")
    _check_inside(regions, chrom_sizes)
    sizes = {str(c): int(chrom_sizes[c]) for c in sorted(set(table["chrom"]))}
    rows = (
        (chrom, start, end, f"{label}\t{score}\t.")
        for chrom, start, end, _, score, _ in table.itertuples(index=False)
    )
    _write(path, sizes, rows)


def write_feature_tracks(
    study: Study, features: pd.DataFrame, labels: Mapping[tuple[int, int], str]
) -> Path:
    """Write the activations and top regions of features, and a hub that lists them.

    Parameters
    ----------
    study : Study
        The run.
    features : pandas.DataFrame
        Rows of `helpers.annotation.select_features`; one row per feature is used.
    labels : mapping of (int, int) to str
        What to call a feature, by ``(layer, feature)``, such as its motif; features
        that have none bear their number.

    Returns
    -------
    Path
        Artefact ``tracks`` of the run: ``<name>.<context>.bw`` for both contexts of the
        lineage in which the feature was looked at, ``<name>.bed``, ``<name>.bb``,
        ``hub.txt`` and ``features.tsv``. A name is ``block<layer>_feature<number>``.

    Raises
    ------
    ValueError
        If there is no feature.
    """
    features = features.drop_duplicates(["layer", "feature"]).reset_index(drop=True)
    if len(features) == 0:
        raise ValueError("features must have at least one row")
    names = [
        f"block{layer}_feature{number}"
        for layer, number in zip(features["layer"], features["feature"], strict=True)
    ]
    keys = zip(features["layer"], features["feature"], strict=True)
    texts = [labels.get(key, "") for key in keys]
    features = features.assign(name=names, label=texts)

    def build(folder: Path) -> None:
        folder.mkdir()
        sizes = _chrom_sizes(study)
        for layer, rows in features.groupby("layer"):
            _write_layer(study, int(layer), rows.reset_index(drop=True), folder, sizes)
        columns = ["name", "label", "layer", "feature", "class", "lineage", "context"]
        listed = features[columns]
        listed.to_csv(folder / "features.tsv", sep="\t", index=False)
        assembly = study.dataset.tissues[0].assembly
        (folder / "hub.txt").write_text(_hub(features, assembly), encoding="utf-8")

    recipe = {
        "features": features.drop(columns="regions").to_dict("list"),
        "regions": [list(map(int, own)) for own in features["regions"]],
        "saes": [
            study.run.key(f"sae/block{x}") for x in sorted(set(features["layer"]))
        ],
        "activations": study.streams_run.key("activations.zarr"),
        "code": code_digest("feature_tracks", "annotation", "windows"),
    }
    return study.run.artefact("tracks", recipe, build)


def _write_layer(
    study: Study,
    layer: int,
    features: pd.DataFrame,
    folder: Path,
    sizes: Mapping[str, int],
) -> None:
    """Write the tracks of the features of one block."""
    windows = study.dataset.windows_of(_SPLIT)
    tokens = study.dataset.token_table(windows)
    inner = universe(study, _SPLIT)
    pairs = np.array([study.pair(lineage) for lineage in features["lineage"]])
    values = _activations(study, layer, features["feature"].to_numpy(), pairs, windows)
    n_tokens = study.dataset.n_tokens
    rank = inner["window"].map({w: i for i, w in enumerate(windows)}).to_numpy()
    flat = rank * n_tokens + inner["token"].to_numpy()
    for i, row in features.iterrows():
        for side, context in enumerate(CONTEXTS):
            path = folder / f"{row['name']}.{context}.bw"
            write_bigwig(path, tokens, values[side, i], sizes)
        own = values[CONTEXTS.index(row["context"]), i][flat[row["regions"]]]
        regions = inner.iloc[row["regions"]]
        for suffix in ("bed", "bb"):
            path = folder / f"{row['name']}.{suffix}"
            name = f"{row['name']} {row['label']}"
            write_bed(path, regions, own, name=name, chrom_sizes=sizes)


def _activations(
    study: Study,
    layer: int,
    numbers: np.ndarray,
    pairs: np.ndarray,
    windows: np.ndarray,
) -> np.ndarray:
    """Activations in both contexts of each feature's lineage, (2, feature, token)."""
    n_tokens = study.dataset.n_tokens
    values = np.empty((2, len(numbers), len(windows) * n_tokens), dtype=np.float32)
    for first in range(0, len(windows), _CHUNK):
        chunk = windows[first : first + _CHUNK]
        acts = feature_acts(study, layer, numbers, chunk)
        own = acts[pairs.T, :, :, np.arange(len(numbers))]  # side, feature, window, ...
        at = slice(first * n_tokens, (first + len(chunk)) * n_tokens)
        values[:, :, at] = own.reshape(2, len(numbers), -1)
    return values


def _chrom_sizes(study: Study) -> dict[str, int]:
    """Chromosome lengths; where only regions are known, the end of the last window."""
    ends = study.dataset.windows.groupby("chrom")["end"].max()
    lengths = study.dataset.genome.lengths
    return {chrom: int(max(end, lengths.get(chrom, 0))) for chrom, end in ends.items()}


def _hub(features: pd.DataFrame, assembly: str) -> str:
    """Text of a hub in one file: a composite per feature, both contexts overlaid."""
    lines = ["hub chromatin_context_features", "shortLabel Context features"]
    lines += ["longLabel Features that tell cell lines from tissue, test chromosomes"]
    lines += ["useOneFile on", "email not-given@example.org", ""]
    lines += [f"genome {assembly}", ""]
    for row in features.itertuples():
        title = f"{row.name} {row.label}".strip()
        lines += [
            f"track {row.name}",
            "container multiWig",
            "type bigWig",
            f"shortLabel {row.name}",
            f"longLabel {title}: activation in {row.lineage}",
            "aggregate transparentOverlay",
            "showSubtrackColorOnUi on",
            "autoScale group",
            "visibility full",
            "maxHeightPixels 100:40:8",
            "",
        ]
        for context in CONTEXTS:
            lines += [
                f"    track {row.name}_{context}",
                f"    parent {row.name}",
                "    type bigWig",
                f"    shortLabel {context.replace('_', ' ')}",
                f"    longLabel {title}, {row.lineage} {context.replace('_', ' ')}",
                f"    bigDataUrl {row.name}.{context}.bw",
                f"    color {','.join(map(str, _COLORS[context]))}",
                "",
            ]
        lines += [
            f"track {row.name}_regions",
            "type bigBed 6 .",
            f"shortLabel {row.name}",
            f"longLabel {title}: regions where it fires most",
            f"bigDataUrl {row.name}.bb",
            f"color {','.join(map(str, _COLORS[row.context]))}",
            "spectrum on",
            "visibility dense",
            "",
        ]
    return "\n".join(lines)


def _check_inside(regions: pd.DataFrame, chrom_sizes: Mapping[str, int]) -> None:
    unknown = sorted(set(regions["chrom"]) - set(chrom_sizes))
    if unknown:
        n = int(regions["chrom"].isin(unknown).sum())
        raise ValueError(
            f"{n} of {len(regions)} regions lie on chromosomes without a size: "
            f"{', '.join(unknown[:5])}"
        )
    beyond = regions["end"].to_numpy() > regions["chrom"].map(dict(chrom_sizes))
    if beyond.any():
        chrom, start, end = regions[beyond.to_numpy()].iloc[0]
        raise ValueError(
            f"{int(beyond.sum())} regions reach past the end of their chromosome, such "
            f"as {chrom}:{start}-{end} ({chrom_sizes[chrom]} bp)"
        )


def _write(path: Path, sizes: dict[str, int], rows: Iterator[tuple]) -> None:
    """Write a bigWig or bigBed under a temporary name; the suffix tells which."""
    partial = path.with_name(f".partial.{path.name}")
    pybigtools.open(str(partial), "w").write(sizes, rows)
    partial.replace(path)
