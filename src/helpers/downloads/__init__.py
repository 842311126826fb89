"""Files from the internet or a mirror: fetched once, resumed, verified, recorded.

A file appears under its name only when it is complete and has its checksum; a record
(``<name>.json``) lies beside it. On top of it: the records of Zenodo, and the genomes
of UCSC.
"""

from __future__ import annotations

import gzip
import logging
import os
import shutil
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pysam
from filelock import FileLock

from helpers.downloads import _transfer
from helpers.downloads._fetched import (
    file_digest,
    local_path,
    parse_json,
    read_record,
    split_checksum,
    utc_now,
    write_record,
)

__all__ = [
    "UCSC",
    "ZENODO",
    "RemoteFile",
    "fetch",
    "fetch_genome",
    "fetch_json",
    "zenodo_file",
    "zenodo_files",
]

UCSC = "https://hgdownload.soe.ucsc.edu/goldenPath/{assembly}/bigZips/{assembly}.fa.gz"
ZENODO = "https://zenodo.org"

_log = logging.getLogger(__name__)


class RemoteFile(NamedTuple):
    """A file that can be fetched: ``md5`` and ``size`` are None where not published."""

    name: str
    url: str
    md5: str | None
    size: int | None


def fetch(
    url: str,
    folder: str | Path,
    *,
    name: str | None = None,
    md5: str | None = None,
    sha256: str | None = None,
    size: int | None = None,
) -> Path:
    """Return a file of a folder, fetching it if it is not there yet.

    A transfer that is cut off, or killed, goes on where it stopped; failures that may
    pass are tried again, with growing waits. A local file is linked, not copied.
    Without a checksum, what comes first is trusted: its digest is logged and recorded,
    and a later fetch must agree with it.

    Parameters
    ----------
    url : str
        http, https or file address, or a path. It may end in ``#sha256=<digest>`` or
        ``#md5=<digest>``.
    folder : str or Path
        Where the file is kept; made if absent.
    name : str, optional
        Name in the folder; the last part of the address by default.
    md5, sha256 : str, optional
        Expected digest, hexadecimal; at most one.
    size : int, optional
        Expected size in bytes.

    Returns
    -------
    Path
        ``folder / name``.

    Raises
    ------
    ValueError
        If the arguments contradict each other, another address has been fetched under
        this name, or the file has the wrong size or checksum; then it is not kept.
    FileNotFoundError, PermissionError
        If the server, or the disk, does not have it or refuses it.
    ConnectionError
        If the server cannot be reached.
    OSError
        If the disk is full.
    """
    address, expected = split_checksum(url, md5, sha256)
    name = name or unquote(urlsplit(address).path).rpartition("/")[2]
    if Path(name).name != name or name in ("", ".."):
        raise ValueError(f"name must be that of a file; got {name!r} for {url}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with FileLock(folder / f".{name}.lock"):  # two processes may want it at once
        record = read_record(path)
        if record and expected is None and record.url != address:
            raise ValueError(
                f"{path} was fetched from {record.url}, not from {address}; "
                "give a checksum or another name"
            )
        if record and record.is_current and expected in (None, record.checksum):
            return path
        known = expected or (record and record.checksum)
        _retrieve(address, path, known, size)
        if known is None:
            known = _hash_like(path, None)
            _log.warning("%s: no checksum is known; found %s", address, known)
        write_record(path, address, known)
    return path


def fetch_json(url: str, path: str | Path | None = None) -> dict:
    """Return a JSON document, asking for it only once.

    Parameters
    ----------
    url : str
        Address of the document.
    path : str or Path, optional
        Where it is kept, so that a rerun asks nobody and sees the same; removing the
        file asks again. Not kept if None.

    Returns
    -------
    dict
        The document, with the keys ``@source`` (address) and ``@retrieved`` (UTC).

    Raises
    ------
    ValueError
        If what comes, or what is kept, is not a JSON object.
    FileNotFoundError, PermissionError, ConnectionError
        As `fetch`.
    """
    if path is not None and Path(path).is_file():
        return parse_json(Path(path).read_bytes(), str(path))
    content = parse_json(_transfer.get_bytes(url, accept="application/json"), url)
    document = content | {"@source": url, "@retrieved": utc_now()}
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _transfer.write_json(Path(path), document)
    return document


def zenodo_files(
    record: int | str, *, source: str | Path = ZENODO, folder: str | Path | None = None
) -> list[RemoteFile]:
    """List the files of a record of Zenodo.

    Parameters
    ----------
    record : int or str
        Its number, such as 14504049 for the weights of EpiBERT.
    source : str or Path
        Zenodo, a mirror of its API, or a folder that holds the files, with the record
        as ``<record>.json`` if their checksums are to be verified.
    folder : str or Path, optional
        Where the record is kept for reruns, as ``zenodo_<record>.json``.

    Returns
    -------
    list of RemoteFile
        In alphabetical order.

    Raises
    ------
    ValueError
        If the record lists no files in the form that Zenodo documents.
    FileNotFoundError, PermissionError, ConnectionError
        As `fetch`.
    """
    mirror = local_path(source)
    if mirror is None:
        url = f"{str(source).rstrip('/')}/api/records/{record}"
        kept = None if folder is None else Path(folder) / f"zenodo_{record}.json"
        return _record_files(fetch_json(url, kept), url)
    if not mirror.is_dir():
        raise FileNotFoundError(
            f"source must be a folder of files; not found: {mirror}"
        )
    index = mirror / f"{record}.json"
    if index.is_file():
        listed = _record_files(parse_json(index.read_bytes(), str(index)), str(index))
        return [file._replace(url=str(mirror / file.name)) for file in listed]
    return [
        RemoteFile(path.name, str(path), None, path.stat().st_size)
        for path in sorted(mirror.iterdir())
        if path.is_file() and not path.name.startswith(".")
    ]


def zenodo_file(
    record: int | str,
    filename: str,
    *,
    source: str | Path = ZENODO,
    folder: str | Path | None = None,
) -> RemoteFile:
    """Return one file of a record of Zenodo: what `fetch` needs to know of it.

    Parameters are those of `zenodo_files`, and the file's name in the record.

    Raises
    ------
    FileNotFoundError
        If the record has no such file; the error lists those it has.
    """
    files = zenodo_files(record, source=source, folder=folder)
    for file in files:
        if file.name == filename:
            return file
    raise FileNotFoundError(
        f"record {record} of {source} has no file {filename!r}; "
        f"it has {[file.name for file in files]}"
    )


def fetch_genome(
    assembly: str, folder: str | Path, *, source: str | Path = UCSC
) -> Path:
    """Return an indexed FASTA of a genome, fetching and unpacking it if needed.

    The compressed file is verified against ``md5sum.txt`` beside it, unpacked, indexed
    and, if it was transferred, removed. hg38 takes about 1 GB to transfer and 3.3 GB to
    keep; while it is unpacked both are on the disk.

    Parameters
    ----------
    assembly : str
        UCSC's name, such as ``hg38``.
    folder : str or Path
        Where ``<assembly>.fa`` and its ``.fai`` are kept.
    source : str or Path
        Address or path of the FASTA compressed by gzip, with ``{assembly}`` for the
        name.

    Returns
    -------
    Path
        ``<assembly>.fa``: plain text, because random windows of it are read faster than
        from compressed blocks.

    Raises
    ------
    ValueError
        If ``md5sum.txt`` does not list the file, the checksum is wrong, or the file is
        not compressed FASTA.
    FileNotFoundError, PermissionError, ConnectionError, OSError
        As `fetch`.
    """
    folder = Path(folder)
    fasta = folder / f"{assembly}.fa"
    index = Path(f"{fasta}.fai")
    if _is_unchanged(fasta) and _is_unchanged(index):
        return fasta
    url, pinned = split_checksum(str(source).format(assembly=assembly))
    algorithm, digest = (pinned or f"md5:{_listed_md5(url)}").split(":")
    packed = fetch(url, folder, **{algorithm: digest})
    with FileLock(folder / f".{fasta.name}.lock"):
        if not (_is_unchanged(fasta) and _is_unchanged(index)):
            draft = fasta.with_name(f".{fasta.name}.partial")
            _unpack(packed, draft)
            pysam.faidx(str(draft))
            Path(f"{draft}.fai").replace(index)
            draft.replace(fasta)
            for path in (index, fasta):
                write_record(path, url, _hash_like(path, None))
        if packed.is_symlink() or local_path(url) is None:  # else it is the original
            packed.unlink(missing_ok=True)
    return fasta


def _retrieve(url: str, path: Path, known: str | None, size: int | None) -> None:
    """Bring a file, verify it, and put it under its name, unless it is there."""
    part = path.with_name(f"{path.name}.part")
    if path.is_file() and known in (None, _hash_like(path, known)):
        _transfer.discard(part)  # a process that was killed here could not
        return
    original = local_path(url)
    if original is None:
        _transfer.download(url, part, size=size, label=path.name)
    else:
        _link(original.absolute(), part, size)
    if known is not None and (found := _hash_like(part, known)) != known:
        _transfer.discard(part)
        raise ValueError(
            f"{url}: expected {known}; found {found}; {path.name} is not kept"
        )
    part.replace(path)
    _transfer.discard(part)


def _is_unchanged(path: Path) -> bool:
    """Return whether a file is there, and as it was recorded if it was."""
    record = read_record(path)
    return path.is_file() and (record is None or record.is_current)


def _hash_like(path: Path, known: str | None) -> str:
    """Return the checksum of a file by the algorithm of another."""
    algorithm = (known or "sha256:").partition(":")[0]
    return f"{algorithm}:{file_digest(path, algorithm)}"


def _link(original: Path, part: Path, size: int | None) -> None:
    """Let a local file appear as if it had been transferred."""
    if not original.is_file():
        raise FileNotFoundError(f"no such file: {original}")
    found = original.stat().st_size
    if size not in (None, found):
        raise ValueError(f"{original}: expected {size:,} bytes; found {found:,}")
    _transfer.discard(part)
    part.symlink_to(original)


def _record_files(record: dict, origin: str) -> list[RemoteFile]:
    """Read the files of a record as Zenodo's API writes them."""
    files = []
    try:
        for entry in record["files"]:
            algorithm, _, digest = entry["checksum"].partition(":")
            md5 = digest if algorithm == "md5" else None
            url = entry["links"]["self"]
            files.append(RemoteFile(entry["key"], url, md5, entry["size"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{origin}: expected 'files' with key, size, checksum and links.self, as "
            f"in a record of Zenodo; not found: {error}"
        ) from None
    return sorted(files)


def _listed_md5(url: str) -> str:
    """Return the digest that ``md5sum.txt`` beside a file lists for it."""
    folder, _, name = url.rpartition("/")
    path = local_path(url)
    if path is None:
        sums = f"{folder}/md5sum.txt"
        content = _transfer.get_bytes(sums)
    else:
        sums = path.with_name("md5sum.txt")
        content = sums.read_bytes() if sums.is_file() else b""
    for line in content.decode("utf-8", "replace").splitlines():
        digest, _, listed = line.partition(" ")
        if listed.strip().lstrip("*") == name:
            return digest
    raise ValueError(
        f"{sums} does not list {name}; its checksum can be given as {url}#md5=<digest>"
    )


def _unpack(packed: Path, draft: Path) -> None:
    """Unpack a gzipped FASTA."""
    with packed.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(-4, os.SEEK_END)
        least = int.from_bytes(file.read(), "little")  # its size modulo 4 GiB
    if not is_gzip:
        raise ValueError(f"{packed}: expected a file compressed by gzip")
    _transfer.check_space(draft, least)
    with gzip.open(packed) as source, draft.open("wb") as target:
        first = source.read(1)
        if first != b">":
            raise ValueError(f"{packed}: expected FASTA; it begins with {first!r}")
        target.write(first)
        shutil.copyfileobj(source, target, 1 << 20)
