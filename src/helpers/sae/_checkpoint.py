"""Checkpoints of a training run: one file, replaced as a whole, resumed exactly.

A file of torch with 32 bytes more at its end: the SHA-256 of those before, since torch
does not verify the checksums inside of its files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch

__all__ = ["digest", "read_checkpoint", "write_checkpoint"]

_DIGEST_BYTES = 32
_CHUNK_BYTES = 1 << 20


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint under another name and rename it.

    Raises
    ------
    OSError
        If the disk is full or the folder cannot be written; the checkpoint before stays
        as it was.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "w+b") as file:
            torch.save(state, file)
            file.seek(0)
            checksum = hashlib.file_digest(file, "sha256").digest()
            file.write(checksum)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            f"{path}: checkpoint could not be written: {error}; the disk has "
            f"{free:,} bytes left"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def read_checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Read a checkpoint of the same run; return None if there is none.

    Parameters
    ----------
    path : pathlib.Path
        Where :func:`write_checkpoint` put it.
    identity : dict
        What makes the run what it is; must be that of the checkpoint.

    Raises
    ------
    ValueError
        If the file is not a checkpoint, is damaged, or another run's.
    """
    if not path.exists():
        return None
    try:
        _check_digest(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = dict(state["identity"])
    except Exception as error:
        raise ValueError(
            f"{path}: not a checkpoint, or damaged ({error}); remove it to start anew"
        ) from error
    for name, expected in identity.items():
        if found.get(name) != expected:
            raise ValueError(
                f"{path}: checkpoint of another run, with another {name}: found "
                f"{found.get(name)!r}, expected {expected!r}; remove it to start anew"
            )
    return state


def _check_digest(path: Path) -> None:
    found, left = hashlib.sha256(), path.stat().st_size - _DIGEST_BYTES
    with open(path, "rb") as file:
        while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
            found.update(chunk)
            left -= len(chunk)
        if file.read() != found.digest():
            raise ValueError("its checksum is another")


def digest(rows: dict[Any, torch.Tensor]) -> str:
    """Return a digest of a batch, by which data are recognized."""
    found = hashlib.sha256()
    for name, x in rows.items():
        found.update(repr(name).encode())
        found.update(x.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]
