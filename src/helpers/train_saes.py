"""Train the dictionaries of a run, with one process or many under ``torchrun``.

The parameters are those of the notebooks, given as papermill takes them::

    python -m helpers.train_saes -f notebooks/tissues/kidney.yml -p blocks '[3]'
    torchrun --standalone --nproc-per-node 2 -m helpers.train_saes \
        -f notebooks/tissues/kidney.yml -p device cuda

Processes share every batch. What they end with is the dictionary of a single process up
to the rounding of sums in another order; page 02 finds it in the run folder and trains
nothing. A training that was cut short goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import yaml

from helpers import stages
from helpers.tissues import NOTEBOOK_PARAMETERS

__all__ = ["main", "read_parameters"]

_log = logging.getLogger(__name__)
# How long the others wait for the first process to score and save a dictionary.
_PATIENCE = timedelta(hours=2)
_KNOWN = tuple(inspect.signature(stages.open_study).parameters)


def read_parameters(
    file: str | Path | None, values: Sequence[tuple[str, str]]
) -> dict[str, object]:
    """Return parameters of `helpers.stages.open_study`, as papermill would set them.

    Parameters
    ----------
    file : str, Path or None
        Tissue file, or another YAML file of parameters; what else it holds is left out.
    values : sequence of (str, str)
        Names and values in YAML, which replace those of the file.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is no mapping, a name is no parameter, or there is no ``run``.
    """
    given = {}
    if file is not None:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{file}: expected parameters by name; got {content!r}")
        set_there = [n for n in NOTEBOOK_PARAMETERS if content.get(n) is not None]
        given = {name: content[name] for name in set_there}
    unknown = sorted({name for name, _ in values} - set(_KNOWN))
    if unknown:
        raise ValueError(f"unknown parameters {unknown}; expected some of {_KNOWN}")
    given |= {name: yaml.safe_load(value) for name, value in values}
    if not given.get("run"):
        raise ValueError("the parameter run must name the run folder: -p run FOLDER")
    return given


def _train(parameters: dict[str, object]) -> None:
    device = str(parameters.get("device") or "cpu")
    several = "LOCAL_RANK" in os.environ  # under torchrun
    if several and device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    study = stages.open_study(**parameters | {"device": device})
    # One process makes the streams; the others wait at a lock that knows no time limit.
    stages.extract(study)
    if several:
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        stages.train_saes(study)
        if not several or dist.get_rank() == 0:
            card = stages.read_cards(study).xs("all", level="rows")
            _log.info("%s", card[["fvu", "l0_mean", "dead_percent"]].round(4))
    finally:
        if several:
            dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train dictionaries from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-f", "--file", help="tissue file, or YAML file of parameters")
    parser.add_argument(
        *("-p", "--parameter"),
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter of the notebooks; may be repeated",
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        parameters = read_parameters(given.file, given.parameter)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    _train(parameters)


if __name__ == "__main__":
    main()
