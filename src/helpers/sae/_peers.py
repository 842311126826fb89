"""The processes that share each batch of a training run, through torch.distributed.

Every process holds the same weights and its own rows of the batch. What depends on the
whole batch (the cut of the top-k, the sums in gradients and losses) goes through here.
Without torch.distributed there is one process and nothing to exchange.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

__all__ = ["ALONE", "Peers"]


class Peers:
    """Exchange with the other processes of the default group, if there is one.

    Attributes
    ----------
    rank, size : int
        Number of this process, and how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def present(cls) -> Peers:
        """Return the default group of torch.distributed, or a process on its own."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return ALONE

    def share(self, n_rows: int) -> slice:
        """Return this process's part of the rows of a batch.

        Raises
        ------
        ValueError
            If the rows cannot be dealt out evenly.
        """
        if n_rows % self.size:
            raise ValueError(
                f"batch_size must be a multiple of the {self.size} processes; "
                f"got {n_rows}"
            )
        each = n_rows // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def add(self, *tensors: torch.Tensor) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def total(self, count: int) -> int:
        """Return the sum of a count over the processes."""
        return count if self.size == 1 else sum(self._objects(count))

    def least(self, value: float) -> float:
        """Return the smallest of the processes' values."""
        return value if self.size == 1 else min(self._objects(value))

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensors of all processes, of any length, one after the other."""
        if self.size == 1:
            return tensor
        lengths = self._objects(len(tensor))
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat(
            [part[:length] for part, length in zip(parts, lengths, strict=True)]
        )

    def own(self, gathered: torch.Tensor, length: int) -> torch.Tensor:
        """Return this process's part of what :meth:`gather` put together."""
        if self.size == 1:
            return gathered
        first = sum(self._objects(length)[: self.rank])
        return gathered[first : first + length]

    def first(self, value: Any) -> Any:
        """Return what the first process passes."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _objects(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found


ALONE = Peers()
