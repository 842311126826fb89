"""Training runs: one SAE or several on the same tokens, resumable, distributed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from helpers import __version__
from helpers.sae._checkpoint import digest, read_checkpoint, write_checkpoint
from helpers.sae._config import SAEConfig
from helpers.sae._model import BatchTopKSAE
from helpers.sae._peers import Peers
from helpers.sae._rows import (
    Matrix,
    MatrixRows,
    Moments,
    RowSource,
    check_matrix,
    moments,
)
from helpers.sae._step import Trainer
from helpers.sae._threshold import (
    CALIBRATION_ROWS,
    calibrate_threshold,
    set_threshold,
)

__all__ = ["Trained", "train", "train_many"]

logger = logging.getLogger("helpers.sae")


class Trained(NamedTuple):
    """A trained SAE and how it came about.

    Attributes
    ----------
    sae : BatchTopKSAE
        The model, its `provenance` filled in; gamma = |mean| / |SD| of the rows is part
        of it, since it predicts feature death without centering (arXiv 2605.31518).
    history : pandas.DataFrame
        One row per step: step, n_steps, epoch, loss (mean over the nested prefixes),
        fvu (of the batch, against the variance of all rows), aux_loss, l0, dead
        (fraction), revived (features started anew), learning_rate.
    """

    sae: BatchTopKSAE
    history: pd.DataFrame


def train(
    activations: Matrix | RowSource,
    config: SAEConfig,
    *,
    heldout: Matrix | None = None,
    device: str | torch.device | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
) -> Trained:
    """Train a BatchTopK SAE on rows of activations.

    Rows are centered on their mean and divided by one global scale, fixed before the
    first step; balance the conditions among the rows, or the mean leans to one of them.
    The decoder starts from differences of rows, the encoder from the decoder times the
    least-squares scale of the first reconstruction. After training the threshold is set
    so that a token has k active features on average.

    Where torch.distributed is initialized, as under ``torchrun``, the processes share
    every batch and end with the same SAE.

    Parameters
    ----------
    activations : torch.Tensor, array-like of shape (n_tokens, d_in), or RowSource
        Raw activations. A memory-mapped array is read batch by batch; a
        :class:`RowSource` streams what is larger than memory.
    config : SAEConfig
        Width, sparsity and schedule.
    heldout : torch.Tensor or array-like, shape (n_heldout, d_in), optional
        Rows of chromosomes not trained on, for the threshold. Default: training rows.
    device : str or torch.device, optional
        Where to train. Default: where `activations` are, the CPU for arrays.
    progress : callable, optional
        Called after every step with its line of the history.
    checkpoint : str or pathlib.Path, optional
        File to continue from if it is there, and to keep up to date. Results are then
        those of an uninterrupted run, bit for bit on the same machine with the same
        number of threads. The file stays: remove it once the SAE is saved.
    checkpoint_seconds : float
        Time between two writes of it.

    Raises
    ------
    ValueError
        If there are fewer rows than a batch, or rows that are constant, of the wrong
        shape or not finite, if the checkpoint is another run's, or if training
        diverges.
    OSError
        If the checkpoint cannot be written.
    """
    if not isinstance(activations, RowSource):
        if device is None and isinstance(activations, torch.Tensor):
            device = activations.device
        activations = MatrixRows({None: activations})
    if len(activations.names) != 1:
        raise ValueError(
            f"activations have several names, {activations.names}; use train_many"
        )
    (name,) = activations.names
    trained = train_many(
        activations,
        config,
        heldout=None if heldout is None else {name: heldout},
        device=device,
        progress=None if progress is None else lambda records: progress(records[name]),
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
    )
    return trained[name]


def train_many(
    activations: Mapping[Hashable, Matrix] | RowSource,
    config: SAEConfig,
    *,
    heldout: Mapping[Hashable, Matrix] | None = None,
    device: str | torch.device | None = None,
    progress: Callable[[dict[Hashable, dict[str, float]]], None] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
) -> dict[Hashable, Trained]:
    """Train one SAE for each of several places of a model, in one pass over the data.

    Every step takes the same tokens at all places. Each SAE is what :func:`train` makes
    of its matrix alone.

    Parameters
    ----------
    activations : mapping to torch.Tensor or array-like, or RowSource
        One matrix (n_tokens, d_in) for each place, of the same tokens.
    heldout : mapping to torch.Tensor or array-like, optional
        Rows of chromosomes not trained on, one matrix for each place.
    progress : callable, optional
        Called after every step with the line of each place's history.
    config, device, checkpoint, checkpoint_seconds
        As in :func:`train`, which also lists the errors.

    Returns
    -------
    dict of str or int to Trained
    """
    if not isinstance(activations, RowSource):
        if device is None:
            found = {m.device for m in activations.values() if torch.is_tensor(m)}
            device = found.pop() if len(found) == 1 else None
        activations = MatrixRows(activations)
    source, device = activations, torch.device("cpu" if device is None else device)
    if source.n_rows < config.batch_size:
        raise ValueError(
            f"activations have {source.n_rows} rows, fewer than a batch of "
            f"{config.batch_size}"
        )
    if heldout is not None:
        if set(heldout) != set(source.names):
            raise ValueError(
                f"heldout must have the names {source.names}; got {tuple(heldout)}"
            )
        for matrix in heldout.values():
            check_matrix("heldout", matrix, source.d_in)

    run = _Run(source, config, device, Peers.present())
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None:
        run.resume(path)
    if run.moments is None:
        run.measure()
    written = time.monotonic()
    for records in run.steps():
        if progress is not None:
            progress(records)
        if path is not None and time.monotonic() - written >= checkpoint_seconds:
            run.save(path)
            written = time.monotonic()
    if path is not None:
        run.save(path)
    return {
        name: run.result(name, None if heldout is None else heldout[name])
        for name in source.names
    }


class _Run:
    """State of a run: everything a checkpoint holds."""

    def __init__(
        self, source: RowSource, config: SAEConfig, device: torch.device, peers: Peers
    ) -> None:
        self.source, self.config, self.device = source, config, device
        self.peers = peers
        self.part = peers.share(config.batch_size)
        self.steps_per_epoch = source.n_rows // config.batch_size
        self.moments: dict[Hashable, Moments] | None = None
        self.trainers = {
            name: Trainer(
                source.d_in,
                config,
                n_steps=config.n_epochs * self.steps_per_epoch,
                dead_after_rows=config.dead_after * source.n_rows,
                device=device,
                peers=peers,
            )
            for name in source.names
        }
        self.history: dict[Hashable, list[dict[str, float]]] = {
            name: [] for name in source.names
        }

    def measure(self) -> None:
        """Fix center and scale of the rows."""
        self.moments = moments(self.source, peers=self.peers, device=self.device)
        for name, found in self.moments.items():
            logger.info(
                "%s: %d rows, |mean| / |SD| = %.3g",
                name,
                self.source.n_rows,
                found.gamma,
            )

    def steps(self) -> Iterator[dict[Hashable, dict[str, float]]]:
        """Take all steps that remain, yielding the line of each SAE's history."""
        config, per_epoch = self.config, self.steps_per_epoch
        while (n_done := self._n_done()) < self._end():
            epoch, first = divmod(n_done, per_epoch)
            batches = self.source.batches(
                config.batch_size,
                epoch=epoch,
                random_state=config.random_state,
                first=first,
                part=self.part,
            )
            for batch, _ in zip(batches, range(first, per_epoch), strict=True):
                records = self._step(batch, epoch)
                if self._n_done() % per_epoch == 0:
                    self._look_for_plateau(epoch)
                yield records
                if self._n_done() == self._end():
                    break

    def _step(self, batch: dict[Hashable, torch.Tensor], epoch: int) -> dict:
        records = {}
        for name, trainer in self.trainers.items():
            if trainer.n_done == trainer.end:
                continue
            mean, scale, _ = self.moments[name]
            x = batch[name].to(self.device, torch.float32)
            record = {"step": trainer.n_done + 1, "n_steps": trainer.end}
            record |= {"epoch": epoch}
            record |= trainer.step((x - mean.to(self.device)) / scale)
            if not math.isfinite(record["loss"]):
                raise ValueError(
                    f"training diverged at step {record['step']} of {trainer.end}; "
                    f"learning_rate = {self.config.learning_rate} may be too high"
                )
            self.history[name].append(record)
            records[name] = record
        return records

    def _n_done(self) -> int:
        return max(trainer.n_done for trainer in self.trainers.values())

    def _end(self) -> int:
        return max(trainer.end for trainer in self.trainers.values())

    def _look_for_plateau(self, epoch: int) -> None:
        """Shorten the runs whose last epoch brought little; log where they stand."""
        for name, trainer in self.trainers.items():
            lines = self.history[name]
            logger.info("epoch %d: %s", epoch, {"name": name} | lines[-1])
            losses = [
                np.mean([line["loss"] for line in lines if line["epoch"] == e])
                for e in (epoch - 1, epoch)
                if e >= 0
            ]
            if (
                self.config.plateau
                and len(losses) == 2
                and trainer.end == trainer.n_steps
                and losses[1] > (1 - self.config.plateau) * losses[0]
            ):
                trainer.end_early()
                logger.info("plateau after epoch %d: %d steps", epoch, trainer.end)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that continues from it."""
        batch = next(
            self.source.batches(
                self.config.batch_size,
                epoch=0,
                random_state=self.config.random_state,
            )
        )
        return {
            "config": asdict(self.config),
            "names": list(self.source.names),
            "n_rows": self.source.n_rows,
            "first batch": digest(batch),
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint; one process does it for all."""
        if self.peers.rank == 0:
            write_checkpoint(
                path,
                {
                    "identity": self.identity,
                    "moments": [tuple(self.moments[n]) for n in self.source.names],
                    "trainers": [t.state_dict() for t in self.trainers.values()],
                    "history": list(self.history.values()),
                },
            )

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint, if there is one."""
        state = None
        if self.peers.rank == 0:
            state = read_checkpoint(path, self.identity)
        state = self.peers.first(state)
        if state is None:
            return
        names = self.source.names
        self.moments = {
            name: Moments(*values)
            for name, values in zip(names, state["moments"], strict=True)
        }
        self.history = dict(zip(names, state["history"], strict=True))
        for trainer, held in zip(
            self.trainers.values(), state["trainers"], strict=True
        ):
            trainer.load_state_dict(held)
        logger.info("%s: continuing after step %d", path, self._n_done())

    def result(self, name: Hashable, heldout: Matrix | None) -> Trained:
        """Return the trained SAE with its threshold set."""
        config, trainer = self.config, self.trainers[name]
        mean, scale, gamma = self.moments[name]
        sae = trainer.model()
        sae.mean.copy_(mean)
        sae.scale.fill_(scale)
        if heldout is None:
            batches = self.source.batches(
                config.batch_size,
                epoch=config.n_epochs,
                random_state=config.random_state,
            )
            n_batches = min(
                self.steps_per_epoch, math.ceil(CALIBRATION_ROWS / config.batch_size)
            )
            n_rows = min(n_batches * config.batch_size, CALIBRATION_ROWS)
            set_threshold(sae, (batch[name] for batch in batches), n_rows)
        else:
            calibrate_threshold(sae, heldout, random_state=config.random_state)
        sae.provenance = {
            "config": asdict(config) | {"matryoshka": list(config.matryoshka)},
            "n_rows": self.source.n_rows,
            "rows": getattr(self.source, "provenance", None),
            "n_steps": trainer.n_done,
            "n_revived": trainer.n_revived,
            "gamma": gamma,
            "precision": str(trainer.precision).removeprefix("torch."),
            "threshold_from": "activations" if heldout is None else "heldout",
            "version": __version__,
            "torch": torch.__version__,
        }
        return Trained(sae, pd.DataFrame(self.history[name]))
