"""Where rows of activations come from: memory, a memory map, or a stream from disk."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from helpers.sae._peers import ALONE, Peers

__all__ = [
    "CHUNK_ROWS",
    "Matrix",
    "MatrixRows",
    "Moments",
    "RowSource",
    "check_finite",
    "check_matrix",
    "gather",
    "moments",
    "stream",
]

Matrix = torch.Tensor | np.ndarray
CHUNK_ROWS = 4096  # rows held densely at a time outside training
_CONSTANT = 1e-12  # share of variance that rounding to single precision leaves


@runtime_checkable
class RowSource(Protocol):
    """Activations of the same tokens at one or several places of a model.

    A source larger than memory implements these five; :func:`helpers.sae.train` asks
    for nothing else. Rows are raw activations of any floating dtype, on any device. A
    `provenance`, JSON-compatible, is kept with the SAE where a source has one.

    Attributes
    ----------
    names : tuple
        Keys of the places, such as layers; one SAE is trained for each.
    n_rows, d_in : int
        Number of tokens and width of the activations.
    """

    names: tuple[Hashable, ...]
    n_rows: int
    d_in: int

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int,
        random_state: int,
        first: int = 0,
        part: slice = slice(None),
    ) -> Iterator[dict[Hashable, torch.Tensor]]:
        """Yield the n_rows // batch_size batches of an epoch, in random order.

        Rows must be mixed well: neighbors of a window belong in different batches, and
        all conditions in every batch. The same `epoch` and `random_state` give the same
        batches, in any process, so that an interrupted run goes on exactly.

        Parameters
        ----------
        batch_size : int
            Rows per batch.
        epoch : int
            Number of the pass; each has another order.
        random_state : int
            Seed of the orders.
        first : int
            Batches to skip, without reading them where possible.
        part : slice
            Which rows of each batch to return: those of one process of several.
        """
        ...

    def chunks(self) -> Iterator[dict[Hashable, torch.Tensor]]:
        """Yield every row once, in the cheapest order."""
        ...


class MatrixRows:
    """Rows of matrices in memory, or memory-mapped.

    Parameters
    ----------
    matrices : mapping of str or int to torch.Tensor or array, shape (n_rows, d_in)
        One matrix for each place of the model, all of the same tokens.

    Raises
    ------
    ValueError
        If a matrix is not one of floating numbers, or shapes differ.
    """

    def __init__(self, matrices: Mapping[Hashable, Matrix]) -> None:
        self._matrices = dict(matrices)
        self.names = tuple(self._matrices)
        if not self.names:
            raise ValueError("activations must hold at least one matrix; got none")
        shapes = {}
        for name, matrix in self._matrices.items():
            label = "activations" if len(self.names) == 1 else f"activations[{name!r}]"
            shapes[name] = check_matrix(label, matrix)
        if len(set(shapes.values())) > 1:
            raise ValueError(f"activations must share one shape; got {shapes}")
        self.n_rows, self.d_in = shapes[self.names[0]]

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int,
        random_state: int,
        first: int = 0,
        part: slice = slice(None),
    ) -> Iterator[dict[Hashable, torch.Tensor]]:
        """Yield the batches of an epoch; see :class:`RowSource`."""
        # One generator per epoch: the order of any epoch follows from the seed alone.
        order = np.random.default_rng((random_state, epoch)).permutation(self.n_rows)
        for batch in range(first, self.n_rows // batch_size):
            rows = order[batch * batch_size :][:batch_size][part]
            yield {name: gather(m, rows) for name, m in self._matrices.items()}

    def chunks(self) -> Iterator[dict[Hashable, torch.Tensor]]:
        """Yield consecutive rows."""
        for first in range(0, self.n_rows, CHUNK_ROWS):
            rows = slice(first, first + CHUNK_ROWS)
            yield {name: gather(m, rows) for name, m in self._matrices.items()}


class Moments(NamedTuple):
    """Center and spread of rows.

    Attributes
    ----------
    mean : torch.Tensor, shape (d_in,)
        Mean row.
    scale : float
        Root mean square of the centered rows over all coordinates.
    gamma : float
        |mean| / |SD|: large values predict feature death without centering.
    """

    mean: torch.Tensor
    scale: float
    gamma: float


def moments(
    source: RowSource, *, peers: Peers = ALONE, device: torch.device | None = None
) -> dict[Hashable, Moments]:
    """Return the moments of all rows of a source, in one pass.

    Sums are taken around the first chunk's mean: where gamma is large, differences of
    raw sums of squares lose their digits.

    Raises
    ------
    ValueError
        If a row is not finite, or all are the same.
    """
    shifts: dict[Hashable, torch.Tensor] = {}
    sums: dict[Hashable, torch.Tensor] = {}
    squares: dict[Hashable, torch.Tensor] = {}
    n_seen = 0
    for number, chunk in enumerate(source.chunks()):
        for name, rows in chunk.items():
            if number == 0:
                shifts[name] = rows.double().mean(0)
                sums[name] = torch.zeros_like(shifts[name])
                squares[name] = shifts[name].new_zeros(())
            if number % peers.size != peers.rank:
                continue
            label = "activations" if len(source.names) == 1 else f"activations {name!r}"
            check_finite(label, rows, n_seen)
            shifted = rows.double() - shifts[name]
            sums[name] += shifted.sum(0)
            squares[name] += shifted.square().sum()
        n_seen += len(rows)
    if n_seen != source.n_rows:
        raise ValueError(
            f"activations announce {source.n_rows} rows; their chunks hold {n_seen}"
        )
    found = {}
    for name in source.names:
        if device is not None:  # where the processes exchange tensors
            sums[name], squares[name] = sums[name].to(device), squares[name].to(device)
        peers.add(sums[name], squares[name])
        drift = sums[name].to(shifts[name].device) / n_seen
        mean = shifts[name] + drift
        variance = float(squares[name]) / n_seen - float(drift.square().sum())
        offset = float(mean.square().sum())
        if variance <= _CONSTANT * offset or variance <= 0:
            raise ValueError("activations are constant: every row is the same")
        scale = math.sqrt(variance / source.d_in)
        found[name] = Moments(mean.float(), scale, math.sqrt(offset / variance))
    return found


def check_matrix(name: str, matrix: Any, d_in: int | None = None) -> tuple[int, int]:
    """Return the shape of a matrix of rows, or raise ValueError for what is wrong."""
    shape = tuple(matrix.shape)
    if len(shape) != 2 or 0 in shape or (d_in is not None and shape[1] != d_in):
        wanted = "d_in" if d_in is None else d_in
        raise ValueError(f"{name} must have shape (n_tokens, {wanted}); got {shape}")
    if isinstance(matrix, torch.Tensor):
        floating = matrix.is_floating_point()
    else:
        floating = np.issubdtype(matrix.dtype, np.floating)
    if not floating:
        raise ValueError(f"{name} must be of a floating dtype; got {matrix.dtype}")
    return shape


def gather(
    matrix: Matrix,
    rows: np.ndarray | slice,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Return some rows of a matrix as float32, on its own device or another."""
    if isinstance(matrix, torch.Tensor):
        if not isinstance(rows, slice):
            rows = torch.from_numpy(rows).to(matrix.device)
        return matrix[rows].detach().to(device, torch.float32)
    return torch.from_numpy(np.array(matrix[rows], dtype=np.float32)).to(device)


def stream(
    name: str, matrix: Matrix, device: torch.device | str
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield consecutive rows and where they lie; raise ValueError at NaN or inf."""
    for first in range(0, len(matrix), CHUNK_ROWS):
        rows = slice(first, min(first + CHUNK_ROWS, len(matrix)))
        x = gather(matrix, rows, device)
        check_finite(name, x, first)
        yield rows, x


def check_finite(name: str, x: torch.Tensor, first: int) -> None:
    """Raise ValueError if a row, counted from `first`, holds NaN or infinity."""
    if not torch.isfinite(x.sum()):  # cheap; false alarms of overflow are looked into
        finite = torch.isfinite(x).all(1)
        if not finite.all():
            row = first + int((~finite).nonzero()[0])
            raise ValueError(f"{name} must be finite; row {row} holds NaN or infinity")
