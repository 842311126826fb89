"""Print what the public data and the published model take: arithmetic, disk, time.

Give the rate that a machine sustains on the full-size model, in 1e12 operations per
second, as ``benchmarks/epibert_full_size.py`` measures it, to get hours.
"""

from __future__ import annotations

import argparse

import yaml

from helpers import causal
from helpers.costs import study_costs
from helpers.epibert import EpiBERTConfig
from helpers.public_data import ENCODE_TISSUES
from helpers.stages import sae_config
from helpers.tissues import CONTEXTS, tissue_files


def main() -> None:
    """Print the table of costs in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, help="sustained, in 1e12 per second")
    arguments = parser.parse_args()
    tissues = [
        yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in tissue_files(ENCODE_TISSUES)
    ]
    config = EpiBERTConfig()
    n_windows = tissues[0]["windows"]["n_windows"]
    table = study_costs(
        config,
        n_biosamples=len(tissues) * len(CONTEXTS),
        n_windows=n_windows,
        sae=sae_config(config.d_model),
        n_random_sets=sum(sum(sets.values()) for sets in causal.N_RANDOM.values()),
        n_ablation_windows=min(causal.N_WINDOWS, n_windows // 4),
    )
    table.loc["all of it"] = table.sum()
    print(f"{len(tissues)} pairs, {n_windows} windows of {config.input_length} bp\n")
    hours = arguments.rate is not None
    print("| stage | PFLOP | disk, GB |" + (" hours |" if hours else ""))
    print("| --- | --- | --- |" + (" --- |" if hours else ""))
    for stage, row in table.iterrows():
        line = f"| {stage} | {row['pflop']:,.1f} | {row['disk_gb']:,.1f} |"
        if hours:
            line += f" {1e3 * row['pflop'] / arguments.rate / 3600:,.1f} |"
        print(line)


if __name__ == "__main__":
    main()
