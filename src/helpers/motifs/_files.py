"""Motifs and their files: MEME, JASPAR and HOMER formats, and the bundled collection.

Matrices are ``(width, 4)`` probabilities in the order A, C, G, T. `helpers.motifs` is
the public face of this module.
"""

from __future__ import annotations

import gzip
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np

from helpers._text_files import read_text

__all__ = [
    "DuplicateMotifWarning",
    "Motif",
    "jaspar_vertebrates",
    "read_motifs",
    "write_meme",
]

_BUNDLED = "jaspar2026_core_vertebrates.meme.gz"
_PSEUDOCOUNT = 0.1  # per cell of a count matrix, as in the bundled JASPAR file


class DuplicateMotifWarning(UserWarning):
    """Some motifs of a HOMER file bear the same name."""


@dataclass(frozen=True, eq=False)
class Motif:
    """A position probability matrix with its names.

    Attributes
    ----------
    id : str
        Identifier, unique within a collection, such as ``MA0139.2``.
    name : str
        Name of the transcription factor, such as ``CTCF``.
    probabilities : numpy.ndarray, shape (width, 4)
        Probability of A, C, G, T at each position; rows sum to 1.
    family : str or None
        Structural family or archetype cluster, to group nearly identical motifs.
    threshold : float or None
        The collection's own score threshold in natural-log odds (HOMER files).

    Raises
    ------
    ValueError
        If the matrix is empty, not ``(width, 4)``, not finite, negative, or a row does
        not sum to 1 within 0.01 (smaller deviations are print precision, removed here).
    """

    id: str
    name: str
    probabilities: np.ndarray
    family: str | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        """Check the matrix and remove the rounding of its text form."""
        matrix = np.array(self.probabilities, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[0] == 0 or matrix.shape[1] != 4:
            raise ValueError(
                f"motif {self.id!r}: probabilities must have shape (width >= 1, 4); "
                f"got {matrix.shape}"
            )
        if not np.isfinite(matrix).all() or (matrix < 0).any():
            raise ValueError(
                f"motif {self.id!r}: probabilities must be finite and not negative"
            )
        total = matrix.sum(axis=1, keepdims=True)
        worst = int(np.abs(total - 1).argmax())
        if abs(total[worst, 0] - 1) > 0.01:
            raise ValueError(
                f"motif {self.id!r}: position {worst + 1} must sum to 1; "
                f"got {total[worst, 0]:g}"
            )
        matrix /= total
        matrix.flags.writeable = False
        object.__setattr__(self, "probabilities", matrix)

    @property
    def width(self) -> int:
        """Number of positions."""
        return len(self.probabilities)

    @property
    def consensus(self) -> str:
        """Most probable base at each position."""
        return "".join("ACGT"[i] for i in self.probabilities.argmax(axis=1))


def read_motifs(path: str | Path) -> list[Motif]:
    """Read a MEME, JASPAR or HOMER motif file, gzipped or not.

    The format is recognized from the content. JASPAR counts become probabilities with a
    pseudocount of 0.1 per cell; HOMER's own thresholds are kept.

    Parameters
    ----------
    path : str or Path
        Motif file.

    Returns
    -------
    list of Motif
        In file order.

    Warns
    -----
    DuplicateMotifWarning
        If motifs of a HOMER file bear the same name, as two in HOMER's own file do;
        the later ones get a number.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the format is not recognized, the file has no motif, two motifs share an
        identifier, or a matrix is not valid; the message names file and motif.
    """
    path = Path(path)
    lines = read_text(path, "motif file").splitlines()
    try:
        return _parse_motifs(lines)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None


@lru_cache(maxsize=1)
def _bundled() -> tuple[Motif, ...]:
    resource = resources.files("helpers") / "resources" / _BUNDLED
    with resources.as_file(resource) as path:
        return tuple(read_motifs(path))


def jaspar_vertebrates() -> list[Motif]:
    """Return the bundled JASPAR 2026 CORE vertebrates collection.

    Returns
    -------
    list of Motif
        1,019 profiles. JASPAR is licensed CC BY 4.0; the header of the bundled file
        has attribution and citation.
    """
    return list(_bundled())


def write_meme(
    path: str | Path, motifs: Sequence[Motif], *, header_comment: str = ""
) -> None:
    """Write motifs in MEME's minimal format.

    Families travel as ``# family <id> <family>`` lines in the header, which other
    readers skip. A path that ends in ``.gz`` is compressed without a time stamp, so
    equal motifs give equal bytes.

    Parameters
    ----------
    path : str or Path
        File to write.
    motifs : sequence of Motif
        Motifs in the order to write.
    header_comment : str
        Lines to put behind ``#`` at the top (source, license, citation).
    """
    lines = ["MEME version 4", ""]
    lines += [f"# {line}".rstrip() for line in header_comment.splitlines()]
    lines += [f"# family {m.id} {m.family}" for m in motifs if m.family]
    lines += ["", "ALPHABET= ACGT", "", "strands: + -", ""]
    lines += ["Background letter frequencies", "A 0.25 C 0.25 G 0.25 T 0.25", ""]
    for motif in motifs:
        lines.append(f"MOTIF {motif.id} {motif.name}".rstrip())
        lines.append(
            f"letter-probability matrix: alength= 4 w= {motif.width} nsites= 20 E= 0"
        )
        lines += [" ".join(f"{p:.6f}" for p in row) for row in motif.probabilities]
        lines.append("")
    payload = "\n".join(lines).encode()
    if str(path).endswith(".gz"):
        payload = gzip.compress(payload, mtime=0)
    Path(path).write_bytes(payload)


def _parse_motifs(lines: list[str]) -> list[Motif]:
    filled = [line for line in lines if line.strip()]
    if filled and filled[0].upper().startswith("MEME VERSION"):
        motifs = _parse_meme(filled)
    elif filled and filled[0].startswith(">"):
        blocks = _blocks(filled, ">")
        is_homer = len(filled[0].split("\t")) >= 3
        if is_homer:
            motifs = _number_repeats([_homer_motif(b) for b in blocks])
        else:
            motifs = [_jaspar_motif(b) for b in blocks]
    else:
        found = filled[0][:40] if filled else "an empty file"
        raise ValueError(
            f"expected 'MEME version' or '>' (JASPAR, HOMER) first; found {found}"
        )
    if not motifs:
        raise ValueError("no motif found")
    seen: set[str] = set()
    for motif in motifs:
        if motif.id in seen:
            raise ValueError(f"motif {motif.id!r} occurs twice")
        seen.add(motif.id)
    return motifs


def _blocks(lines: list[str], prefix: str) -> list[list[str]]:
    starts = [i for i, line in enumerate(lines) if line.startswith(prefix)]
    return [lines[a:b] for a, b in pairwise([*starts, len(lines)])]


def _numbers(line: str, motif_id: str) -> list[float]:
    try:
        return [float(value) for value in line.split()]
    except ValueError:
        raise ValueError(
            f"motif {motif_id!r}: expected numbers; found {line.strip()[:60]!r}"
        ) from None


def _parse_meme(lines: list[str]) -> list[Motif]:
    families = {}
    for line in lines:
        if line.startswith("# family "):
            motif_id, _, family = line.removeprefix("# family ").strip().partition(" ")
            if not family.strip():
                raise ValueError(f"no family in the line {line.strip()[:60]!r}")
            families[motif_id] = family.strip()
    motifs = []
    for block in _blocks(lines, "MOTIF "):
        fields = block[0].split()
        if len(fields) < 2:
            raise ValueError(f"a motif has no identifier: {block[0][:60]!r}")
        motif_id, name = fields[1], fields[2] if len(fields) > 2 else fields[1]
        header = [i for i, x in enumerate(block) if x.startswith("letter-probability")]
        if not header:
            raise ValueError(f"motif {motif_id!r}: no letter-probability matrix")
        rows = []
        for line in block[header[0] + 1 :]:
            if not (line.strip()[0].isdigit() or line.strip()[0] in ".-+n"):
                break  # URL or other trailing information
            rows.append(_numbers(line, motif_id))
        declared = block[header[0]].replace("=", "= ").split()
        after = declared[declared.index("w=") + 1 :] if "w=" in declared else []
        width = int(after[0]) if after else None
        if width is not None and width != len(rows):
            raise ValueError(
                f"motif {motif_id!r}: header says w= {width}, found {len(rows)} rows"
            )
        motifs.append(_motif(motif_id, name, rows, family=families.get(motif_id)))
    return motifs


def _jaspar_motif(block: list[str]) -> Motif:
    motif_id, *name = block[0][1:].split(maxsplit=1) or [""]
    if not motif_id:
        raise ValueError("a motif has no identifier after '>'")
    rows = [line.strip().lstrip("ACGTacgt").strip(" \t[]") for line in block[1:]]
    counts = [_numbers(row, motif_id) for row in rows]
    if len(counts) != 4 or len({len(row) for row in counts}) != 1:
        raise ValueError(
            f"motif {motif_id!r}: expected four count rows of one length; "
            f"found lengths {[len(row) for row in counts]}"
        )
    matrix = np.array(counts).T
    if (matrix.sum(axis=1) <= 0).any():
        raise ValueError(f"motif {motif_id!r}: a position has no counts")
    matrix = matrix + _PSEUDOCOUNT
    probabilities = matrix / matrix.sum(axis=1, keepdims=True)
    return Motif(motif_id, name[0].strip() if name else motif_id, probabilities)


def _homer_motif(block: list[str]) -> Motif:
    fields = block[0][1:].split("\t")
    if len(fields) < 3:
        raise ValueError(
            "a motif's first line must hold consensus, name and threshold, separated "
            f"by tabs; found {block[0].strip()[:60]!r}"
        )
    full_name = fields[1].strip()
    name, _, rest = full_name.partition("(")  # CTCF(Zf)/CD4+-CTCF-ChIP-Seq/Homer
    family = rest.partition(")")[0] or None
    try:
        threshold = float(fields[2])
    except ValueError:
        raise ValueError(
            f"motif {full_name!r}: threshold is not a number: {fields[2]!r}"
        ) from None
    rows = [_numbers(line, full_name) for line in block[1:]]
    motif = _motif(full_name, name.partition("/")[0], rows, family=family)
    return replace(motif, threshold=threshold)


def _number_repeats(motifs: list[Motif]) -> list[Motif]:
    """Tell motifs of one name apart."""
    seen: Counter[str] = Counter()
    unique = []
    for motif in motifs:
        seen[motif.id] += 1
        n = seen[motif.id]
        unique.append(replace(motif, id=f"{motif.id} #{n}") if n > 1 else motif)
    repeated = [name for name, n in seen.items() if n > 1]
    if repeated:
        warnings.warn(
            f"{sum(seen[name] - 1 for name in repeated)} of {len(motifs)} motifs bear "
            f"the name of an earlier one and get a number: {', '.join(repeated[:3])}",
            DuplicateMotifWarning,
            stacklevel=4,
        )
    return unique


def _motif(
    motif_id: str, name: str, rows: list[list[float]], *, family: str | None
) -> Motif:
    if any(len(row) != 4 for row in rows):
        raise ValueError(f"motif {motif_id!r}: every row must have four probabilities")
    return Motif(motif_id, name, np.array(rows).reshape(-1, 4), family=family)
