"""Draw the figure of the README from a run: the answers of the first page, as SVG.

    python scripts/make_overview.py

reads the tables of `_build/runs/simulated` (`make book` makes them) and writes
`book/_static/overview.svg`, on white and with its text as text.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from helpers import answers, figures, stages
from helpers.figures.overview import answer_panel


def main() -> None:
    """Draw the panels side by side and print what they say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="_build/runs/simulated")
    parser.add_argument("--data", default="simulated")
    parser.add_argument("--out", type=Path, default=Path("book/_static/overview.svg"))
    arguments = parser.parse_args()
    found = answers.answers(stages.open_study(arguments.run, data=arguments.data))
    figures.set_style()
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "overview"}
    figure, axes = plt.subplots(1, len(found), figsize=(9.0, 2.7))
    for answer, ax in zip(found, axes, strict=True):
        answer_panel(answer, ax).set_title(
            answer.question, loc="left", fontweight="bold"
        )
        print(f"{answer.question} {answer.verdict}")
    temporary = arguments.out.with_suffix(".tmp")
    figure.savefig(temporary, format="svg", metadata={"Date": None})
    temporary.replace(arguments.out)


if __name__ == "__main__":
    main()
