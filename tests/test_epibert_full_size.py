"""EpiBERT at the published size: agreement with the reference, and memory."""

import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest

from helpers.epibert import TOKEN_BP, EpiBERT, EpiBERTConfig
from test_checkpoints import write_checkpoint
from test_epibert_parity import (
    assert_close,
    random_inputs,
    random_tensors,
    run_model,
    run_reference,
)

pytestmark = pytest.mark.full_size

CONFIG = EpiBERTConfig()


class Run(NamedTuple):
    residuals: list[np.ndarray]
    output: np.ndarray
    peak_bytes: int


def run_once(prefix, inputs):
    """Load the model, run one window, and tell how much memory that took at most."""
    residuals, output = run_model(EpiBERT.from_pretrained(prefix, CONFIG), inputs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Run(residuals, output, peak if sys.platform == "darwin" else 1024 * peak)


@pytest.fixture(scope="module")
def tensors():
    return random_tensors(CONFIG, 0)


@pytest.fixture(scope="module")
def run(tensors, tmp_path_factory):
    """One forward pass in a process of its own.

    It comes before the reference: a new process counts the peak of the one that starts
    it as its own.
    """
    prefix = tmp_path_factory.mktemp("published") / "ckpt-45"
    write_checkpoint(prefix, tensors, n_shards=8)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(run_once, prefix, random_inputs(CONFIG, 0)).result()


def test_forward_stays_within_six_gigabytes(run):
    assert run.peak_bytes <= 6e9


def test_model_agrees_with_reference(run, tensors):
    inputs = random_inputs(CONFIG, 0)
    expected = run_reference(tensors, CONFIG, inputs, piece_bp=100 * TOKEN_BP)
    for residual, truth in zip(run.residuals, expected.residuals, strict=True):
        assert 5 < np.abs(truth).max() < 60
        assert_close(residual, truth, 1e-3)
    assert run.output.std() > 0.1
    assert_close(run.output, expected.output, 1e-4)
