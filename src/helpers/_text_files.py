"""Text files that others have written, gzipped or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

__all__ = ["read_text"]

_MAX_BYTES = 2**30  # unpacked; small archives can hold more than any memory


def read_text(path: Path, what: str) -> str:
    """Return the text of a file.

    Parameters
    ----------
    path : Path
        Plain or gzipped, in UTF-8.
    what : str
        What it should be, for errors.

    Raises
    ------
    FileNotFoundError
        If it does not exist.
    ValueError
        If it is not text, a damaged archive, or longer than 1 GiB.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what} not found: {path}")
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_packed else path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
        return content.decode("utf-8")
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected text: {error}") from None
