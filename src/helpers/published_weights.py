"""The authors' pre-trained weights, from their record on Zenodo.

The record's files are asked for, not assumed: it may hold the parts of TensorFlow
checkpoints, or archives of them. The authors' first model is the one they built on.
``python -m helpers.published_weights`` fetches ahead, for machines without network.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from helpers.downloads import ZENODO, RemoteFile, fetch, zenodo_files

__all__ = ["RECORD", "published_weights"]

RECORD = 14504049  # of Javed et al. 2025
_FIRST_MODEL = re.compile(r"model[-_ ]?1(?!\d)", re.IGNORECASE)
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_log = logging.getLogger(__name__)


def published_weights(folder: str | Path, *, source: str | Path = ZENODO) -> Path:
    """Return the prefix of the authors' pre-trained checkpoint, fetching it if needed.

    Parameters
    ----------
    folder : str or Path
        Where it is kept.
    source : str or Path
        Zenodo, a mirror of its API, or a folder that holds the files of the record.

    Returns
    -------
    Path
        What :meth:`helpers.epibert.EpiBERT.from_pretrained` takes.

    Raises
    ------
    ValueError
        If the record does not hold one checkpoint, or one that is named as the first
        model; the error lists what it holds.
    FileNotFoundError, ConnectionError, OSError
        As `helpers.downloads.fetch`.
    """
    folder = Path(folder)
    listed = zenodo_files(RECORD, source=source, folder=folder)
    names = [file.name for file in listed]
    loose = [name for name in names if name.endswith(".index")]
    if loose:
        prefix = _choose(loose, names).removesuffix(".index")
        for file in listed:
            if file.name.startswith((f"{prefix}.index", f"{prefix}.data-")):
                _fetch(file, folder)
        return folder / prefix
    packed = [name for name in names if name.endswith(_ARCHIVES)]
    chosen = _choose(packed, names)
    archive = _fetch(listed[names.index(chosen)], folder)
    unpacked = folder / f"{chosen}.unpacked"
    if not unpacked.is_dir():
        partial = unpacked.with_name(f".{unpacked.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        safely = {} if chosen.endswith(".zip") else {"filter": "data"}
        shutil.unpack_archive(archive, partial, **safely)
        partial.rename(unpacked)
    found = sorted(str(p.relative_to(unpacked)) for p in unpacked.rglob("*.index"))
    return unpacked / _choose(found, names).removesuffix(".index")


def _fetch(file: RemoteFile, folder: Path) -> Path:
    return fetch(file.url, folder, name=file.name, md5=file.md5, size=file.size)


def _choose(candidates: Sequence[str], listed: Sequence[str]) -> str:
    """Return the only candidate, or the only one named as the first model."""
    first = [name for name in candidates if _FIRST_MODEL.search(name)]
    for names in (candidates, first):
        if len(names) == 1:
            _log.info("published weights: %s", names[0])
            return names[0]
    raise ValueError(
        f"record {RECORD}: expected one checkpoint or archive, or one named as model "
        f"1; found {list(candidates)} among {list(listed)}. Download and unpack what "
        "you want, and name it with the parameter `model`, such as model1/ckpt-45"
    )


def main() -> None:
    """Fetch the weights ahead of time, from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.published_weights", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--output", type=Path, default=Path("_build/data/encode/weights")
    )
    parser.add_argument(
        "--source", default=ZENODO, help="mirror of Zenodo, or a folder"
    )
    arguments = parser.parse_args()
    try:
        print(published_weights(arguments.output, source=arguments.source))
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
