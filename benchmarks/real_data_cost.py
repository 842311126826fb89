"""Print what the public data and the published model take: arithmetic, disk, time.

Give the rate that a machine sustains on the full-size model, in 1e12 operations per
second, as ``benchmarks/epibert_full_size.py`` measures it, to get hours.
"""

from __future__ import annotations

import argparse

import pandas as pd
import yaml

from helpers import costs
from helpers.epibert import EpiBERTConfig
from helpers.public_data import ENCODE_TISSUES
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
    n_windows = tissues[0]["windows"]["n_windows"]
    replicates = [len(tissue.get("replicates") or []) for tissue in tissues]
    found = costs.plan(
        tissues=len(tissues),
        biosamples=len(CONTEXTS) + max(replicates),
        windows=n_windows,
        peak_tflops=arguments.rate or 1.0,
        efficiency=1.0,
    )
    table = pd.concat([found.table, found.totals.rename("all of it").to_frame().T])
    length = EpiBERTConfig().input_length
    print(f"{len(tissues)} pairs, {n_windows} windows of {length} bp\n")
    hours = arguments.rate is not None
    print("| stage | PFLOP | disk, GB |" + (" hours |" if hours else ""))
    print("| --- | --- | --- |" + (" --- |" if hours else ""))
    for stage, row in table.iterrows():
        line = f"| {stage} | {row['pflop']:,.1f} | {row['kept_gb']:,.1f} |"
        if hours:
            line += f" {row['device_hours']:,.1f} |"
        print(line)


if __name__ == "__main__":
    main()
