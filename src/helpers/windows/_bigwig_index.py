"""Whether the trees inside a bigWig point where they can.

pybigtools believes them: a damaged size makes it ask for that much memory, which ends
the process. The layout is that of Kent et al. 2010, Bioinformatics 26:2204, supplement.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

__all__ = ["check_trees"]

_BIGWIG = 0x888FFC26
_R_TREE, _CHROMOSOME_TREE = 0x2468ACE0, 0x78CA8C91
_MAX_KEY = 1024  # letters of a chromosome's name
_MAX_BLOCK = 2**28  # bytes of a block unpacked; writers use some 10,000


class _Damaged(Exception):
    pass


def check_trees(file: BinaryIO, name: str) -> None:
    """Check sizes and addresses in the trees of a bigWig.

    Parameters
    ----------
    file : file object
        Its bytes, at random access.
    name : str
        What errors call it.

    Notes
    -----
    What is no bigWig is passed over: the reader says so better.

    Raises
    ------
    ValueError
        If something lies outside of the file, or trees run in circles.
    """
    try:
        trees = _Trees(file)
        if trees.is_bigwig:
            trees.check()
    except (_Damaged, struct.error) as error:
        raise ValueError(f"{name}: damaged index: {error}") from None


class _Trees:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = file.seek(0, 2)
        file.seek(0)
        magic = file.read(4)
        self.order = "<" if magic == struct.pack("<I", _BIGWIG) else ">"
        self.is_bigwig = magic == struct.pack(f"{self.order}I", _BIGWIG)

    def check(self) -> None:
        """Check the header, the tree of chromosomes, and those of data and zooms."""
        header = self._unpack("IHHQQQHHQQIQ", 0)
        n_zooms, chromosomes, index, unpacked = (header[i] for i in (2, 3, 5, 10))
        if unpacked > _MAX_BLOCK:
            raise _Damaged(f"blocks of {unpacked} bytes")
        self._check_chromosomes(chromosomes)
        zooms = [self._unpack("IIQQ", 64 + 24 * i)[3] for i in range(n_zooms)]
        for root in (index, *zooms):
            magic, *_ = self._unpack("IIQ", root)
            if magic != _R_TREE:
                raise _Damaged(f"no tree of regions at byte {root}")
            self._walk(root + 48, 24, 32, self._check_leaves)

    def _check_chromosomes(self, root: int) -> None:
        magic, _, key, value, n_items, _ = self._unpack("IIIIQQ", root)
        if magic != _CHROMOSOME_TREE or not 0 < key <= _MAX_KEY or value != 8:
            raise _Damaged(f"no tree of chromosomes at byte {root}")
        if n_items > self.size // (key + value):
            raise _Damaged(f"{n_items} chromosomes in a file of {self.size} bytes")
        self._walk(root + 32, key + 8, key + 8, lambda leaves: None)

    def _check_leaves(self, leaves: np.ndarray) -> None:
        """Check where blocks lie, from items (chromosomes, bases, offset, size)."""
        numbers = leaves[:, 16:].copy().view(f"{self.order}u8")
        offset, size = numbers[:, 0], numbers[:, 1]
        if (offset > self.size).any() or (size > self.size - offset).any():
            raise _Damaged("blocks lie outside of the file")

    def _walk(
        self,
        root: int,
        branch_bytes: int,
        leaf_bytes: int,
        check: Callable[[np.ndarray], None],
    ) -> None:
        """Visit all nodes of a tree; items of branches end with an address."""
        pending, seen = [root], set()
        while pending:
            at = pending.pop()
            if at in seen:
                raise _Damaged(f"a tree that runs in circles at byte {at}")
            seen.add(at)
            is_leaf, _, n_items = self._unpack("BBH", at)
            n_bytes = leaf_bytes if is_leaf else branch_bytes
            items = np.frombuffer(self._at(at + 4, n_items * n_bytes), np.uint8)
            items = items.reshape(n_items, n_bytes)
            if is_leaf:
                check(items)
            else:
                children = items[:, -8:].copy().view(f"{self.order}u8")
                pending += children[:, 0].tolist()

    def _unpack(self, layout: str, at: int) -> tuple:
        layout = self.order + layout
        return struct.unpack(layout, self._at(at, struct.calcsize(layout)))

    def _at(self, start: int, n_bytes: int) -> bytes:
        if start + n_bytes > self.size:
            raise _Damaged(f"bytes {start} to {start + n_bytes} of {self.size}")
        self.file.seek(start)
        return self.file.read(n_bytes)
