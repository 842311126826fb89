"""Train the same rows with this package and with its peers, and compare.

    python benchmarks/sae_training.py --config A --peers-python PYTHON

runs one process per contender, each with the same rows, width, k, batch, learning rate
and number of steps. They take turns of a few steps, so that a change of the machine's
load falls on all. Printed are step times (wall and CPU, medians over turns, and ratios
to the peers' turn by turn), the error of the reconstruction of the same held-out rows
after the same number of steps, how well the planted directions were found, the training
time to the peer's final error, and peak memory above what the process held before its
trainer was made. Linux only.

dictionary_learning (BatchTopK) and sparsify (TopK) run in the Python given by
--peers-python, where ``pip install dictionary-learning eai-sparsify`` was run; a peer
that is not importable there is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

ROWS_HELD_OUT = 4096
BATCHES = 8  # of rows in memory, visited in turn


class Shape(NamedTuple):
    """Sizes of a comparison."""

    d_in: int
    d_sae: int
    k: int
    batch_size: int
    n_steps: int
    turn: int


SHAPES = {
    "A": Shape(128, 1024, 16, 2048, 300, 20),
    "B": Shape(512, 4096, 32, 4096, 40, 4),
    "C": Shape(1024, 8192, 64, 4096, 12, 2),
}
RULES = {"dictionary_learning": "batch", "sparsify": "row"}  # what a peer optimizes
CONTENDERS = ("helpers", "helpers float32", "dictionary_learning", "sparsify")


def make_rows(shape: Shape, seed: int = 20_311) -> tuple[np.ndarray, np.ndarray]:
    """Return centered, scaled sums of about k directions of Zipf frequency, and those.

    The seed is no trainer's: one that draws the directions themselves would shine.
    """
    rng = np.random.default_rng(seed)
    n_rows = BATCHES * shape.batch_size + ROWS_HELD_OUT
    centers = rng.normal(size=(max(1, shape.d_sae // 16), shape.d_in))
    directions = rng.normal(size=(shape.d_sae, shape.d_in)).astype(np.float32)
    directions += centers[rng.integers(0, len(centers), shape.d_sae)]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chances = (1.0 + np.arange(shape.d_sae)) ** -0.8
    cumulative = np.cumsum(chances / chances.sum())
    rows = np.empty((n_rows, shape.d_in), dtype=np.float32)
    for first in range(0, n_rows, 1024):
        n = min(1024, n_rows - first)
        features = np.searchsorted(cumulative, rng.random((n, shape.k)))
        features = features.clip(max=shape.d_sae - 1)
        sizes = rng.lognormal(0, 0.5, (n, shape.k)).astype(np.float32)
        dense = np.zeros((n, shape.d_sae), dtype=np.float32)
        np.put_along_axis(dense, features, sizes, axis=1)
        rows[first : first + n] = dense @ directions
    rows += 0.05 * rows.std() * rng.normal(size=rows.shape)
    rows -= rows.mean(0)
    return rows / rows.std(), directions


class Helpers:
    """The trainer of this package."""

    def __init__(self, shape: Shape, learning_rate: float, precision: str) -> None:
        from helpers.sae import SAEConfig
        from helpers.sae._step import Trainer

        self.trainer = Trainer(
            shape.d_in,
            SAEConfig(
                d_sae=shape.d_sae,
                k=shape.k,
                batch_size=shape.batch_size,
                learning_rate=learning_rate,
                warmup=0.0,
                decay=0.0,
                precision=precision,
                random_state=7,
            ),
            n_steps=shape.n_steps,
            # As the peers' rules, out of reach of a run this short.
            dead_after_rows=1e7,
            device=torch.device("cpu"),
        )

    def step(self, x: torch.Tensor) -> None:
        """Take one step."""
        self.trainer.step(x)

    def weights(self) -> tuple[torch.Tensor, ...]:
        """Return encoder and decoder, features as rows, and their biases."""
        encoder, b_enc, decoder, b_dec = self.trainer.weights
        return encoder, decoder, b_enc, b_dec


class DictionaryLearning:
    """dictionary_learning's BatchTopK trainer."""

    def __init__(self, shape: Shape, learning_rate: float) -> None:
        from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

        self.n_done = 0
        self.trainer = BatchTopKTrainer(
            steps=shape.n_steps,
            activation_dim=shape.d_in,
            dict_size=shape.d_sae,
            k=shape.k,
            layer=0,
            lm_name="none",
            lr=learning_rate,
            warmup_steps=0,
            seed=7,
            device="cpu",
        )

    def step(self, x: torch.Tensor) -> None:
        """Take one step."""
        self.trainer.update(self.n_done, x)
        self.n_done += 1

    def weights(self) -> tuple[torch.Tensor, ...]:
        """Return encoder and decoder, features as rows, and their biases."""
        sae = self.trainer.ae
        return sae.encoder.weight, sae.decoder.weight.T, sae.encoder.bias, sae.b_dec


class Sparsify:
    """sparsify's TopK coder, stepped as its trainer does."""

    def __init__(self, shape: Shape, learning_rate: float) -> None:
        from sparsify.config import SparseCoderConfig
        from sparsify.sparse_coder import SparseCoder

        torch.manual_seed(7)
        config = SparseCoderConfig(num_latents=shape.d_sae, k=shape.k)
        self.sae = SparseCoder(shape.d_in, config)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=learning_rate)
        self.started = False

    def step(self, x: torch.Tensor) -> None:
        """Take one step."""
        if not self.started:
            self.sae.b_dec.data = x.mean(0)
            self.started = True
        self.sae.set_decoder_norm_to_unit_norm()
        self.sae(x).fvu.backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self) -> tuple[torch.Tensor, ...]:
        """Return encoder and decoder, features as rows, and their biases."""
        sae = self.sae
        return sae.encoder.weight, sae.W_dec, sae.encoder.bias, sae.b_dec


@torch.no_grad()
def scores(
    contender: Any, x: torch.Tensor, directions: torch.Tensor, k: int
) -> dict[str, float]:
    """Return the FVU with the k largest features of each row, and k a row of the batch.

    Both for every contender: with the same weights the first is lower on rows of about
    k features each, and TopK trainers report it, BatchTopK trainers the second. Beside
    them, the mean over planted directions of the cosine of the nearest decoder row.
    """
    encoder, decoder, b_enc, b_dec = contender.weights()
    h = torch.relu((x - b_dec) @ encoder.T + b_enc)
    variance = (x - x.mean(0)).square().sum()
    found = {}
    for rule, values in {"row": h, "batch": h.view(1, -1)}.items():
        top = values.topk(h.numel() // h.shape[1] * k // len(values), dim=1)
        code = torch.zeros_like(values).scatter_(1, top.indices, top.values)
        error = code.view_as(h) @ decoder + b_dec - x
        found[rule] = float(error.square().sum() / variance)
    unit = decoder / decoder.norm(dim=1, keepdim=True)
    found["cosine"] = float((directions @ unit.T).amax(1).mean())
    return found


def peak_memory() -> float:
    """Return this process's peak memory, MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def work(name: str, folder: str, shape: Shape, learning_rate: float) -> None:
    """Train on request: read numbers of steps, write what they took."""
    rows = torch.from_numpy(np.load(f"{folder}/rows.npy", mmap_mode="c"))
    directions = torch.from_numpy(np.load(f"{folder}/directions.npy"))
    batches = rows[:-ROWS_HELD_OUT].split(shape.batch_size)
    heldout = rows[-ROWS_HELD_OUT:]
    float(rows.sum())  # in memory before the clock starts
    make = {
        "helpers": lambda: Helpers(shape, learning_rate, "auto"),
        "helpers float32": lambda: Helpers(shape, learning_rate, "float32"),
        "dictionary_learning": lambda: DictionaryLearning(shape, learning_rate),
        "sparsify": lambda: Sparsify(shape, learning_rate),
    }[name]
    make()  # what a trainer imports is no part of its memory
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_memory()
    contender = make()
    answer({"ready": name})
    n_done = 0
    for line in sys.stdin:
        request = json.loads(line)
        if "steps" in request:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(request["steps"]):
                contender.step(batches[n_done % len(batches)])
                n_done += 1
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            memory = peak_memory() - before
            answer({"wall": wall, "cpu": cpu, "memory": memory})
        else:
            answer(scores(contender, heldout, directions, shape.k))


def answer(message: dict[str, Any]) -> None:
    """Write one line to the process that asks."""
    sys.__stdout__.write(json.dumps(message) + "\n")
    sys.__stdout__.flush()


class Contender:
    """A process that trains on request."""

    def __init__(self, name: str, python: str, arguments: list[str]) -> None:
        self.name = name
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        self.process = subprocess.Popen(
            [python, __file__, "--worker", name, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        self.turns: list[dict[str, float]] = []
        self.curve: list[dict[str, float]] = []  # seconds of training, FVU by rule

    def hear(self) -> dict[str, Any] | None:
        """Return the next answer, None if the process has ended."""
        for line in self.process.stdout:
            if line.startswith("{"):  # some peers print when imported
                return json.loads(line)
        return None

    def ask(self, request: dict[str, int]) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        found = self.hear()
        if found is None:
            raise SystemExit(f"{self.name} stopped")
        return found

    def seconds_to(self, fvu: float, rule: str) -> float | None:
        """Return the training time at which an error was first reached."""
        reached = [point["seconds"] for point in self.curve if point[rule] <= fvu]
        return reached[0] if reached else None


def compare(contenders: list[Contender], shape: Shape) -> None:
    """Let the contenders take turns until all have done their steps."""
    n_done = 0
    while n_done < shape.n_steps:
        steps = min(shape.turn, shape.n_steps - n_done)
        n_done += steps
        for contender in contenders:
            turn = contender.ask({"steps": steps})
            contender.turns.append(turn | {"steps": steps})
        for contender in contenders:
            seconds = sum(turn["wall"] for turn in contender.turns)
            contender.curve.append({"seconds": seconds} | contender.ask({"score": 1}))


def report(contenders: list[Contender]) -> None:
    """Print the table."""
    by_name = {contender.name: contender for contender in contenders}
    print(
        f"{'contender':<22}{'wall':>9}{'CPU':>9}{'FVU of rows':>13}{'of batch':>10}"
        f"{'cosine':>8}{'memory':>11}   speed by wall [range], by CPU, "
        "to the peer's final FVU"
    )
    for contender in contenders:
        turns = contender.turns[1:] or contender.turns  # the first warms up
        wall, cpu = (
            1000 * statistics.median(turn[clock] / turn["steps"] for turn in turns)
            for clock in ("wall", "cpu")
        )
        memory = contender.turns[0]["memory"]  # before anything was scored
        last = contender.curve[-1]
        text = f"{contender.name:<20}{wall:>8.1f} ms{cpu:>6.0f} ms{last['row']:>13.4f}"
        text += f"{last['batch']:>10.4f}{last['cosine']:>8.3f}{memory:>7.0f} MiB"
        for peer, rule in RULES.items():
            if peer in by_name and contender.name.startswith("helpers"):
                text += "   " + versus(contender, by_name[peer], rule)
        print(text, flush=True)


def versus(contender: Contender, peer: Contender, rule: str) -> str:
    """Return how much faster a contender is than a peer, at the peer's own rule."""
    ratios = {
        clock: [
            theirs[clock] / ours[clock]
            for ours, theirs in zip(contender.turns[1:], peer.turns[1:], strict=True)
        ]
        for clock in ("wall", "cpu")
    }
    walls = ratios["wall"]
    last = peer.curve[-1]
    needed = contender.seconds_to(last[rule], rule)
    quality = "not reached" if needed is None else f"{last['seconds'] / needed:.1f}x"
    return (
        f"{peer.name} {statistics.median(walls):.1f}x "
        f"[{min(walls):.1f}-{max(walls):.1f}], "
        f"{statistics.median(ratios['cpu']):.1f}x, {quality}"
    )


def main() -> None:
    """Compare the contenders on one configuration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=SHAPES, default="A")
    parser.add_argument("--steps", type=int, help="instead of the configuration's")
    parser.add_argument("--turn", type=int, help="steps at a time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = SHAPES[options.config]
    shape = shape._replace(
        n_steps=options.steps or shape.n_steps, turn=options.turn or shape.turn
    )
    if options.worker:
        torch.set_num_threads(options.threads)
        sys.stdout = sys.stderr  # answers alone go to the pipe
        work(options.worker, options.folder, shape, options.learning_rate)
        return

    with tempfile.TemporaryDirectory() as folder:
        for name, array in zip(("rows", "directions"), make_rows(shape), strict=True):
            np.save(f"{folder}/{name}.npy", array)
        arguments = ["--config", options.config, "--folder", folder]
        arguments += ["--steps", str(shape.n_steps), "--threads", str(options.threads)]
        arguments += ["--learning-rate", str(options.learning_rate)]
        contenders = []
        for name in options.contenders:
            own = name.startswith("helpers")
            python = sys.executable if own else options.peers_python
            contender = Contender(name, python, arguments)
            if contender.hear() is None:
                print(f"{name}: left out, not importable in {python}")
                continue
            contenders.append(contender)
        print(f"{options.config}: {shape}, {options.threads} threads", flush=True)
        compare(contenders, shape)
        report(contenders)
        for contender in contenders:
            contender.process.stdin.close()
            contender.process.wait()


if __name__ == "__main__":
    main()
