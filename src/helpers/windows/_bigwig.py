"""Open bigWigs so that anything wrong with them is an error that names them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pybigtools

from helpers.windows._bigwig_index import check_trees

__all__ = ["named_errors", "open_bigwig"]


def open_bigwig(
    file: BinaryIO, name: str, *, check_index: bool = True
) -> pybigtools.BBIReader:
    """Open a bigWig; what it is called does not matter, as its content decides.

    Parameters
    ----------
    file : file object
        Where its bytes are.
    name : str
        What errors call it.
    check_index : bool
        Whether to read the whole index first, some bytes for every 1,000 of data. One
        that points outside of the file would end the process.

    Returns
    -------
    pybigtools.BBIReader
        For one thread at a time.

    Raises
    ------
    ValueError
        If it is no bigWig, is truncated or damaged.
    """
    # A whole file ends with the number it begins with: that tells every truncation,
    # most of which the reader would not notice before it comes to it.
    head = file.read(4)
    file.seek(max(file.seek(0, 2) - 4, 0))
    tail = file.read(4)
    if len(head) < 4 or head != tail:
        raise ValueError(
            f"{name}: truncated, or not a bigWig: expected the same magic number at "
            f"both ends; found {head.hex() or 'nothing'} and {tail.hex() or 'nothing'}"
        )
    if check_index:
        check_trees(file, name)
    file.seek(0)
    with named_errors(f"{name}: cannot read its header"):
        reader = pybigtools.open(file)
    if not reader.is_bigwig:
        raise ValueError(f"{name}: expected a bigWig; found a bigBed")
    return reader


@contextmanager
def named_errors(what: str) -> Iterator[None]:
    """Turn any error of pybigtools into a ValueError that begins with ``what``.

    Damaged files make it panic, which derives from BaseException only.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise ValueError(f"{what} (damaged?): {error}") from None
