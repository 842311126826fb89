"""What the ENCODE portal says of experiments and files, and what may be wrong with it.

The properties read here are those of the portal's schemas and calculated properties
(github.com/ENCODE-DCC/encoded, ``src/encoded/schemas`` and ``src/encoded/types``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "EncodeFile",
    "Experiment",
    "assay_problems",
    "in_order",
    "inventory",
    "kind_problems",
    "read_experiment",
    "read_file",
    "replicate_problems",
    "status_problems",
]


@dataclass(frozen=True)
class EncodeFile:
    """A file of the portal; text is empty where the portal was not asked.

    Attributes
    ----------
    accession, experiment : str
        ``ENCFF...`` and ``ENCSR...``.
    assay, status, assembly, output_type : str
        In the portal's words: ATAC-seq, released, GRCh38, alignments.
    file_format : str
        The portal's file type: ``bam``, ``bed narrowPeak``, ``bigWig``.
    md5, size : str and int, or None
        Of the file as it is downloaded; size in bytes.
    url : str
        Address or path; empty if the portal has the entry and not the file.
    biological_replicates : tuple of int
        Which replicates of the experiment it was made from.
    biosample : str
        Ontology term, such as K562 or spleen.
    preferred_default : bool
        Whether the portal marks it as the one to use.
    analyses : tuple of str
        Analyses that it belongs to.
    retrieved : str
        When the portal was asked, UTC.
    """

    accession: str
    experiment: str
    assay: str
    status: str
    assembly: str
    output_type: str
    file_format: str
    md5: str | None
    size: int | None
    url: str
    biological_replicates: tuple[int, ...]
    biosample: str
    preferred_default: bool = False
    analyses: tuple[str, ...] = ()
    retrieved: str = ""


@dataclass(frozen=True)
class Experiment:
    """An experiment of the portal; text is empty where the portal was not asked.

    Attributes
    ----------
    accession, status, assay, biosample : str
        As in `EncodeFile`.
    summary : str
        The biosample in a sentence: organism, sex, age, treatment.
    files : tuple of EncodeFile
        All that the portal shows, of any status but revoked.
    analyses : tuple of str
        The released ones: the portal's default first, then from new to old.
    """

    accession: str
    status: str = ""
    assay: str = ""
    biosample: str = ""
    summary: str = ""
    files: tuple[EncodeFile, ...] = field(default=(), repr=False)
    analyses: tuple[str, ...] = ()


def read_experiment(document: dict, source: str | Path) -> Experiment:
    """Read the portal's JSON of an experiment.

    Parameters
    ----------
    document : dict
    source : str or Path
        Address of the portal, or the folder where its files are.

    Raises
    ------
    ValueError
        If its files are named only, or something else is not as the portal writes it.
    """
    try:
        return _read_experiment(document, source)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{document['accession']}: not the portal's JSON of an experiment: "
            f"{error!r}"
        ) from None


def _read_experiment(document: dict, source: str | Path) -> Experiment:
    if any(isinstance(entry, str) for entry in document.get("files", [])):
        raise ValueError(
            f"{document['accession']}: the JSON names its files and does not describe "
            "them; ask for it with ?format=json and no frame"
        )
    released = [a for a in document.get("analyses", []) if _is_released(a)]
    released.sort(key=lambda a: (a.get("date_created", ""), a["@id"]), reverse=True)
    default = _id(document.get("default_analysis"))
    released.sort(key=lambda a: a["@id"] != default)  # stable: the rest stays
    retrieved = {"@retrieved": document.get("@retrieved", "")}
    files = [
        _read_file(entry | retrieved, source)
        for entry in document.get("files", [])
        if "accession" in entry  # files kept elsewhere have none
    ]
    return Experiment(
        accession=document["accession"],
        status=_text(document, "status", None),
        assay=_text(document, "assay_term_name"),
        biosample=_term(document),
        summary=_text(document, "biosample_summary"),
        files=tuple(in_order(files)),
        analyses=tuple(analysis["@id"] for analysis in released),
    )


def read_file(document: dict, source: str | Path) -> EncodeFile:
    """Read the portal's JSON of a file, alone; see `read_experiment`."""
    try:
        return _read_file(document, source)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{document['accession']}: not the portal's JSON of a file: {error!r}"
        ) from None


def _read_file(document: dict, source: str | Path) -> EncodeFile:
    href = document.get("href", "")
    if document.get("no_file_available") or document.get("restricted"):
        href = ""
    if href and isinstance(source, Path):
        url = str(source / href.rpartition("/")[2])
    else:
        url = href and f"{source}{href}"
    analyses = document.get("analyses", [])
    return EncodeFile(
        accession=document["accession"],
        experiment=document["dataset"].strip("/").rpartition("/")[2],
        assay=_text(document, "assay_term_name"),
        status=_text(document, "status", None),
        assembly=_text(document, "assembly"),
        output_type=_text(document, "output_type", None),
        file_format=_text(document, "file_type", document["file_format"]),
        md5=document.get("md5sum"),
        size=document.get("file_size"),
        url=url,
        biological_replicates=tuple(document.get("biological_replicates", [])),
        biosample=_term(document),
        preferred_default=bool(document.get("preferred_default")),
        analyses=tuple(map(_id, analyses)),
        retrieved=document.get("@retrieved", ""),
    )


def in_order(files: Iterable[EncodeFile]) -> list[EncodeFile]:
    """Sort files by replicates, then accession."""
    return sorted(files, key=lambda file: (file.biological_replicates, file.accession))


def _text(document: dict, name: str, default: str | None = "") -> str:
    """Return a text of a document; TypeError if it is another thing, or missing."""
    value = document.get(name, default)
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}")
    return value


def _term(document: dict) -> str:
    """Return the name of the biosample, where the ontology term is embedded."""
    term = document.get("biosample_ontology")
    return term.get("term_name", "") if isinstance(term, dict) else ""


def _id(item: dict | str | None) -> str | None:
    """Return the path of an object, which may be embedded or only named."""
    return item["@id"] if isinstance(item, dict) else item


def _is_released(analysis: object) -> bool:
    return isinstance(analysis, dict) and analysis.get("status") == "released"


def status_problems(item: Experiment | EncodeFile) -> list[str]:
    """Check that an experiment or file is released."""
    if item.status in ("released", ""):
        return []
    return [f"{item.accession} is {item.status}, not released"]


def assay_problems(item: Experiment | EncodeFile, assays: tuple[str, ...]) -> list[str]:
    """Check the assay of an experiment or file."""
    if item.assay in (*assays, ""):
        return []
    return [f"{item.accession} is {item.assay}, not {' or '.join(assays)}"]


def kind_problems(
    files: Iterable[EncodeFile], file_format: str, types: tuple[str, ...] | None = None
) -> list[str]:
    """Check that files are of a format, and of a type if one is asked for."""
    wanted = f"{types[0]} ({file_format})" if types else file_format
    return [
        f"{file.accession} is {file.output_type} ({file.file_format}), not {wanted}"
        for file in files
        if file.file_format != file_format
        or (types is not None and file.output_type not in types)
    ]


def replicate_problems(alignments: Iterable[EncodeFile]) -> list[str]:
    """Check that no reads would be counted twice."""
    owners: dict[int, list[str]] = {}
    for file in alignments:
        for replicate in file.biological_replicates:
            owners.setdefault(replicate, []).append(file.accession)
    return [
        f"{' and '.join(accessions)} both hold replicate {replicate}"
        for replicate, accessions in owners.items()
        if len(accessions) > 1
    ]


def inventory(experiment: Experiment) -> str:
    """List what an experiment has, in words."""
    counts = Counter(
        " ".join(
            filter(None, (f.status, f.assembly, f.output_type, f"({f.file_format})"))
        )
        for f in experiment.files
    )
    return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) or "no files"
