"""The stages of a small study, each in a process that can be disturbed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from helpers import (
    annotation,
    calibration,
    causal,
    dictionaries,
    feature_tracks,
    public_data,
    simulate,
    stages,
)
from helpers.causal import _ablation, _sweep
from helpers.downloads import _transfer
from helpers.epibert import EpiBERTConfig
from helpers.pretrain import PretrainConfig
from helpers.runs import Run
from helpers.sae import SAEConfig
from helpers.stages import _dictionaries, _opening

__all__ = [
    "CONTEXT",
    "PORTAL",
    "STAGES",
    "STUDY_STAGES",
    "Place",
    "Worker",
    "write_world",
]

WINDOW_BP = 4096
PORTAL = "tissues of a portal"  # folder of tissue files that name public data
_TIMEOUT_S = 300
CONTEXT = multiprocessing.get_context("fork")  # begins at once, all is imported


class Place(NamedTuple):
    """Where a stage works, and with which seed."""

    run: Path
    world: Path
    seed: int = 0


def write_world(folder: Path, seed: int = 7) -> None:
    """Write a small simulated world with replicates."""
    world = simulate.World(
        n_chromosomes=20,
        windows_per_chromosome=4,
        window_bp=WINDOW_BP,
        n_replicates=1,
        seed=seed,
    )
    simulate.write_world(folder, world, lineages=["blood", "liver"])


def _world(place: Place) -> None:
    recipe = {"seed": place.seed}
    build = partial(write_world, seed=place.seed)
    Run(place.run).artefact("data/simulated", recipe, build)


def _downloads(place: Place) -> None:
    output = place.run / "data" / "public"
    public_data.localize(place.world / PORTAL, output, window_bp=WINDOW_BP)


def _open(place: Place) -> stages.Study:
    """Open the study; its model is trained first."""
    return stages.open_study(
        place.run, data=str(place.world / "tissues"), seed=place.seed
    )


def _scores(study: stages.Study) -> None:
    stages.score_context(study, "select")
    stages.score_context(study, "test")
    stages.late_early_ratio(study)


def _causal(study: stages.Study) -> None:
    causal.register(study)
    causal.ablation(study)
    causal.ablation_random(study)


def _tracks(study: stages.Study) -> None:
    features = annotation.select_features(study)
    feature_tracks.write_feature_tracks(study, features, {})


STUDY_STAGES: dict[str, Callable[[stages.Study], object]] = {
    "pre-training": lambda study: study,
    "residual streams": stages.extract,
    "dictionaries": stages.train_saes,
    "dictionaries of other seeds": dictionaries.stability,
    "summaries": stages.summaries,
    "scores": _scores,
    "calibration": partial(calibration.gather_evidence, n_contrasts=2),
    "causal": _causal,
    "annotation": annotation.annotate,
    "feature tracks": _tracks,
}
STAGES: dict[str, Callable[[Place], object]] = {
    "simulated world": _world,
    "downloads": _downloads,
    **{
        name: lambda place, work=work: work(_open(place))
        for name, work in STUDY_STAGES.items()
    },
}


def _make_small() -> None:
    """Let training take seconds, checkpoints be frequent, and waits be short."""
    torch.set_num_threads(1)
    _opening.SMALL_WINDOW_BP = WINDOW_BP
    _opening.small_config = lambda n_motifs: EpiBERTConfig(
        input_length=WINDOW_BP,
        n_heads=2,
        n_blocks=2,
        sequence_filters=(16,) * 6,
        n_motifs=n_motifs,
        n_random_features=32,
    )
    _opening._OWN_TRAINING = PretrainConfig(
        n_steps=12, warmup_steps=2, windows_per_step=2, biosamples_per_window=2
    )
    _opening.pretrain = partial(_opening.pretrain, checkpoint_every=2)
    _dictionaries.train = partial(_dictionaries.train, checkpoint_seconds=0.05)
    _dictionaries.sae_config = lambda d_model: SAEConfig(
        d_sae=4 * d_model, k=8, batch_size=512, n_epochs=2
    )
    _ablation.N_RANDOM = {
        ("visible", "resample"): {"any other": 9, "not significant": 9}
    }
    _sweep.DOSES, _sweep.N_TUNED, _sweep.N_TUNE = (-1.0, 1.0, 2.0), 1, 4
    _transfer._FIRST_WAIT_S, _transfer._TIMEOUT_S = 0.01, (2, 0.5)


class Worker:
    """A stage in a process of its own.

    Parameters
    ----------
    stage : str
        One of `STAGES`.
    place : Place
        Where it works.
    die_at : int, optional
        Kill the process at this rename of a file, counted from 0: before it if the
        number is even, after it if it is odd.

    Attributes
    ----------
    n_renames : int
        Files renamed, if the process ended by itself.
    """

    def __init__(self, stage: str, place: Place, *, die_at: int | None = None) -> None:
        self.n_renames = 0
        self._began = time.monotonic()
        self._reports, report = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(
            target=_work, args=(report, stage, place, die_at)
        )
        self.process.start()
        report.close()

    def kill(self, after_s: float) -> None:
        """Kill the process so long after its begin."""
        time.sleep(max(0.0, self._began + after_s - time.monotonic()))
        self.process.kill()
        self.process.join()

    def pause(self) -> None:
        """Stop the process until `resume`."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process go on."""
        os.kill(self.process.pid, signal.SIGCONT)

    def finish(self) -> str:
        """Wait for the process; return how it failed, or nothing."""
        if not self._reports.poll(_TIMEOUT_S):
            self.process.kill()
            return "did not end"
        try:
            problem, self.n_renames = self._reports.recv()
        except EOFError:
            problem = "died silently"
        self.process.join()
        return problem


def _work(report, stage: str, place: Place, die_at: int | None) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    counted = _count_renames(die_at)
    _make_small()
    try:
        STAGES[stage](place)
        problem = ""
    except BaseException as error:
        problem = f"{type(error).__name__}: {error}"
    report.send((problem, counted()))


def _count_renames(die_at: int | None) -> Callable[[], int]:
    """Count the files that this process renames, and let it die at one of them."""
    n = 0

    def counting(rename: Callable) -> Callable:
        def counted(*arguments: object, **options: object) -> object:
            nonlocal n
            n, here = n + 1, n
            if here == die_at and here % 2 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            done = rename(*arguments, **options)
            if here == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return counted

    os.rename, os.replace = counting(os.rename), counting(os.replace)
    return lambda: n
