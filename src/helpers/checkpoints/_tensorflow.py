"""The container of a TensorFlow checkpoint, read and verified without TensorFlow.

``PREFIX.index`` is a table in LevelDB's format, from a key to a small protobuf message
that says where a tensor lies. ``PREFIX.data-0000i-of-0000n`` are the tensors, raw and
little-endian. Each block of the table and each tensor has a masked CRC-32C.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from operator import index
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

__all__ = ["TensorEntry", "describe_path", "list_tensors", "read_tensor"]

_TABLE_MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # behind a block: its type, then a checksum of block and type
_BLOCK_TYPES = {0: "uncompressed", 1: "snappy"}
_TENSOR_TYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    7: "string",
    9: "int64",
    14: "bfloat16",
    19: "float16",
}
_CRC_MASK = 0xA282EAD8
_SCOPE = "model/"
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_FILE_ENDING = re.compile(r"\.(index|data-\d{5}-of-\d{5})$")
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class TensorEntry(NamedTuple):
    """Where a checkpoint keeps one tensor.

    Attributes
    ----------
    key : str
        In full, with ``model/`` and ``/.ATTRIBUTES/VARIABLE_VALUE``.
    dtype : str
        Name of its type.
    shape : tuple of int
    path : Path
        The data file.
    offset, n_bytes : int
        The bytes of the data file that hold the tensor.
    checksum : int
        Their masked CRC-32C.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    n_bytes: int
    checksum: int


def _masked_crc32c(content: bytes | np.ndarray) -> int:
    """Return a CRC-32C as LevelDB stores it: rotated, and moved by a constant."""
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xFFFFFFFF


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    """Read a base-128 integer; return it and the position after it."""
    value = shift = 0
    while at < len(buffer):
        byte = buffer[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number is cut off")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the (number, value) pairs of a protobuf message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire_type == 2:
            size, at = _varint(message, at)
        elif wire_type in (1, 5):
            size = {1: 8, 5: 4}[wire_type]
        else:
            raise ValueError(f"unknown protobuf wire type {wire_type}")
        if at + size > len(message):
            raise ValueError("a protobuf field runs over its message")
        content = message[at : at + size]
        yield number, content if wire_type == 2 else int.from_bytes(content, "little")
        at += size


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (key, value) pairs of one block of the table, verified first."""
    end = offset + size
    block, trailer = table[offset:end], table[end : end + _TRAILER_BYTES]
    if _masked_crc32c(block + trailer[:1]) != int.from_bytes(trailer[1:], "little"):
        raise ValueError(f"bytes {offset} to {end} do not match their checksum")
    if trailer[0] != 0:
        kind = _BLOCK_TYPES.get(trailer[0], f"unknown type {trailer[0]}")
        raise ValueError(f"compressed blocks ({kind}) are not supported")
    # A list of restart offsets, for binary search, ends with their number.
    n_restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (n_restarts + 1)
    key, at = b"", 0
    while at < end:
        n_shared, at = _varint(block, at)
        n_new, at = _varint(block, at)
        n_value, at = _varint(block, at)
        key = key[:n_shared] + block[at : at + n_new]
        at += n_new
        yield key, block[at : at + n_value]
        at += n_value


def _table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (key, value) pairs of a whole table."""

    def handle(buffer: bytes, at: int) -> tuple[int, int, int]:
        offset, at = _varint(buffer, at)
        size, at = _varint(buffer, at)
        return offset, size, at

    footer = table[-_FOOTER_BYTES:]
    *meta_block, at = handle(footer, 0)
    *block_of_blocks, _ = handle(footer, at)
    list(_block(table, *meta_block))  # empty; only to be verified
    for _, value in _block(table, *block_of_blocks):
        offset, size, _ = handle(value, 0)
        yield from _block(table, offset, size)


def _shape(message: bytes) -> tuple[int, ...]:
    """Parse a TensorShapeProto: repeated dimensions, each with its size."""
    return tuple(
        index(dict(_fields(dimension)).get(1, 0))
        for number, dimension in _fields(message)
        if number == 2
    )


def _read_index(prefix: Path) -> list[TensorEntry]:
    """Return the entries of an index, those of the model and all others."""
    path = Path(f"{prefix}.index")
    table = path.read_bytes()
    if len(table) < _FOOTER_BYTES or not table.endswith(_TABLE_MAGIC):
        raise ValueError(f"{path} is not the index of a TensorFlow checkpoint")
    entries, n_shards = [], 1
    try:
        for key, value in _table(table):
            fields = dict(_fields(value))
            if not key:  # the header, first of all keys
                n_shards = index(fields.get(1, 1))
                if fields.get(2, 0) != 0:
                    raise ValueError("big-endian checkpoints are not supported")
                continue
            dtype, shard = index(fields.get(1, 0)), index(fields.get(3, 0))
            entry = TensorEntry(
                key=key.decode(),
                dtype=_TENSOR_TYPES.get(dtype, f"TensorFlow type {dtype}"),
                shape=_shape(fields.get(2, b"")),
                path=Path(f"{prefix}.data-{shard:05d}-of-{n_shards:05d}"),
                offset=index(fields.get(4, 0)),
                n_bytes=index(fields.get(5, 0)),
                checksum=index(fields.get(6, 0)),
            )
            entries.append(entry)
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or of an unknown kind: {error}") from error
    return entries


def list_tensors(prefix: str | Path) -> dict[str, TensorEntry]:
    """List the model tensors of one of the authors' TensorFlow checkpoints.

    Reads and verifies the index, and checks that the data files are there and long
    enough; none of them is read. Keys outside ``model/`` (optimizer slots, counters,
    the object graph) are ignored.

    Parameters
    ----------
    prefix : str or Path
        Path without ``.index`` or ``.data-0000i-of-0000n``.

    Returns
    -------
    dict of str to TensorEntry
        By key without ``model/`` and ``/.ATTRIBUTES/VARIABLE_VALUE``.

    Raises
    ------
    FileNotFoundError
        If the index or a data file is missing.
    ValueError
        If the index is none or damaged, a data file too short, or a tensor not float32.
    """
    prefix = Path(prefix)
    if not Path(f"{prefix}.index").is_file():
        raise FileNotFoundError(
            f"{prefix} is not the prefix of a TensorFlow checkpoint: "
            f"{describe_path(prefix)}"
        )
    entries = _read_index(prefix)
    tensors = {
        entry.key[len(_SCOPE) : -len(_SUFFIX)]: entry
        for entry in entries
        if entry.key.startswith(_SCOPE) and entry.key.endswith(_SUFFIX)
    }
    if not tensors:
        found = ", ".join(entry.key for entry in entries[:3]) or "none at all"
        raise ValueError(
            f"{prefix}.index lists no tensor below {_SCOPE!r}; its first keys: {found}"
        )
    for entry in tensors.values():
        _check_entry(entry)
    return tensors


def _check_entry(entry: TensorEntry) -> None:
    """Raise an error unless a data file can hold what the index says of it."""
    if entry.dtype != "float32":
        raise ValueError(
            f"{entry.path}: {entry.key} must be float32; got {entry.dtype}"
        )
    n_bytes = 4 * math.prod(entry.shape)
    if entry.n_bytes != n_bytes:
        raise ValueError(
            f"{entry.path}: {entry.key} must have {n_bytes} bytes for shape "
            f"{entry.shape}; "
            f"got {entry.n_bytes}"
        )
    if not entry.path.is_file():
        raise FileNotFoundError(
            f"{entry.path}, which should hold {entry.key}, does not exist"
        )
    end, size = entry.offset + n_bytes, entry.path.stat().st_size
    if end > size:
        raise ValueError(
            f"{entry.path} is truncated: {entry.key} needs bytes {entry.offset} to "
            f"{end}, the file has {size}"
        )


def read_tensor(entry: TensorEntry) -> np.ndarray:
    """Read one tensor and verify its checksum.

    Parameters
    ----------
    entry : TensorEntry
        From :func:`list_tensors`.

    Returns
    -------
    numpy.ndarray, shape ``entry.shape``
        Float32.

    Raises
    ------
    ValueError
        If the bytes are not those that were written.
    """
    n_values = math.prod(entry.shape)
    values = np.fromfile(entry.path, "<f4", count=n_values, offset=entry.offset)
    if _masked_crc32c(values) != entry.checksum:
        raise ValueError(
            f"{entry.key} does not match its checksum: {entry.path} is damaged or "
            "belongs to another index"
        )
    return values.reshape(entry.shape)


def describe_path(path: Path) -> str:
    """Say what is at a path where the prefix of a checkpoint was expected."""
    if ending := _FILE_ENDING.search(path.name):
        prefix = path.with_name(path.name[: ending.start()])
        return f"it is one file of a checkpoint; expected its prefix, {prefix}"
    if path.is_dir():
        return _describe_folder(path)
    if not path.is_file():
        return f"{path}.index does not exist"
    with path.open("rb") as file:
        is_hdf5 = file.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE
    return f"it is {'an HDF5 file' if is_hdf5 else 'a file of another kind'}"


def _describe_folder(folder: Path) -> str:
    if (folder / "saved_model.pb").is_file():
        return "it is the folder of a SavedModel"
    names = sorted(path.name for path in folder.iterdir())
    prefixes = [name[: -len(".index")] for name in names if name.endswith(".index")]
    if prefixes:
        return (
            f"it is a folder with the checkpoints {', '.join(prefixes)}; expected the "
            f"prefix of one, e.g. {folder / prefixes[-1]}"
        )
    hdf5 = [name for name in names if name.endswith((".h5", ".hdf5"))]
    if hdf5:
        return f"it is a folder with HDF5 files ({', '.join(hdf5)})"
    return "it is a folder without a checkpoint"
