"""Checkpoints of a training run: one file, replaced as a whole, resumed exactly."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch

__all__ = ["digest", "read_checkpoint", "write_checkpoint"]


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint under another name and rename it.

    Raises
    ------
    OSError
        If the disk is full or the folder cannot be written; the checkpoint before stays
        as it was.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            torch.save(state, file)
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
        If the file is not a checkpoint, or another run's.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["identity"]
    except Exception as error:
        raise ValueError(f"{path}: not a checkpoint ({error})") from error
    for name, expected in identity.items():
        if found.get(name) != expected:
            raise ValueError(
                f"{path}: checkpoint of another run, with another {name}: found "
                f"{found.get(name)!r}, expected {expected!r}; remove it to start anew"
            )
    return state


def digest(rows: dict[Any, torch.Tensor]) -> str:
    """Return a digest of a batch, by which data are recognized."""
    found = hashlib.sha256()
    for name, x in rows.items():
        found.update(repr(name).encode())
        found.update(x.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]
