"""Print the main results of a run as the Markdown tables that the README shows."""

from __future__ import annotations

import argparse

from helpers import claims, stages


def main() -> None:
    """Print the headline numbers and the claim ledger of a finished run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="_build/runs/simulated")
    parser.add_argument("--data", default="simulated")
    arguments = parser.parse_args()
    study = stages.open_study(arguments.run, data=arguments.data)
    print("| measure | value |\n| --- | --- |")
    for name, value in claims.headline(study).items():
        print(f"| {name} | {value} |")
    ledger = claims.claim_ledger(study)
    print("\n| " + " | ".join(ledger) + " |")
    print("| " + " | ".join("---" for _ in ledger) + " |")
    for row in ledger.itertuples(index=False):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
