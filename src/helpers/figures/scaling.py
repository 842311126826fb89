"""Figures of the scaling page: what stages take, and a calculator without a kernel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from helpers import costs
from helpers.epibert import EpiBERTConfig
from helpers.figures.style import COLORS, PAIR_MARKERS, new_axes

__all__ = ["COLUMNS", "calculator", "plan_ladder", "stage_hours", "weak_scaling"]

COLUMNS = {
    "pflop": "PFLOP",
    "device_hours": "device hours",
    "kept_gb": "disk, GB",
    "memory_gb": "memory, GB",
    "jobs": "jobs",
    "wall_hours": "wall hours",
}
# Name, label, value at first, smallest, step, and what an empty field means.
_FIELDS = (
    ("tissues", "Tissues (pairs)", 3, 1, 1, ""),
    ("biosamples", "Biosamples of a tissue", 2, 2, 1, ""),
    ("windows", "Windows", 96, 4, 1, ""),
    ("blocks", "Blocks, the last ones", None, 1, 1, ""),
    ("seeds", "Seeds", 1, 1, 1, ""),
    ("training_tokens", "Training tokens", "", 1, 1, "all"),
    ("causal_tissues", "Tissues of causal tests", "", 1, 1, "all"),
    ("shards", "Shards of windows", 1, 1, 1, ""),
    ("devices", "Devices", 1, 1, 1, ""),
    ("peak_tflops", "Peak of a device, TFLOP/s", 312, 0.001, "any", ""),
    ("efficiency", "Of it sustained, %", 30, 0.1, "any", ""),
    ("disk_gb_per_s", "Shared disk, GB/s", 1, 0.001, "any", ""),
)
_STYLE = """
.plan { background: var(--pst-color-background, Canvas); padding: 0.5em;
  color: var(--pst-color-text-base, CanvasText); font-size: 0.9em; }
.plan fieldset { border: 1px solid currentColor; margin: 0 0 0.7em; padding: 0.5em;
  display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5em, 1fr));
  gap: 0.5em 1em; align-items: end; min-width: 0; }
.plan legend { float: none; grid-column: 1 / -1; font-weight: bold; font-size: 1em;
  width: auto; margin: 0; }
.plan label { display: block; margin: 0; }
.plan input:not([type=checkbox]) { display: block; width: 100%; box-sizing: border-box;
  color: inherit; background: transparent; border: 1px solid currentColor;
  padding: 0.2em 0.4em; font: inherit; }
.plan input::placeholder { color: inherit; opacity: 0.75; }
.plan input:invalid { outline: 2px solid #D55E00; }
.plan .scroll { overflow-x: auto; }
.plan table { border-collapse: collapse; width: 100%; margin: 0 0 0.5em;
  color: inherit; background: none; }
.plan th, .plan td { text-align: right; padding: 0.2em 0.6em; color: inherit;
  background: none; border: 0; border-bottom: 1px solid currentColor; }
.plan td { white-space: nowrap; }
.plan tr > :first-child { text-align: left; }
.plan tbody tr:last-child { font-weight: bold; }
"""


def calculator(config: EpiBERTConfig | None = None) -> str:
    """Return HTML with a form and the plan of the study that it describes.

    The sums are those of `helpers.costs.plan`, whose factors are written into the page;
    no request is made and no kernel is needed. Without scripts the plan of the default
    study stays, and the form is hidden.

    Parameters
    ----------
    config : EpiBERTConfig, optional
        The model; the published one if absent.
    """
    config = EpiBERTConfig() if config is None else config
    model = costs.calculator(config)
    exported = model | {
        "counts": list(costs.COUNTS),
        "columns": list(COLUMNS),
        "stages": list(model["stages"]),
    }
    first = costs.plan(config, tissues=3, windows=96)
    script = resources.files("helpers") / "resources" / "calculator.js"
    # Themes give output of cells a light ground in dark mode, but not data frames.
    heads = "".join(f'<th scope="col">{text}</th>' for text in COLUMNS.values())
    return f"""<div class="plan">
<style>{_STYLE}</style>
{_form(config, model)}
<div class="scroll" role="region" aria-label="Plan by stage" tabindex="0">
<table class="dataframe">
<thead><tr><th scope="col">stage</th>{heads}</tr></thead>
<tbody>{_rows(first)}</tbody>
</table></div>
<output aria-live="polite">Slowest: {escape(first.bottleneck)}.</output>
<script>
(() => {{
{script.read_text(encoding="utf-8")}
attach(document.currentScript.parentElement, {json.dumps(exported)});
}})();
</script>
</div>"""


def _form(config: EpiBERTConfig, model: Mapping[str, Any]) -> str:
    """Return the form, hidden until a script makes it work."""
    numbers = []
    for name, label, value, least, step, empty in _FIELDS:
        most = f' max="{config.n_blocks}"' if name == "blocks" else ""
        value = config.n_blocks if name == "blocks" else value
        need = f' placeholder="{empty}"' if empty else " required"
        numbers.append(
            f'<label>{label}<input type="number" name="{name}" value="{value}" '
            f'min="{least}" step="{step}"{most}{need}></label>'
        )
    width = model["constants"]["d_sae"]
    numbers.insert(
        4,
        "<label>Features of dictionaries, by commas"
        f'<input name="widths" value="{width}" required></label>',
    )
    ways = [("keep_streams", "store the streams", " checked")]
    ways.append(("fan_out", "a run for each block", ""))
    ways += [(stage, stage, " checked") for stage in model["stages"]]
    boxes = [
        f'<label><input type="checkbox" name="{name}"{state}> {text}</label>'
        for name, text, state in ways
    ]
    return f"""<form hidden>
<fieldset><legend>The study and the machines</legend>{"".join(numbers)}</fieldset>
<fieldset><legend>How, and which stages</legend>{"".join(boxes)}</fieldset>
</form>"""


def _rows(found: costs.Plan) -> str:
    """Return the lines of the table as they are before any script has run."""
    table = pd.concat([found.table, found.totals.rename("all of it").to_frame().T])
    return "".join(
        f'<tr><th scope="row">{escape(str(stage))}</th>'
        + "".join(f"<td>{row[name]:,.3g}</td>" for name in COLUMNS)
        + "</tr>"
        for stage, row in table.iterrows()
    )


def stage_hours(plans: Mapping[str, costs.Plan], ax: Axes | None = None) -> Axes:
    """Plot the device hours of every stage of some plans, on a logarithmic axis.

    Parameters
    ----------
    plans : mapping of str to Plan
        By name, of the same stages.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax, 7.0, 3.6)
    for (name, found), marker in zip(plans.items(), PAIR_MARKERS, strict=False):
        ax.plot(found.table["device_hours"], found.table.index, marker, label=name)
    ax.set_xscale("log")
    ax.invert_yaxis()
    ax.grid(axis="y", color="0.9")
    ax.set_xlabel("device hours")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def plan_ladder(plans: Mapping[str, costs.Plan], axes: np.ndarray) -> None:
    """Plot wall time, disk and memory of plans that change one thing after the other.

    Parameters
    ----------
    plans : mapping of str to Plan
        By what is changed, in order.
    axes : numpy.ndarray of matplotlib.axes.Axes, shape (3,)
        Where to draw; they share the y axis.
    """
    wanted = {
        "wall_hours": "wall hours",
        "kept_gb": "disk (GB)",
        "memory_gb": "memory of a job (GB)",
    }
    for ax, (name, label) in zip(axes, wanted.items(), strict=True):
        values = [found.totals[name] for found in plans.values()]
        ax.plot(values, list(plans), "o-", color=COLORS["sae"], lw=1)
        for y, value in enumerate(values):
            ax.annotate(
                f"{value:,.0f}" if value >= 10 else f"{value:,.2g}",
                (value, y),
                (7, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        ax.set_xscale("log")
        ax.set_xlim(min(values) / 3, max(values) * 30)
        ax.grid(axis="y", color="0.9")
        ax.set_xlabel(label)
    axes[0].invert_yaxis()


def weak_scaling(points: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the efficiency of two workers, every repeat and the median.

    Parameters
    ----------
    points : pandas.DataFrame
        Columns ``task``, ``clock`` and ``efficiency``, one row per repeat.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax, 6.5, 2.6)
    looks = {"wall": ("in_vitro", "o"), "cpu": ("in_vivo", "s")}
    tasks = list(dict.fromkeys(points["task"]))
    for shift, (clock, (color, marker)) in zip(
        (-0.12, 0.12), looks.items(), strict=True
    ):
        rows = points[points["clock"] == clock]
        y = rows["task"].map(tasks.index) + shift
        ax.plot(rows["efficiency"], y, marker, color=COLORS[color], alpha=0.5)
        medians = rows.groupby("task")["efficiency"].median()[tasks]
        ax.plot(
            medians,
            np.arange(len(tasks)) + shift,
            "|",
            ms=18,
            mew=3,
            color=COLORS[color],
            label=f"{clock} time, median",
        )
    ax.axvline(1, color=COLORS["ceiling"], lw=1, ls=":")
    ax.set_yticks(range(len(tasks)), tasks)
    ax.set_ylim(len(tasks) - 0.5, -0.5)
    ax.set_xlabel("efficiency: time of one worker over time of two, twice the work")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
