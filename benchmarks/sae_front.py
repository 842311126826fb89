"""Error against sparsity on the default study's rows: this package and its peers.

    python benchmarks/sae_front.py --peers-python PYTHON --output FOLDER

trains every contender at eight features per dimension and several k on the rows of
`helpers.dictionaries.front_rows`, last block, with equal batches, steps, warm-up and
decay of the step size; rows are centered and scaled for all. Peers try several step
sizes and keep the one with the least error on ``tune`` rows; this package has its
default. Scored are ``test`` rows, by two rules: ``own``, what the package does at
inference, and ``tuned``, one threshold set on ``tune`` rows for k features a token. The
points (points.csv) and where they come from (provenance.json) are what notebook 02
reads from ``src/helpers/resources/sae_front``.

dictionary_learning (BatchTopK) and sparsify (TopK) run in the Python given by
--peers-python, where ``pip install dictionary-learning eai-sparsify`` was run.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

PEERS = {"dictionary_learning": "dictionary-learning", "sparsify": "eai-sparsify"}
LEARNING_RATES = (1e-3, 2e-3, 4e-3, 8e-3)
WARMUP, DECAY = 0.05, 0.25  # fractions of the steps
COLUMNS = ("contender", "d_sae", "k", "rule", "l0", "fvu", "dead_percent")


def batches(rows: torch.Tensor, plan: dict[str, Any]) -> Any:
    """Yield the batches of a run, in the order that this package visits them."""
    for epoch in range(plan["n_epochs"]):
        order = np.random.default_rng((plan["seed"], epoch)).permutation(len(rows))
        for first in range(0, len(rows) - plan["batch_size"] + 1, plan["batch_size"]):
            yield rows[order[first : first + plan["batch_size"]]]


def dictionary_learning(
    rows: torch.Tensor, k: int, learning_rate: float, plan: dict[str, Any]
) -> tuple[tuple[torch.Tensor, ...], Any]:
    """Train dictionary_learning's BatchTopK; return weights and its own encoder."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    n_steps = plan["n_steps"]
    trainer = BatchTopKTrainer(
        steps=n_steps,
        activation_dim=rows.shape[1],
        dict_size=plan["d_sae"],
        k=k,
        layer=0,
        lm_name="none",
        lr=learning_rate,
        warmup_steps=round(WARMUP * n_steps),
        decay_start=round((1 - DECAY) * n_steps),
        threshold_start_step=n_steps // 2,  # its 1000 would never come
        seed=7,
        device="cpu",
    )
    for step, x in enumerate(batches(rows, plan)):
        trainer.update(step, x)
    sae = trainer.ae
    weights = (sae.encoder.weight, sae.encoder.bias, sae.decoder.weight.T, sae.b_dec)
    return weights, sae.encode


def sparsify(
    rows: torch.Tensor, k: int, learning_rate: float, plan: dict[str, Any]
) -> tuple[tuple[torch.Tensor, ...], Any]:
    """Train sparsify's TopK coder; return weights and its own encoder."""
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    torch.manual_seed(7)
    n_steps = plan["n_steps"]
    config = SparseCoderConfig(num_latents=plan["d_sae"], k=k)
    sae = SparseCoder(rows.shape[1], config)
    optimizer = torch.optim.Adam(sae.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            1.0, (step + 1) / (WARMUP * n_steps), (n_steps - step) / (DECAY * n_steps)
        ),
    )
    for step, x in enumerate(batches(rows, plan)):
        if step == 0:
            sae.b_dec.data = x.mean(0)
        sae.set_decoder_norm_to_unit_norm()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    def own(x: torch.Tensor) -> torch.Tensor:
        found = sae.encode(x)
        code = torch.zeros(len(x), plan["d_sae"])
        return code.scatter(1, found.top_indices.long(), found.top_acts)

    return (sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec), own


@torch.no_grad()
def score(
    weights: tuple[torch.Tensor, ...],
    own: Any,
    tune: torch.Tensor,
    test: torch.Tensor,
    k: int,
) -> dict[str, dict[str, float]]:
    """Return L0, FVU and dead features of test rows by each rule."""
    encoder, b_enc, decoder, b_dec = weights

    def pre(x: torch.Tensor) -> torch.Tensor:
        return torch.relu((x - b_dec) @ encoder.T + b_enc)

    largest = pre(tune).flatten().topk(len(tune) * k + 1)
    threshold = float(largest[0][-1])
    h = pre(test)
    codes = {"own": own(test), "tuned": h * (h > threshold)}
    variance = (test - test.mean(0)).square().sum()
    found = {}
    for rule, code in codes.items():
        error = (code @ decoder + b_dec - test).square().sum()
        found[rule] = {
            "l0": float((code > 0).float().sum(1).mean()),
            "fvu": float(error / variance),
            "dead_percent": 100 * float((code > 0).sum(0).eq(0).float().mean()),
        }
    return found


def work(name: str, folder: Path) -> None:
    """Train one peer at every k; print its version and its scores as JSON."""
    plan = json.loads((folder / "plan.json").read_text())
    rows = {
        part: torch.from_numpy(np.load(folder / f"{part}.npy"))
        for part in ("train", "tune", "test")
    }
    fit = {"dictionary_learning": dictionary_learning, "sparsify": sparsify}[name]
    found = {}
    for k in plan["ks"]:
        tried = []
        for rate in LEARNING_RATES:
            weights, own = fit(rows["train"], k, rate, plan)
            by_tune = score(weights, own, rows["tune"], rows["tune"], k)
            scores = score(weights, own, rows["tune"], rows["test"], k)
            tried.append((by_tune["tuned"]["fvu"], rate, scores))
        _, rate, scores = min(tried, key=lambda entry: entry[0])
        found[k] = {"learning_rate": rate, "scores": scores}
    answer = {"version": version(PEERS[name]), "torch": torch.__version__}
    sys.__stdout__.write(json.dumps(answer | {"found": found}) + "\n")


def own_points(rows: Any, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the points of this package, whose own rule is the tuned threshold."""
    from helpers.dictionaries import front_config, score_rows
    from helpers.sae import train

    points = []
    for k in plan["ks"]:
        config = front_config(plan["d_sae"], k, random_state=plan["seed"])
        found = score_rows(train(rows.train, config, heldout=rows.tune).sae, rows.test)
        scores = {"l0": found["l0_mean"]} | {c: found[c] for c in COLUMNS[-2:]}
        name = {"contender": "helpers", "d_sae": plan["d_sae"], "k": k}
        points += [name | {"rule": rule} | scores for rule in ("own", "tuned")]
    return points


def main() -> None:
    """Compute the points and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="_build/runs/simulated")
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--output", type=Path, default=Path("_build/sae_front"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.worker:
        sys.stdout = sys.stderr  # some peers print
        work(options.worker, options.folder)
        return

    from helpers import dictionaries, stages

    study = stages.open_study(options.run)
    rows = dictionaries.front_rows(study, max(study.blocks))
    d_sae = 8 * rows.train.shape[1]
    config = dictionaries.front_config(d_sae, 16)
    plan = {
        "d_sae": d_sae,
        "ks": dictionaries.FRONT_KS,
        "batch_size": config.batch_size,
        "n_epochs": config.n_epochs,
        "n_steps": config.n_epochs * (len(rows.train) // config.batch_size),
        "seed": study.seed,
    }
    points, versions = own_points(rows, plan), {"torch": torch.__version__}
    settings = plan | {"learning_rates tried by peers": LEARNING_RATES, "chosen": {}}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "plan.json").write_text(json.dumps(plan))
        mean = rows.train.mean(0)
        scale = (rows.train - mean).square().mean().sqrt()
        for part, x in rows._asdict().items():
            np.save(f"{folder}/{part}.npy", ((x - mean) / scale).numpy())
        for name in PEERS:
            command = [options.peers_python, __file__, "--worker", name]
            command += ["--folder", folder, "--threads", str(options.threads)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{name}: left out\n{done.stderr[-500:]}")
                continue
            answer = json.loads(done.stdout.strip().splitlines()[-1])
            versions[PEERS[name]] = answer["version"]
            versions[f"torch of {name}"] = answer["torch"]
            rates = {k: found["learning_rate"] for k, found in answer["found"].items()}
            settings["chosen"][name] = rates
            for k, found in answer["found"].items():
                line = {"contender": name, "d_sae": d_sae, "k": int(k)}
                for rule, scores in found["scores"].items():
                    points.append(line | {"rule": rule} | scores)
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "points.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {
                column: round(value, 6) if isinstance(value, float) else value
                for column, value in point.items()
            }
            for point in points
        )
    provenance = {
        "script": "benchmarks/sae_front.py",
        "date": str(date.today()),
        "versions": versions,
        "settings": settings,
        "fingerprint": dictionaries.fingerprint(rows),
    }
    text = json.dumps(provenance, indent=1) + "\n"
    (options.output / "provenance.json").write_text(text)
    print((options.output / "points.csv").read_text())


if __name__ == "__main__":
    main()
