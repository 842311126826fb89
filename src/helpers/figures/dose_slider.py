"""Tracks at a locus by dose, and a slider over pre-rendered pictures of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from helpers.causal._locus import SteeredLocus
from helpers.figures.style import COLORS, new_axes

__all__ = ["dose_slider", "render_doses", "steered_tracks"]


def steered_tracks(locus: SteeredLocus, dose: float, ax: Axes | None = None) -> Axes:
    """Plot predictions along a window: unedited, steered by a dose, and the target.

    Parameters
    ----------
    locus : SteeredLocus
        From `helpers.causal.steered_locus`.
    dose : float
        One of its doses.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    if dose not in locus.steered:
        raise ValueError(f"dose must be one of {list(locus.steered)}; got {dose}")
    ax = new_axes(ax, 9.0, 3.2)
    position = locus.position / 1e3
    highest = max(np.max(y) for y in (locus.base, locus.target))
    up = locus.classes == "vivo-up"
    ax.fill_between(
        position,
        0,
        1.15 * highest,
        where=up,
        step="mid",
        color="0.92",
        lw=0,
        label="vivo-up token",
    )
    ax.plot(position, locus.base, color=COLORS["in_vitro"], lw=1.5, label="in vitro")
    ax.plot(
        position, locus.target, "--", color=COLORS["in_vivo"], lw=1.5, label="in vivo"
    )
    ax.plot(
        position,
        locus.steered[dose],
        color=COLORS["sae"],
        lw=2,
        label=f"in vitro, steered by {dose:g}",
    )
    ax.set_ylim(0, 1.15 * highest)
    ax.set_xlim(position[0], position[-1])
    ax.set_xlabel(f"position on {locus.place.split(':')[0]} (kb)")
    ax.set_ylabel("prediction, log1p")
    ax.set_title(f"{locus.lineage}, {locus.place}, block {locus.layer}")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return ax


def render_doses(locus: SteeredLocus) -> dict[float, bytes]:
    """Draw `steered_tracks` for every dose, as PNG."""
    images = {}
    for dose in sorted(locus.steered):
        ax = steered_tracks(locus, dose)
        buffer = io.BytesIO()
        ax.figure.savefig(buffer, format="png", dpi=80)
        plt.close(ax.figure)
        images[dose] = buffer.getvalue()
    return images


def dose_slider(
    images: dict[float, bytes], *, start: float, label: str, descriptions: Sequence[str]
) -> str:
    """Return HTML with a slider that shows one picture per dose.

    Everything is inside: no request is made and no kernel is needed. Without scripts
    the picture of the first dose shown stays, and the slider is hidden.

    Parameters
    ----------
    images : dict of float to bytes
        PNG per dose, in the order of the slider.
    start : float
        Dose shown first.
    label : str
        What the slider sets, for readers and screen readers.
    descriptions : sequence of str
        Alternative text of every picture.

    Raises
    ------
    ValueError
        If there is no picture, `start` has none, or descriptions are missing.
    """
    doses = list(images)
    if not doses or start not in images or len(descriptions) != len(doses):
        raise ValueError(
            "images must hold the start dose and one description each; got doses "
            f"{doses}, start {start}, {len(descriptions)} descriptions"
        )
    first = doses.index(start)
    pictures = "".join(
        f'<img alt="{escape(text)}" src="data:image/png;base64,'
        f'{base64.b64encode(images[dose]).decode()}" '
        f'style="max-width:100%"{"" if k == first else " hidden"}>'
        for k, (dose, text) in enumerate(zip(doses, descriptions, strict=True))
    )
    return f"""<div class="dose-slider" data-interactive>
<label hidden>{escape(label)}
<input type="range" min="0" max="{len(doses) - 1}" step="1" value="{first}"
 aria-valuetext="{doses[first]:g}" style="width:20em;max-width:100%">
<output>{doses[first]:g}</output></label>
<div>{pictures}</div>
<script>
(() => {{
  const box = document.currentScript.parentElement;
  const input = box.querySelector("input"), output = box.querySelector("output");
  const pictures = box.querySelectorAll("img");
  const doses = {[f"{dose:g}" for dose in doses]};
  input.addEventListener("input", () => {{
    pictures.forEach((picture, k) => {{ picture.hidden = k !== +input.value; }});
    output.textContent = doses[+input.value];
    input.setAttribute("aria-valuetext", doses[+input.value]);
  }});
  box.querySelector("label").hidden = false;
}})();
</script>
</div>"""
