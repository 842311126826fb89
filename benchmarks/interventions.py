"""Time 200 ablations of a block against the arithmetic of the blocks after it.

Three ways to the same numbers, on the small model: `helpers.interventions.effects`,
which restarts at the block and lets feature sets share batches; the remaining blocks
and the head alone, on as many streams; and plain hooks on full forward passes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from helpers.interventions import ablate, ablation_deltas, effects
from helpers.probe import capture, edited, restart
from helpers.sae import BatchTopKSAE
from helpers.small_model import load_small_model

N_SETS, SET_SIZE, N_WINDOWS, N_NAIVE = 200, 50, 24, 3
TARGETS = {"over the blocks": 1.5, "hooks over ours, late block": 5.0}


def best_of(run: Callable[[], object], repeats: int) -> float:
    """Return the shortest processor time of some runs, seconds; others do not count."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


@torch.no_grad()
def main() -> None:
    """Print one line per block."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    model = load_small_model()
    config = model.config
    generator = torch.Generator().manual_seed(0)
    length = config.input_length
    bases = torch.randint(4, (N_WINDOWS, length), generator=generator)
    inputs = (
        torch.nn.functional.one_hot(bases, 4).float(),
        torch.rand(N_WINDOWS, length // 4, generator=generator),
        torch.rand(N_WINDOWS, config.n_motifs, generator=generator),
    )
    streams = capture(model, inputs, range(config.n_blocks))
    sae = BatchTopKSAE(config.d_model, 8 * config.d_model, 16)
    rng = np.random.default_rng(0)
    d_sae = 8 * config.d_model
    sets = [rng.permutation(d_sae)[:SET_SIZE] for _ in range(N_SETS)]
    print(
        f"{N_SETS} sets of {SET_SIZE} features, {N_WINDOWS} windows, targets {TARGETS}"
    )
    print("| block | ours, s | blocks alone, s | ratio | hooks, s | hooks / ours |")
    print("| --- | --- | --- | --- | --- | --- |")
    for layer, x in streams.items():

        def ours(x: torch.Tensor = x, layer: int = layer) -> torch.Tensor:
            deltas = ablation_deltas(x, sae, sets, value="zero")
            return effects(model, x, layer, deltas).edited

        def alone(x: torch.Tensor = x, layer: int = layer) -> None:
            for _ in sets:
                restart(model, x, layer)

        def hooks(x: torch.Tensor = x, layer: int = layer) -> torch.Tensor:
            outputs = []
            for features in sets[:N_NAIVE]:
                edit = {layer: lambda s, f=features: ablate(s, sae, f, value="zero")}
                with edited(model, edit):
                    outputs.append(model(*inputs))
            return torch.stack(outputs)

        difference = (ours()[:N_NAIVE] - hooks()).abs().max()
        if difference > 1e-4:
            raise SystemExit(f"block {layer}: the ways differ by {difference:.1e}")
        fast, least = (
            best_of(ours, arguments.repeats),
            best_of(alone, arguments.repeats),
        )
        naive = best_of(hooks, arguments.repeats) * N_SETS / N_NAIVE
        cells = [f"{fast:.2f}", f"{least:.2f}", f"{fast / least:.2f}"]
        cells += [f"{naive:.1f}", f"{naive / fast:.1f}"]
        print(f"| {layer} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
