"""Measure the published EpiBERT at its full size: time, share of the floor, memory.

The floor of a forward pass is its 2.67e12 operations at the rate that this machine
multiplies matrices of the shapes that occur, measured in the same run. Weights are
random: their values do not change what a pass costs, but they do change what it loses
in bfloat16, so that published weights will lose another part.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from helpers.costs import forward_flop
from helpers.epibert import TOKEN_BP, EpiBERT, EpiBERTConfig

N_BIOSAMPLES = 6
RESTART = 6  # of 8 blocks have run
N_PRODUCTS = 8  # of each shape, for a rate over a second or so
# Rows, inner size and columns of products that occur: blocks 1 and 5 of the sequence
# tower as matrix products, and the stream through the dense layers of a block.
SHAPES = [(8192, 5 * 512, 640), (1024, 5 * 896, 1024), (4096, 1024, 1024)]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        memory = pool.apply(peak_memory, (arguments.threads, arguments.seed))
    rows = measure(arguments.device, arguments.seed, arguments.repeats)
    rows["peak memory of a process that does one float32 pass, GB"] = memory
    rows["load from safetensors, s"] = load_seconds(arguments.seed)
    print(f"{arguments.threads} threads, device {arguments.device}\n")
    print("| measure | value |\n| --- | --- |")
    for name, value in rows.items():
        print(f"| {name} | {value:.3g} |")


def inputs(config: EpiBERTConfig, seed: int, device: str) -> list[torch.Tensor]:
    """Return random sequence, track and motif activity of one window."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 4, (1, config.input_length), generator=generator)
    sequence = torch.nn.functional.one_hot(codes, 4).float()
    atac = torch.rand(1, config.input_length // 4, generator=generator)
    motifs = torch.rand(1, config.n_motifs, generator=generator)
    return [x.to(device) for x in (sequence, atac, motifs)]


@torch.no_grad()
def random_model(seed: int) -> EpiBERT:
    """Return a model whose streams and outputs vary along the tokens.

    Its batch norms hold the statistics of a random window, as trained ones hold those
    of real windows: with any others, next to nothing of a sequence would reach the
    output, and the error of the output would have nothing to be compared with.
    """
    config = EpiBERTConfig()
    short = EpiBERT(replace(config, input_length=64 * TOKEN_BP), random_state=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in short.parameters():
        if parameter.ndim == 1:  # biases and norms start at constants
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    short.eval()
    for module in short.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
            module.train()
    short(*inputs(short.config, seed, "cpu"))
    model = EpiBERT(config, random_state=seed)
    model.load_state_dict(short.state_dict())
    return model.eval()


def peak_memory(threads: int, seed: int) -> float:
    """Return the peak memory in GB of this process after one forward pass."""
    torch.set_num_threads(threads)
    model = random_model(seed)
    with torch.no_grad():
        model(*inputs(model.config, seed, "cpu"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def load_seconds(seed: int) -> float:
    """Return the time to load a saved model of the published size."""
    with tempfile.TemporaryDirectory() as folder:
        random_model(seed).save_pretrained(Path(folder))
        start = time.perf_counter()
        EpiBERT.from_pretrained(folder)
        return time.perf_counter() - start


@torch.no_grad()
def measure(device: str, seed: int, repeats: int) -> dict[str, float]:
    """Time everything in turns, ``repeats`` times, and return medians and ratios."""
    model = random_model(seed).to(device)
    config = model.config
    window = inputs(config, seed, device)
    streams = {}

    def full() -> None:
        streams["features"] = model.encode_sequence(window[0])
        stream = model.encode_context(streams["features"], *window[1:])
        streams["late"] = model.run_blocks(stream, 0, RESTART)
        streams["last"] = model.run_blocks(streams["late"], RESTART)
        streams["output"] = model.head(streams["last"])

    def shared() -> None:
        features = model.encode_sequence(window[0])
        for _ in range(N_BIOSAMPLES):
            model.head(model.run_blocks(model.encode_context(features, *window[1:])))

    def restart() -> None:
        model.head(model.run_blocks(streams["late"], RESTART))

    operands = [
        (torch.randn(m, k, device=device), torch.randn(k, n, device=device))
        for m, k, n in SHAPES
    ]

    def products() -> None:
        for a, b in N_PRODUCTS * operands:
            a @ b

    def products_bfloat16() -> None:
        for a, b in N_PRODUCTS * halves:
            a @ b

    def full_bfloat16() -> None:
        model.bfloat16 = True
        full()
        model.bfloat16 = False

    full()
    exact = {name: x.float().clone() for name, x in streams.items()}
    full_bfloat16()
    error = {name: (streams[name].float() - exact[name]) for name in exact}
    correlation = {
        name: torch.corrcoef(
            torch.stack([exact[name], streams[name]]).double().flatten(1)
        )[0, 1].item()
        for name in ("last", "output")
    }
    halves = [(a.bfloat16(), b.bfloat16()) for a, b in operands]
    tasks = [products, full, shared, restart, products_bfloat16, full_bfloat16]
    seconds = {task: [] for task in tasks}
    for _ in range(repeats):
        for task in tasks:
            seconds[task].append(timed(task, device))
    median = {task: statistics.median(values) for task, values in seconds.items()}
    flop = forward_flop(config).sum()
    product_flop = N_PRODUCTS * sum(2 * m * k * n for m, k, n in SHAPES)
    rate = product_flop / median[products]
    rate_bfloat16 = product_flop / median[products_bfloat16]
    six = N_BIOSAMPLES * median[full]
    return {
        "matrix products, float32, 1e9/s": rate / 1e9,
        "matrix products, bfloat16, 1e9/s": rate_bfloat16 / 1e9,
        "forward pass, float32, s": median[full],
        "share of the product rate": flop / median[full] / rate,
        "forward pass, float32, windows/s": 1 / median[full],
        "six biosamples, six passes against shared tower": six / median[shared],
        f"full pass against restart after block {RESTART} of 8": median[full]
        / median[restart],
        "forward pass, bfloat16, s": median[full_bfloat16],
        "forward pass, bfloat16, windows/s": 1 / median[full_bfloat16],
        "share of the bfloat16 product rate": flop
        / median[full_bfloat16]
        / rate_bfloat16,
        "bfloat16: largest error of the last stream": error["last"].abs().max().item(),
        "largest value of the last stream": exact["last"].abs().max().item(),
        "bfloat16: largest error of the output": error["output"].abs().max().item(),
        "largest value of the output": exact["output"].max().item(),
        "bfloat16: correlation of the last stream": correlation["last"],
        "bfloat16: correlation of the output": correlation["output"],
    }


def timed(task: Callable[[], None], device: str) -> float:
    """Return the seconds that a task takes."""
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronize()
    start = time.perf_counter()
    task()
    synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
