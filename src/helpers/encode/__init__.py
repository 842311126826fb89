"""From ENCODE accessions to verified files, through the portal's REST API or a mirror.

A biosample is an experiment (``ENCSR...``); `resolve` finds its alignments and peaks
and refuses whatever does not fit, before anything large is fetched. The portal's JSON
can be kept, so that a rerun is offline and sees the same. The service is described at
https://www.encodeproject.org/help/rest-api/.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from helpers import downloads
from helpers.downloads._fetched import file_digest, local_path, parse_json
from helpers.encode._metadata import (
    EncodeFile,
    Experiment,
    assay_problems,
    in_order,
    inventory,
    kind_problems,
    read_experiment,
    read_file,
    replicate_problems,
    status_problems,
)

__all__ = [
    "PORTAL",
    "EncodeFile",
    "Experiment",
    "Portal",
    "Resolved",
    "provenance",
    "resolve",
]

PORTAL = "https://www.encodeproject.org"

_ACCESSIONS = {"experiment": r"ENCSR\d{3}[A-Z]{3}", "file": r"ENCFF\d{3}[A-Z]{3}"}
_REQUIRED = {
    "experiment": ("accession", "status"),
    "file": ("accession", "status", "dataset", "output_type", "file_format"),
}
_PORTAL_ASSEMBLY = {"hg38": "GRCh38"}
# What is trusted first; 'peaks' is what DNase-seq experiments have.
_PEAKS = (
    "IDR thresholded peaks",
    "pseudoreplicated peaks",
    "replicated peaks",
    "peaks",
)
_PEAK_FORMAT = "bed narrowPeak"
_FORMATS = {  # of files that come without the portal's JSON
    ".bam": "bam",
    ".bed.gz": _PEAK_FORMAT,
    ".bed": _PEAK_FORMAT,
    ".bigWig": "bigWig",
    ".bw": "bigWig",
}


class Resolved(NamedTuple):
    """What a biosample is made from: alignments of its replicates, and a peak file."""

    experiment: Experiment
    alignments: tuple[EncodeFile, ...]
    peaks: EncodeFile


class Portal:
    """The ENCODE portal, a mirror of it, or a folder of its files.

    Parameters
    ----------
    source : str or Path
        Address of a portal, or a folder with files as ``ENCFF....<extension>`` and,
        where wanted, the portal's JSON as ``<accession>.json``. Without the JSON of a
        file only its md5 is known; a warning says so.
    cache : str or Path, optional
        Where the portal's JSON is kept as ``<accession>.json``: such a folder is itself
        a source. What is there is not asked for again; remove it to refresh.

    Raises
    ------
    FileNotFoundError
        If ``source`` is a folder that does not exist.
    """

    def __init__(
        self, source: str | Path = PORTAL, *, cache: str | Path | None = None
    ) -> None:
        self.source = str(source).rstrip("/")
        self.folder = local_path(source)
        self.cache = None if cache is None else Path(cache)
        if self.folder is not None and not self.folder.is_dir():
            raise FileNotFoundError(f"source must be a folder of files; got {source}")

    def experiment(self, accession: str) -> Experiment:
        """Return an experiment with its files.

        Raises
        ------
        ValueError
            If the accession is malformed, not public, or was replaced by another.
        FileNotFoundError, ConnectionError
            If the portal does not have it, or cannot be reached.
        """
        document = self._document("experiment", accession)
        if document is None:
            return Experiment(accession)
        return read_experiment(document, self.folder or self.source)

    def file(self, accession: str) -> EncodeFile:
        """Return a file.

        Raises
        ------
        ValueError, FileNotFoundError, ConnectionError
            As `experiment`.
        """
        document = self._document("file", accession)
        if document is None:
            return self._describe(accession)
        return read_file(document, self.folder or self.source)

    def find(
        self,
        experiment: Experiment,
        output_type: str,
        file_format: str,
        assembly: str = "hg38",
    ) -> list[EncodeFile]:
        """Return the released files of a kind that the portal would have one use.

        They are of one analysis: the default one of the experiment if it has such
        files, else the newest. Of files that are alternatives to each other only those
        that the portal prefers are returned, where it does; alignments are not
        alternatives but the replicates of the experiment.

        Parameters
        ----------
        experiment : Experiment
        output_type, file_format : str
            Such as ``alignments`` and ``bam``, which excludes unfiltered alignments.
        assembly : str
            UCSC's or the portal's name: hg38 is GRCh38.

        Returns
        -------
        list of EncodeFile
            By replicate, then accession; empty if there is none.
        """
        wanted = (output_type, file_format, _PORTAL_ASSEMBLY.get(assembly, assembly))
        found = [
            file
            for file in experiment.files
            if (file.output_type, file.file_format, file.assembly) == wanted
            and file.status == "released"
            and file.url
        ]
        for analysis in experiment.analyses:
            members = [file for file in found if analysis in file.analyses]
            if members:
                found = members
                break
        if output_type != "alignments":
            found = [file for file in found if file.preferred_default] or found
        return in_order(found)

    def fetch(self, file: EncodeFile, folder: str | Path) -> Path:
        """Fetch a file, under the portal's name for it, and verify it.

        Raises
        ------
        ValueError
            If the portal has the entry and not the file, or the checksum is wrong.
        FileNotFoundError, PermissionError, ConnectionError, OSError
            As `helpers.downloads.fetch`.
        """
        if not file.url:
            raise ValueError(f"{file.accession}: the portal has no file to download")
        return downloads.fetch(file.url, folder, md5=file.md5, size=file.size)

    def _document(self, kind: str, accession: str) -> dict | None:
        """Return the JSON of an accession; None if a folder does not have it."""
        if not re.fullmatch(_ACCESSIONS[kind], accession):
            example = {"experiment": "ENCSR868FGK", "file": "ENCFF077FBI"}[kind]
            raise ValueError(
                f"{kind} must be an accession like {example}; got {accession!r}"
            )
        if self.folder is not None:
            path = self.folder / f"{accession}.json"
            if not path.is_file():
                warnings.warn(
                    f"{accession}: the portal was not asked, there is no {path}; its "
                    "status, assay and assembly are taken on trust",
                    stacklevel=3,
                )
                return None
            document = parse_json(path.read_bytes(), str(path))
        else:
            document = self._ask(kind, accession)
        missing = [key for key in _REQUIRED[kind] if key not in document]
        if missing:
            raise ValueError(
                f"{accession}: what {self.source} has is not the portal's JSON of a "
                f"{kind}: {missing} missing"
            )
        if document["accession"] != accession:
            raise ValueError(
                f"{accession} was replaced: {self.source} shows "
                f"{document['accession']} in its place"
            )
        return document

    def _ask(self, kind: str, accession: str) -> dict:
        url = f"{self.source}/{kind}s/{accession}/?format=json"
        kept = None if self.cache is None else self.cache / f"{accession}.json"
        try:
            return downloads.fetch_json(url, kept)
        except PermissionError as error:
            raise ValueError(
                f"{accession} is not public: in progress, or deleted ({error})"
            ) from None
        except ConnectionError as error:
            raise ConnectionError(
                f"{error}; without the network, the source can be a folder that holds "
                "the files, and the portal's JSON as <accession>.json"
            ) from None

    def _describe(self, accession: str) -> EncodeFile:
        """Describe a file of the folder that comes without the portal's JSON."""
        paths = [self.folder / f"{accession}{suffix}" for suffix in _FORMATS]
        paths = [path for path in paths if path.is_file()]
        if len(paths) != 1:
            raise FileNotFoundError(
                f"{self.folder} must hold one file {accession}<suffix>, with a suffix "
                f"of {list(_FORMATS)}; found {[path.name for path in paths]}"
            )
        (path,) = paths
        return EncodeFile(
            accession=accession,
            experiment="",
            assay="",
            status="",
            assembly="",
            output_type="",
            file_format=_FORMATS[path.name.removeprefix(accession)],
            md5=file_digest(path, "md5"),
            size=path.stat().st_size,
            url=str(path),
            biological_replicates=(),
            biosample="",
        )


def resolve(
    portal: Portal,
    experiment: str,
    *,
    files: Sequence[str] = (),
    peaks: str | None = None,
    assembly: str = "hg38",
    assays: Iterable[str] = ("ATAC-seq",),
) -> Resolved:
    """Find the alignments and peaks of a biosample, and check that they are fit.

    Parameters
    ----------
    portal : Portal
    experiment : str
        Accession.
    files, peaks : sequence of str, str, optional
        Accessions of alignments and of a peak file, if they are to be these; the
        portal's defaults otherwise, for peaks IDR thresholded ones if there are,
        then pseudoreplicated, then replicated ones.
    assembly : str
        The one assembly of all files.
    assays : iterable of str
        Assays that are allowed.

    Returns
    -------
    Resolved

    Raises
    ------
    ValueError
        If the experiment or a file is not released (withdrawn, replaced, unfinished),
        of another assay or assembly, or a file is of another experiment or kind, or two
        alignments are of one replicate, or nothing suitable is there: then what is
        there is listed. All problems are named at once.
    FileNotFoundError
        If the portal does not have an accession, or a folder lacks a file.
    ConnectionError
        As `Portal.experiment`.
    """
    subject = portal.experiment(experiment)
    assembly = _PORTAL_ASSEMBLY.get(assembly, assembly)
    assays = tuple(assays)
    problems = status_problems(subject) + assay_problems(subject, assays)
    known = {file.accession: file for file in subject.files}

    def listed(accession: str) -> EncodeFile:
        file = known.get(accession) or portal.file(accession)
        problems.extend(status_problems(file) + assay_problems(file, assays))
        if file.experiment not in (experiment, ""):
            problems.append(f"{accession} belongs to {file.experiment}")
        if file.assembly not in (assembly, ""):
            problems.append(
                f"{accession} is of assembly {file.assembly}, not {assembly}"
            )
        if not file.url:
            problems.append(f"{accession} has no file to download")
        return file

    if files:
        alignments = [listed(accession) for accession in files]
        problems += kind_problems(alignments, "bam", ("alignments", ""))
    else:
        alignments = portal.find(subject, "alignments", "bam", assembly)
    if peaks is not None:
        peak_files = [listed(peaks)]
        problems += kind_problems(peak_files, _PEAK_FORMAT)
    else:
        by_type = [portal.find(subject, p, _PEAK_FORMAT, assembly) for p in _PEAKS]
        peak_files = next(filter(None, by_type), [])
    for what, found in (("alignments (bam)", alignments), (_PEAK_FORMAT, peak_files)):
        if not found:
            problems.append(
                f"no released {what} on {assembly}; it has {inventory(subject)}"
            )
    problems += replicate_problems(alignments)
    if problems and files:
        default = portal.find(subject, "alignments", "bam", assembly)
        problems.append(f"alignments by default: {[f.accession for f in default]}")
    if problems:
        raise ValueError(f"{experiment}: " + "; ".join(problems))
    # Of pairwise peak calls that nothing sets apart, the one of most replicates.
    best = max(peak_files, key=lambda file: len(file.biological_replicates))
    missing = [
        file.url
        for file in (*alignments, best)
        if portal.folder is not None and not Path(file.url).is_file()
    ]
    if missing:
        raise FileNotFoundError(f"{experiment}: not in the folder: {missing}")
    return Resolved(subject, tuple(alignments), best)


def provenance(files: Iterable[EncodeFile]) -> list[dict]:
    """Describe files for the record of a run."""
    return [
        {
            "accession": file.accession,
            "experiment": file.experiment,
            "biosample": file.biosample,
            "assembly": file.assembly,
            "output_type": file.output_type,
            "file_format": file.file_format,
            "md5": file.md5,
            "size": file.size,
            "url": file.url,
            "status": file.status or "portal not asked",
            "retrieved": file.retrieved,
        }
        for file in files
    ]
