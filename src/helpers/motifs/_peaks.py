"""From the peaks of a sample to its motif activity, with MEME's `sea` or without it.

Regions are 0-based and half-open. The steps are those of the authors of EpiBERT (Javed
et al. 2025, Cell Genomics 5:100762). `helpers.motifs` is the public face of this
module.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from helpers.motifs._activity import motif_activity, read_sea, sea_table
from helpers.motifs._files import Motif, read_motifs
from helpers.motifs._sea import MIN_SEQUENCES, sea_hits

if TYPE_CHECKING:
    from helpers.windows import Genome  # windows imports helpers.motifs

__all__ = ["PeakMotifActivity", "peak_motif_activity", "run_sea"]

N_PEAKS = 50_000  # the strongest; of the authors, as is all that follows
WIDTH_BP = 128  # around the summit
_REPORT_ALL = "50000.0"  # E-value below which SEA reports a motif
_LETTERS = np.frombuffer(b"ACGTN", dtype=np.uint8)
_PEAK_COLUMNS = (9, 10)  # broadPeak, and narrowPeak with the summit

_log = logging.getLogger(__name__)


class PeakMotifActivity(NamedTuple):
    """Motif activity of a sample, and how it was made.

    Attributes
    ----------
    activity : pandas.Series
        Scaled to [0, 1], indexed by motif identifier in byte order.
    path : Path
        SEA table, the ``motif_activity`` of a tissue file.
    is_sea : bool
        Whether MEME's `sea` made the table.
    note : str
        What to know about it.
    """

    activity: pd.Series
    path: Path
    is_sea: bool
    note: str


def peak_motif_activity(
    peaks: str | Path,
    background: str | Path,
    genome: Genome,
    motifs_path: str | Path,
    output: str | Path,
) -> PeakMotifActivity:
    """Compute the motif activity of a sample from its peaks.

    MEME's `sea` is used where it is installed. Elsewhere this package computes the
    table by the same rule, and says so: in the log, in the result and in the file.

    Parameters
    ----------
    peaks : str or Path
        Peaks of the sample: narrowPeak, or BED with the strength in the fifth column.
        The 50,000 strongest are used, 128 bp around the summit or, where the file names
        none, around the center.
    background : str or Path
        BED of background peaks, the same for all samples; at least 128 bp each.
    genome : Genome
        Sequence.
    motifs_path : str or Path
        Motifs in MEME format.
    output : str or Path
        Table to write, tab-separated, in SEA's columns.

    Returns
    -------
    PeakMotifActivity
        Activity, path of the table and a note.

    Raises
    ------
    FileNotFoundError
        If a file, or the folder of the output, does not exist.
    ValueError
        If a file is not as described, there are fewer than 50 peaks or fewer background
        regions than peaks, chromosomes are absent from the genome, or no motif differs
        from another.
    RuntimeError
        If `sea` fails.

    Notes
    -----
    The rule, of `sea` as of its replacement: the score of a sequence is that of its
    best site on either strand, in bits against a Markov model of order 2 of the
    background. A tenth of both sets decides the score threshold at which Fisher's exact
    test tells them apart best; the others are counted and tested. The replacement holds
    out the same tenth, and differs where rounding puts a sequence on the other side of
    a threshold; ``benchmarks/raw_inputs.py`` measures how often.
    """
    if shutil.which("sea"):
        path = run_sea(peaks, background, genome, motifs_path, output)
        note = f"made by MEME's SEA: {_provenance(path)}"
        return PeakMotifActivity(motif_activity(read_sea(path)), path, True, note)
    inputs = _read_inputs(peaks, background, genome, motifs_path, output)
    *hits, thresholds = sea_hits(
        inputs.peak_codes, inputs.background_codes, inputs.motifs
    )
    table = sea_table(*hits, inputs.motifs, thresholds=thresholds)
    note = (
        "MEME's sea is not on PATH: this table approximates its result, by the same "
        "rule but with other rounding"
    )
    activity = motif_activity(table)
    content = table.to_csv(sep="\t", index=False)
    _write(inputs.output, f"{content}\n# {note}\n")
    _log.warning("%s: %s", inputs.output, note)
    return PeakMotifActivity(activity, inputs.output, False, note)


def run_sea(
    peaks: str | Path,
    background: str | Path,
    genome: Genome,
    motifs_path: str | Path,
    output: str | Path,
) -> Path:
    """Run MEME's `sea` on the peaks of a sample, as the authors of EpiBERT do.

    Parameters
    ----------
    peaks, background, genome, motifs_path, output
        As for `peak_motif_activity`.

    Returns
    -------
    Path
        ``output``, SEA's table with a row for every motif.

    Raises
    ------
    FileNotFoundError
        If `sea` is not on PATH, or a file or the folder of the output does not exist.
    ValueError
        If a file is not as described, or the table of `sea` lacks motifs.
    RuntimeError
        If `sea` fails; the message has its own.
    """
    program = shutil.which("sea")
    if program is None:
        raise FileNotFoundError(
            "the program sea of the MEME Suite is not on PATH; "
            "peak_motif_activity works without it"
        )
    inputs = _read_inputs(peaks, background, genome, motifs_path, output)
    with tempfile.TemporaryDirectory() as scratch:
        primary, control = Path(scratch, "peaks.fasta"), Path(scratch, "bg_peaks.fasta")
        _write_fasta(primary, inputs.peaks, inputs.peak_codes)
        _write_fasta(control, inputs.background, inputs.background_codes)
        # The authors' options. --text prints the table and spares the other files.
        command = [program, "--p", str(primary), "--m", str(motifs_path)]
        command += ["--n", str(control), "--thresh", _REPORT_ALL]
        command += ["--verbosity", "1", "--text"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with status {done.returncode}: "
            f"{done.stderr.strip()[-2000:] or 'no message'}"
        )
    partial = inputs.output.with_name(f".{inputs.output.name}.partial")
    try:
        partial.write_text(done.stdout, encoding="utf-8")
        try:
            found = set(read_sea(partial).index)
        except ValueError as error:
            what = str(error).removeprefix(f"{partial}: ")
            raise ValueError(f"output of {program}: {what}") from None
        missing = sorted({motif.id for motif in inputs.motifs} - found)
        if missing:
            raise ValueError(
                f"output of {program}: expected a row for each of the "
                f"{len(inputs.motifs)} motifs; found {len(found)}, missing "
                f"{missing[:3]}"
            )
        partial.replace(inputs.output)
    finally:
        partial.unlink(missing_ok=True)
    return inputs.output


# Reading


class _Inputs(NamedTuple):
    peaks: pd.DataFrame  # chrom, start, end; as wide as WIDTH_BP
    background: pd.DataFrame
    peak_codes: np.ndarray  # (n_peaks, WIDTH_BP)
    background_codes: list[np.ndarray]
    motifs: list[Motif]
    output: Path


def _read_inputs(
    peaks: str | Path,
    background: str | Path,
    genome: Genome,
    motifs_path: str | Path,
    output: str | Path,
) -> _Inputs:
    """Read and check everything before the long work."""
    output = Path(output)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"folder of the output not found: {output.parent}")
    motifs = read_motifs(motifs_path)
    strongest = _inside(peaks, _strongest(Path(peaks), _read_bed(peaks)), genome)
    control = _inside(background, _read_bed(background).iloc[:, :3], genome)
    control.columns = ["chrom", "start", "end"]
    if len(strongest) < MIN_SEQUENCES:
        raise ValueError(
            f"{peaks}: expected {MIN_SEQUENCES} peaks or more; found {len(strongest)}"
        )
    if len(control) < len(strongest):
        raise ValueError(
            f"{background}: expected at least as many background regions as peaks, "
            f"{len(strongest)}; found {len(control)}"
        )
    narrow = control["end"] - control["start"] < WIDTH_BP
    if narrow.any():
        row = control[narrow].iloc[0]
        raise ValueError(
            f"{background}: regions must have {WIDTH_BP} bp or more; found "
            f"{row['chrom']}:{row['start']}-{row['end']}"
        )
    peak_codes = np.stack([genome.codes(*row) for row in _rows(strongest)])
    control_codes = [genome.codes(*row) for row in _rows(control)]
    return _Inputs(strongest, control, peak_codes, control_codes, motifs, output)


def _read_bed(path: str | Path) -> pd.DataFrame:
    """Read all columns of a BED file; the first three are checked."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"BED file not found: {path}")
    try:
        table = pd.read_csv(
            path,
            sep="\t",
            header=None,
            comment="#",
            keep_default_na=False,
            dtype={0: str},
        )
        positions = table[[1, 2]].astype(np.int64)
    except (ValueError, OSError, KeyError) as error:  # pandas: an empty file too
        raise ValueError(f"{path}: expected BED (chrom, start, end): {error}") from None
    table[[1, 2]] = positions
    wrong = (table[1] < 0) | (table[2] <= table[1])
    if wrong.any():
        chrom, start, end = table[wrong].iloc[0, :3]
        raise ValueError(
            f"{path}: positions must be 0 <= start < end; found {chrom}:{start}-{end}"
        )
    return table


def _strongest(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return the regions around the strongest summits, in order of position."""
    columns = table.shape[1]
    if columns < 5 and len(table) > N_PEAKS:
        raise ValueError(
            f"{path}: {len(table)} peaks and no strength to choose {N_PEAKS} by; "
            "expected narrowPeak, or BED with the strength in column 5"
        )
    if columns >= 5:
        score = _numbers(path, table, 4)
        # ENCODE's scores end at 1000; the signal orders those.
        signal = _numbers(path, table, 6) if columns in _PEAK_COLUMNS else score
        table = table.iloc[np.lexsort([-signal, -score])[:N_PEAKS]]
    center = (table[1] + table[2]) // 2
    if columns == max(_PEAK_COLUMNS):
        offset = _numbers(path, table, 9).astype(np.int64)
        if ((offset < -1) | (table[1] + offset >= table[2])).any():
            raise ValueError(
                f"{path}: column 10 must be the summit's distance from the start, or "
                f"-1; found {offset.min()} to {offset.max()}"
            )
        center = center.where(offset == -1, table[1] + offset)
    start = center - WIDTH_BP // 2
    regions = pd.DataFrame({"chrom": table[0], "start": start, "end": start + WIDTH_BP})
    return regions.sort_values(["chrom", "start"], kind="stable", ignore_index=True)


def _numbers(path: Path, table: pd.DataFrame, column: int) -> np.ndarray:
    numbers = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float)
    if not np.isfinite(numbers).all():
        first = table[column][~np.isfinite(numbers)].iloc[0]
        raise ValueError(
            f"{path}: column {column + 1} must hold numbers; found {first!r}"
        )
    return numbers


def _inside(path: str | Path, regions: pd.DataFrame, genome: Genome) -> pd.DataFrame:
    """Keep the regions that have sequence throughout, as bedtools getfasta does."""
    absent = sorted(set(regions.iloc[:, 0]) - set(genome.chromosomes))
    if absent:
        raise ValueError(
            f"{path}: chromosomes {absent[:5]} are absent from {genome.path}; it has "
            f"{genome.chromosomes[:5]} ({len(genome.chromosomes)} in all)"
        )
    inside = np.array([genome.covers(*row) for row in _rows(regions)])
    if not inside.all():
        _log.info("%s: %d regions past the sequence left out", path, (~inside).sum())
    return regions[inside].reset_index(drop=True)


def _rows(regions: pd.DataFrame) -> zip:
    columns = (regions[column].tolist() for column in regions.columns[:3])
    return zip(*columns, strict=True)


# Writing


def _write_fasta(
    path: Path, regions: pd.DataFrame, codes: Sequence[np.ndarray]
) -> None:
    with path.open("w", encoding="ascii") as file:
        for (chrom, start, end), row in zip(_rows(regions), codes, strict=True):
            text = _LETTERS[row].tobytes().decode()
            file.write(f">{chrom}:{start}-{end}\n{text}\n")


def _write(path: Path, content: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)


def _provenance(path: Path) -> str:
    """Return the comments at the end of a SEA table."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.strip("# ") for line in lines if line.startswith("# "))
