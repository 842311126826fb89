"""Text files that others have written, gzipped or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

__all__ = ["read_text"]


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
        If it is not text, or a damaged archive.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what} not found: {path}")
    content = path.read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return content.decode("utf-8")
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected text: {error}") from None
