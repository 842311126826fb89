"""Settings of a sparse autoencoder: width, sparsity and training schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["SAEConfig"]

_PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class SAEConfig:
    """Width, sparsity and training schedule of a BatchTopK SAE.

    Parameters
    ----------
    d_sae : int
        Number of features.
    k : int
        Mean number of active features per token; below `d_sae`.
    batch_size : int
        Rows per step, over all processes together.
    n_epochs : int
        Passes over the rows, each in a fresh order; the incomplete last batch of a pass
        is left out.
    learning_rate : float, optional
        Peak of Adam's step size. The default is 6e-3, above 512 features times
        sqrt(512 / d_sae): wider dictionaries diverge at large steps. It suits runs of
        hundreds to thousands of steps; published runs of 10^5 steps use a fifth of it
        (Gao et al. 2024, arXiv 2406.04093, by the same rule of the width).
    warmup, decay : float
        Fractions of all steps over which the step size rises from and falls to zero.
    dead_after : float
        A feature is dead once it has not fired for this many epochs' worth of rows. A
        rule in rows would never apply in a short run.
    revive_until : float
        During this first fraction of the run, dead features start anew from time to
        time (at most 20 times, at least 70 steps apart) along the residuals of badly
        reconstructed rows; 0 turns it off.
    aux_k : int, optional
        Dead features used per token to reconstruct what the others missed: few, so that
        each grows strong enough to be kept. Default: half of k.
    aux_coefficient : float
        Weight of that auxiliary loss, the part of the error's square that they leave,
        beside the logarithm of the error; 0 turns it off.
    aux_rows : int
        About how many rows of each batch the auxiliary loss looks at.
    plateau : float
        An epoch that lowers the mean loss by less than this fraction of it ends the run
        early: the step size falls to zero from there. 0 trains all epochs.
    matryoshka : tuple of int
        Sizes of nested prefixes of the dictionary, ascending to `d_sae`, each of which
        reconstructs the row on its own (Bussmann et al. 2025, arXiv 2503.17547). Empty:
        only the whole dictionary does.
    frozen_decoder : bool
        Keep random directions and train the rest: a control.
    precision : {"auto", "float32", "bfloat16"}
        Number format of the operands of large products; weights, sums and optimizer are
        float32 in any case. "auto" takes bfloat16 where the device has units for it.
    random_state : int
        Seed of the initial decoder and of the order of the rows.

    Raises
    ------
    ValueError
        If a field is out of range.
    """

    d_sae: int
    k: int
    batch_size: int = 2048
    n_epochs: int = 5
    learning_rate: float | None = None
    warmup: float = 0.05
    decay: float = 0.25
    dead_after: float = 0.1
    revive_until: float = 0.85
    aux_k: int | None = None
    aux_coefficient: float = 1.0
    aux_rows: int = 1024
    plateau: float = 0.0
    matryoshka: tuple[int, ...] = ()
    frozen_decoder: bool = False
    precision: str = "auto"
    random_state: int = 0

    def __post_init__(self) -> None:
        """Fill in defaults and check every field."""
        if self.aux_k is None:
            object.__setattr__(self, "aux_k", max(1, self.k // 2))
        object.__setattr__(self, "matryoshka", tuple(self.matryoshka))
        for name in ("d_sae", "k", "batch_size", "n_epochs", "aux_k", "aux_rows"):
            _check_count(name, getattr(self, name))
        if self.learning_rate is None:
            rate = 6e-3 * min(1.0, math.sqrt(512 / self.d_sae))
            object.__setattr__(self, "learning_rate", rate)
        if self.random_state < 0:
            raise ValueError(
                f"random_state must not be negative; got {self.random_state}"
            )
        if self.k >= self.d_sae:
            raise ValueError(f"k must be below d_sae = {self.d_sae}; got {self.k}")
        for name in ("learning_rate", "dead_after"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name} must be positive; got {getattr(self, name)!r}"
                )
        if not self.aux_coefficient >= 0:
            raise ValueError(
                f"aux_coefficient must not be negative; got {self.aux_coefficient!r}"
            )
        for name in ("warmup", "decay", "revive_until", "plateau"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} must be a fraction in [0, 1]; got {getattr(self, name)!r}"
                )
        if self.precision not in _PRECISIONS:
            raise ValueError(
                f"precision must be one of {_PRECISIONS}; got {self.precision!r}"
            )
        self._check_prefixes()

    def _check_prefixes(self) -> None:
        for size in self.matryoshka:
            _check_count("matryoshka sizes", size)
        ascending = sorted(set(self.matryoshka))
        if self.matryoshka and (
            list(self.matryoshka) != ascending or ascending[-1] != self.d_sae
        ):
            raise ValueError(
                f"matryoshka must ascend to d_sae = {self.d_sae}; got {self.matryoshka}"
            )


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
