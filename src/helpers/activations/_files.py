"""Where an activation store lies and what it is made of: a zarr (v3) group.

A store is a folder, or the URL of one in object storage that fsspec reaches.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import Crc32cCodec

__all__ = [
    "ADVICE",
    "add_layers",
    "locate",
    "make_store",
    "naming",
    "open_store",
    "read_array",
]

_CHUNK_BYTES = 4 * 2**20  # a chunk of several windows stays below this
_BATCH_WINDOWS = 16  # most windows of a chunk, lost at worst when a run is killed
ADVICE = "remove the store to make it again"
_CHECKSUM = "sha256"  # of the other attributes
_NEEDED = ("biosamples", "windows", "layers", "n_tokens", "d_model", "model_hash")


def locate(path: str | Path) -> Path | str:
    """Return a folder as a path, a URL as it is without a slash at its end."""
    if isinstance(path, str) and "://" in path:
        return path.rstrip("/")
    return Path(path)


def open_store(location: Path | str) -> tuple[zarr.Group, dict[str, Any]]:
    """Open the group of a store for reading and writing; return its attributes too.

    Raises
    ------
    FileNotFoundError
        If there is no store.
    ImportError
        If the URL needs a package that is not installed.
    ValueError
        If something else is there.
    """
    group = _open_group(location)
    if group is None:
        raise FileNotFoundError(f"{location}: no activation store")
    attributes = group.attrs.asdict()
    missing = [name for name in _NEEDED if name not in attributes]
    if missing:
        raise ValueError(
            f"{location}: not an activation store; its attributes lack {missing}"
        )
    problem = _attribute_problem(attributes)
    if problem is None and attributes.get(_CHECKSUM) != _digest(attributes):
        problem = "its attributes do not match their checksum"
    if problem:
        raise ValueError(f"{location}: damaged, or no store: {problem}; {ADVICE}")
    return group, attributes


def _attribute_problem(attributes: dict[str, Any]) -> str | None:
    """Return what is wrong with the attributes of a store."""
    windows = attributes["windows"]
    lists = [attributes["biosamples"], attributes["layers"]]
    lists += list(windows.values()) if isinstance(windows, dict) else [None]
    if not all(isinstance(values, list) and values for values in lists):
        return "biosamples, layers and columns of windows must be lists"
    if "chrom" not in windows or len({len(v) for v in windows.values()}) > 1:
        return "columns of windows must have one length"
    for name in ("n_tokens", "d_model"):
        if not isinstance(attributes[name], int) or attributes[name] < 1:
            return f"{name} must be at least 1; found {attributes[name]!r}"
    return None


def make_store(location: Path | str, attributes: dict[str, Any]) -> None:
    """Make an empty store where there is none: it appears complete or not at all."""
    if isinstance(location, Path):
        if not location.exists():
            _make_folder(location, attributes)
        return
    group = _open_group(location)
    if group is None or not group.attrs.asdict():
        # Object storage cannot rename: attributes, written last, vouch for the rest.
        make_arrays(location, attributes)


def _open_group(location: Path | str) -> zarr.Group | None:
    """Return the group at a place, None if there is none."""
    if isinstance(location, Path) and not (location / "zarr.json").is_file():
        return None
    try:
        return zarr.open_group(location, mode="r+", zarr_format=3)
    except FileNotFoundError:
        return None
    except Exception as error:  # of any kind, where metadata are damaged
        if isinstance(location, Path):
            raise ValueError(
                f"{location}: damaged, or no store: {error!r}; {ADVICE}"
            ) from error
        if not isinstance(error, ImportError | ValueError):
            raise
        # fsspec wants a package for s3, gs or http, or does not know the protocol.
        raise type(error)(
            f"{location}: cannot be reached ({error}); stores in object storage need "
            'fsspec and its file system: pip install "chromatin-context[cloud]"'
        ) from error


def _make_folder(path: Path, attributes: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with naming(f"{path}: store"):
            make_arrays(partial, attributes)
            partial.rename(path)
    except OSError:
        if not path.exists():  # or another process was first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Say what could not be written when the disk is full or the storage refuses."""
    try:
        yield
    except OSError as error:
        message = f"{what} could not be written: {error}"
        raise OSError(error.errno, message) from error


def make_arrays(location: Path | str, attributes: dict[str, Any]) -> None:
    """Write the arrays of an empty store, then its attributes."""
    group = zarr.create_group(location, zarr_format=3, overwrite=True)
    for layer in attributes["layers"]:
        _make_layer(group, layer, attributes)
    group.attrs.update(attributes | {_CHECKSUM: _digest(attributes)})


def _digest(attributes: dict[str, Any]) -> str:
    """Return a checksum of what a store says of itself; zarr has none for that."""
    text = json.dumps([attributes[name] for name in _NEEDED])
    return hashlib.sha256(text.encode()).hexdigest()


def add_layers(group: zarr.Group, attributes: dict[str, Any]) -> None:
    """Make the arrays of layers that a store lacks."""
    found = group.attrs.asdict()
    for layer in attributes["layers"]:
        if layer not in found["layers"]:
            _make_layer(group, layer, attributes)
            found["layers"] = sorted([*found["layers"], layer])
            group.attrs.update(found | {_CHECKSUM: _digest(found)})


def _make_layer(group: zarr.Group, layer: int, attributes: dict[str, Any]) -> None:
    """Write the empty arrays of a layer: its activations, and what is complete."""
    n_biosamples = len(attributes["biosamples"])
    n_windows = len(attributes["windows"]["chrom"])
    n_tokens, d_model = attributes["n_tokens"], attributes["d_model"]
    fitting = _CHUNK_BYTES // (2 * n_tokens * d_model)
    step = max(1, min(fitting, _BATCH_WINDOWS, n_windows))
    group.create_array(
        f"layer{layer}",
        shape=(n_biosamples, n_windows, n_tokens, d_model),
        chunks=(1, step, n_tokens, d_model),
        dtype="float16",
        fill_value=float("nan"),  # a chunk that is missing must not read as zeros
        compressors=[Crc32cCodec()],  # the noise of half precision hardly compresses
        overwrite=True,  # what a killed process has begun
    )
    # One chunk per batch of windows: marking a batch rewrites nobody else's mark.
    group.create_array(
        f"complete{layer}",
        shape=(n_windows,),
        chunks=(step,),
        dtype="uint8",
        fill_value=0,
        compressors=[Crc32cCodec()],
        overwrite=True,
    )


def read_array(group: zarr.Group, name: str) -> zarr.Array:
    """Return an array of a store; raise ValueError if it is not what it must be."""
    attributes = group.attrs.asdict()
    n_windows = len(attributes["windows"]["chrom"])
    before, after, dtype = (), (), "uint8"  # axes besides that of the windows
    if name.startswith("layer"):
        before = (len(attributes["biosamples"]),)
        after, dtype = (attributes["n_tokens"], attributes["d_model"]), "float16"
    shape = (*before, n_windows, *after)
    try:
        array = group[name]
        found = (array.shape, str(array.dtype))
        step = array.chunks[len(before)]
    except Exception as error:  # of any kind, where metadata are damaged
        raise ValueError(
            f"{place(group)}: {name} is damaged: {error!r}; {ADVICE}"
        ) from error
    if found != (shape, dtype):
        raise ValueError(
            f"{place(group)}: {name} must be {dtype} of shape {shape}; found "
            f"{found[1]} of {found[0]}; {ADVICE}"
        )
    chunks = (*(1 for _ in before), step, *after)  # whole windows of one biosample
    if array.chunks != chunks or not 0 < step <= n_windows:
        raise ValueError(
            f"{place(group)}: {name} must have chunks of up to {n_windows} whole "
            f"windows of one biosample; found {array.chunks}; {ADVICE}"
        )
    return array


def place(group: zarr.Group) -> str:
    """Return where a group lies, for errors."""
    return str(group.store_path).removeprefix("file://")
