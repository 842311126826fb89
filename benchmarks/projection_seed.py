"""Print how much a model loses when its projection seed is wrong.

No checkpoint stores the random projection of the attention, and nothing fails when it
is drawn from another seed. Does masked prediction notice? A seed that does not stand
out among its neighbors is not the seed of the training.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from helpers import stages
from helpers.epibert import EpiBERT
from helpers.pretrain import load_arrays, predict_masked


def main() -> None:
    """Score the stated seed and nine others on hidden tokens of the test windows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="_build/runs/simulated")
    parser.add_argument("--data", default="simulated")
    parser.add_argument("--model", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", type=int, default=32)
    arguments = parser.parse_args()
    study = stages.open_study(
        arguments.run,
        data=arguments.data,
        model=arguments.model,
        device=arguments.device,
    )
    windows = study.dataset.windows_of("test")[: arguments.windows]
    data = load_arrays(study.dataset, windows, np.arange(len(study.design)))
    stated = study.model.config.projection_seed
    print("| projection seed | r on hidden tokens | Poisson loss |")
    print("| --- | --- | --- |")
    for seed in range(stated, stated + 10):
        config = replace(study.model.config, projection_seed=seed)
        model = EpiBERT(config).to(study.device).eval()
        model.load_state_dict(study.model.state_dict())
        found = predict_masked(model, data, device=study.device)
        predicted, target = found.predicted[found.mask], found.target[found.mask]
        r = np.corrcoef(np.log1p(predicted), np.log1p(target))[0, 1]
        loss = (predicted - target * np.log(predicted + 1e-7)).mean()
        note = " (stated)" if seed == stated else ""
        print(f"| {seed}{note} | {r:.4f} | {loss:.4f} |")


if __name__ == "__main__":
    main()
