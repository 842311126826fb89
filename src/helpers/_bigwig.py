"""Intervals of a bigWig by random access, from a local file or any other source.

The format is that of Kent et al. 2010 (Bioinformatics 26:2204): a B+ tree of
chromosomes, an R tree of compressed blocks, and totals over the file. pybigtools, which
writes bigWigs for this package, fills an array of bases under the interpreter's lock;
here a block is decompressed outside of it, intervals stay intervals, and any number of
threads may read one file. Positions are 0-based and half-open.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

__all__ = ["BigWig", "Intervals", "LocalFile", "Source", "Totals"]

_MAGIC, _BIGBED = 0x888FFC26, 0x8789F2EB
_CHROM_MAGIC, _INDEX_MAGIC = 0x78CA8C91, 0x2468ACE0
_HEADER, _TOTALS, _CHROM_HEADER = "IHHQQQHHQQIQ", "Qdddd", "IIIIQQ"
_INDEX_HEADER_BYTES = 48
_NODE, _BLOCK = "BBH", "IIIIIBBH"
_NODE_BYTES, _BLOCK_BYTES = 4, 24
_ITEM_WORDS = {1: 3, 2: 2, 3: 1}  # bedGraph, variable step, fixed step
_SPAN = [("chrom", "u4"), ("start", "u4"), ("last_chrom", "u4"), ("end", "u4")]
_INNER, _LEAF = [*_SPAN, ("child", "u8")], [*_SPAN, ("offset", "u8"), ("size", "u8")]
_BUFFER_BYTES = 1 << 15  # of a block; it grows where that is too small
_MAX_KEY_BYTES = 1 << 12  # a damaged header may say anything


class Source(Protocol):
    """Bytes that can be read anywhere; ``name`` is what errors call them."""

    name: str

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``, or fewer where the source ends."""

    def tail(self, size: int) -> bytes:
        """Return the last bytes."""


class LocalFile:
    """A file on disk; threads may read it at the same time.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        if not Path(path).is_file():
            raise FileNotFoundError(f"bigWig not found: {path}")
        self._file = Path(path).open("rb", buffering=0)
        self._size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``, or fewer where the file ends."""
        size = min(size, self._size - offset)
        if offset < 0 or size <= 0:  # a damaged file may ask for anything
            return b""
        return os.pread(self._file.fileno(), size, offset)

    def tail(self, size: int) -> bytes:
        """Return the last bytes."""
        return self.read(max(self._size - size, 0), size)


class Intervals(NamedTuple):
    """Stretches of equal signal, in order of position.

    Attributes
    ----------
    start, end : numpy.ndarray, shape (n,), int64
        First base, and the base after the last.
    value : numpy.ndarray, shape (n,), float32
        Signal of every base.
    """

    start: np.ndarray
    end: np.ndarray
    value: np.ndarray


class Totals(NamedTuple):
    """What a bigWig says about all of its signal."""

    n_bases: int
    min: float
    max: float
    sum: float
    sum_squares: float


class BigWig:
    """A bigWig.

    Parameters
    ----------
    source : Source
        Where its bytes are.

    Attributes
    ----------
    name : str
        Name of the source.
    chroms : dict of str to int
        Length of every chromosome.
    totals : Totals or None
        Totals; None where the file has none (version 1 of the format).

    Raises
    ------
    ValueError
        If it is no bigWig, is truncated or damaged.
    """

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self._source = source
        self._order = self._check_magic()
        with self._named_damage("its header"):
            header = self._unpack(_HEADER, 0)
            chrom_tree, _, index = header[3:6]
            totals, block_bytes = header[9:11]
            self._is_packed = block_bytes > 0
            self.totals = Totals(*self._unpack(_TOTALS, totals)) if totals else None
            magic, _, key_bytes, *_ = self._unpack(_CHROM_HEADER, chrom_tree)
            (index_magic,) = self._unpack("I", index)
            if (magic, index_magic) != (_CHROM_MAGIC, _INDEX_MAGIC):
                raise ValueError("no tree of chromosomes or no index where it says")
            if key_bytes > _MAX_KEY_BYTES:
                raise ValueError(f"names of chromosomes take {key_bytes} bytes")
            first = chrom_tree + struct.calcsize(f"={_CHROM_HEADER}")
            found = {name: pair for name, *pair in self._chroms(first, key_bytes)}
        self._ids = {name: number for name, (number, _) in found.items()}
        self.chroms = {name: length for name, (_, length) in found.items()}
        self._root = index + _INDEX_HEADER_BYTES

    def intervals(self, chrom: str, start: int, end: int) -> Intervals:
        """Return the signal of a region, cut off at its ends.

        Raises
        ------
        KeyError
            If there is no such chromosome.
        ValueError
            If the file is damaged there.
        """
        number = self._ids[chrom]
        parts = [np.empty((0, 3), np.uint32)]
        with self._named_damage(f"{chrom}:{start}-{end}"):
            for data in self._blocks(number, start, end):
                parts.append(self._items(data, number))
        rows = np.concatenate(parts)
        rows = rows[(rows[:, 0] < end) & (rows[:, 1] > start)]
        return Intervals(
            np.maximum(rows[:, 0].astype(np.int64), start),
            np.minimum(rows[:, 1].astype(np.int64), end),
            np.ascontiguousarray(rows[:, 2]).view(np.float32),
        )

    def _check_magic(self) -> str:
        """Return the byte order; a whole file ends with the number it begins with.

        That tells every truncation, most of which the index alone would not show.
        """
        head, tail = self._source.read(0, 4), self._source.tail(4)
        for order, name in (("<", "little"), (">", "big")):
            if head == tail == _MAGIC.to_bytes(4, name):
                return order
            if head == _BIGBED.to_bytes(4, name):
                raise ValueError(f"{self.name}: expected a bigWig; found a bigBed")
        raise ValueError(
            f"{self.name}: truncated, or not a bigWig: expected its magic number at "
            f"both ends; found {head.hex() or 'nothing'} and {tail.hex() or 'nothing'}"
        )

    @contextmanager
    def _named_damage(self, where: str) -> Iterator[None]:
        try:
            yield
        except (struct.error, zlib.error, RecursionError, ValueError) as error:
            raise ValueError(
                f"{self.name}: cannot read {where} (damaged?): {error}"
            ) from None

    def _read(self, offset: int, size: int) -> bytes:
        data = self._source.read(offset, size)
        if len(data) != size:
            raise ValueError(f"{size} bytes expected at {offset}, {len(data)} found")
        return data

    def _unpack(self, layout: str, offset: int) -> tuple:
        layout = self._order + layout
        return struct.unpack(layout, self._read(offset, struct.calcsize(layout)))

    def _node(self, offset: int, types: tuple[list, list]) -> tuple[bool, np.ndarray]:
        """Return whether a node of a tree is a leaf, and its items."""
        is_leaf, _, count = self._unpack(_NODE, offset)
        dtype = np.dtype(types[bool(is_leaf)]).newbyteorder(self._order)
        data = self._read(offset + _NODE_BYTES, count * dtype.itemsize)
        return bool(is_leaf), np.frombuffer(data, dtype)

    def _chroms(self, offset: int, key_bytes: int) -> Iterator[tuple[str, int, int]]:
        """Yield name, number and length of the chromosomes below a node."""
        key = ("key", f"S{key_bytes}")
        types = [key, ("child", "u8")], [key, ("number", "u4"), ("length", "u4")]
        is_leaf, items = self._node(offset, types)
        for item in items.tolist():
            if is_leaf:
                yield item[0].decode(), item[1], item[2]
            else:
                yield from self._chroms(item[1], key_bytes)

    def _blocks(self, number: int, start: int, end: int) -> Iterator[bytes]:
        """Yield the blocks of a region in file order, which is that of positions."""
        found = [np.empty((0, 2), np.int64)]
        pending, seen = [self._root], set()
        while pending:
            offset = pending.pop()
            if offset in seen:
                raise ValueError("its index runs in a circle")
            seen.add(offset)
            is_leaf, items = self._node(offset, (_INNER, _LEAF))
            begins = (items["chrom"] < number) | (
                (items["chrom"] == number) & (items["start"] < end)
            )
            lasts = (items["last_chrom"] > number) | (
                (items["last_chrom"] == number) & (items["end"] > start)
            )
            items = items[begins & lasts]
            if is_leaf:
                blocks = np.stack([items["offset"], items["size"]], axis=1)
                found.append(blocks.astype(np.int64))
            else:
                pending += items["child"].tolist()
        blocks = np.concatenate(found)
        blocks = blocks[np.argsort(blocks[:, 0])]
        # Blocks of a region follow each other: one read serves them all.
        apart = np.flatnonzero(blocks[1:, 0] != blocks[:-1].sum(axis=1)) + 1
        for run in np.split(blocks, apart):
            if len(run):
                first = int(run[0, 0])
                data = memoryview(self._read(first, int(run[-1].sum()) - first))
                for offset, size in (run - [first, 0]).tolist():
                    yield data[offset : offset + size]

    def _items(self, data: bytes, number: int) -> np.ndarray:
        """Return the items of a block, shape (n, 3): start, end, bits of the value."""
        if self._is_packed:
            data = zlib.decompress(data, bufsize=_BUFFER_BYTES)
        chrom, first, _, step, span, kind, _, n = struct.unpack_from(
            self._order + _BLOCK, data
        )
        if chrom != number:
            return np.empty((0, 3), np.uint32)
        if kind not in _ITEM_WORDS:
            raise ValueError(f"blocks are of kind 1, 2 or 3; found {kind}")
        width = _ITEM_WORDS[kind]
        words = np.frombuffer(data, f"{self._order}u4", n * width, _BLOCK_BYTES)
        words = words.reshape(n, width).astype(np.uint32, copy=False)
        if width == 3:
            return words
        start = words[:, 0] if width == 2 else first + step * np.arange(n)
        return np.stack([start, start + span, words[:, -1]], axis=1).astype(np.uint32)
