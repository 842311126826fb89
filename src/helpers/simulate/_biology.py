"""What is planted: the world, its factors, and who they are active in.

`World` fixes size, kind and seed; the factors come from ``planted_world.yml``.
`helpers.simulate` is the public face of this module.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import pandas as pd
import yaml

from helpers.tissues import CONTEXTS

__all__ = [
    "BIOLOGY_FILE",
    "DOMAIN_TOKENS",
    "KINDS",
    "TOKEN_BP",
    "World",
    "activity",
    "biology",
    "biosample_table",
    "factor_table",
]

KINDS = ("planted", "no-effect", "depth-only", "motif-vector-only", "composition-only")
BIOLOGY_FILE = "planted_world.yml"
TOKEN_BP = 128
DOMAIN_TOKENS = 32  # 4-kb domains share GC content and part of their openness
_MIN_CHROMOSOMES = 20
_MIN_WINDOWS = 4  # per chromosome

DEPTH_OCTAVES = 1.0  # depths lie between 1/2 and 2
GC_SLOPE_SD = 0.8  # log rate per unit of GC content
MIXED_FRACTION = (0.1, 0.3)  # of a tissue that is another lineage
HANDLED_LINEAGE, HANDLING = "liver", 0.4  # AP-1 activity added by dissociation
ACTIVITY_LOG_SD, MAX_ACTIVITY = 0.1, 1.2
DEPTH_ONLY_FACTOR = 1.6
COMPOSITION_ONLY_FRACTION = 0.4


@dataclass(frozen=True)
class World:
    """Size and kind of a simulated world.

    Attributes
    ----------
    kind : str
        ``planted``, or a null world: ``no-effect`` (contexts differ in nothing),
        ``depth-only`` (tissue tracks are scaled by 1.6), ``motif-vector-only`` (only
        the motif activity differs), ``composition-only`` (tissues hold 40 % of another
        lineage). Biosamples of a null world do not differ in depth, GC bias,
        composition, handling or activity otherwise; the noise of the track remains.
    n_chromosomes : int
        At least 20: chromosomes are the units of the train/test split.
    windows_per_chromosome : int
        Windows of ``window_bp`` that tile a chromosome, at least 4.
    window_bp : int
        Multiple of 4,096.
    n_replicates : int
        Further biosamples of each study condition, for placebo contrasts.
    seed : int
        Seed of the genome and of all noise. The biology does not depend on it.
    """

    kind: str = "planted"
    n_chromosomes: int = 24
    windows_per_chromosome: int = 32
    window_bp: int = 8192
    n_replicates: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}; got {self.kind!r}")
        lowest = {
            "n_chromosomes": _MIN_CHROMOSOMES,
            "windows_per_chromosome": _MIN_WINDOWS,
            "n_replicates": 0,
            "seed": 0,
        }
        for name, minimum in lowest.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < minimum:
                raise ValueError(f"{name} must be an integer >= {minimum}; got {value}")
        domain_bp = TOKEN_BP * DOMAIN_TOKENS
        if self.window_bp <= 0 or self.window_bp % domain_bp:
            raise ValueError(
                f"window_bp must be a positive multiple of {domain_bp}; "
                f"got {self.window_bp}"
            )

    @property
    def chromosomes(self) -> list[str]:
        """Chromosome names, ``sim1`` onwards."""
        return [f"sim{i + 1}" for i in range(self.n_chromosomes)]

    @property
    def tokens_per_chromosome(self) -> int:
        """Number of 128-bp tokens of a chromosome."""
        return self.windows_per_chromosome * self.window_bp // TOKEN_BP

    def random(self, *labels: str) -> np.random.Generator:
        """Return the generator of one labelled part, independent of every other."""
        return np.random.default_rng(
            [self.seed, *(zlib.crc32(label.encode()) for label in labels)]
        )


@cache
def biology() -> dict:
    """Return the content of ``planted_world.yml``."""
    resource = resources.files("helpers") / "resources" / BIOLOGY_FILE
    return yaml.safe_load(resource.read_text(encoding="utf-8"))


def factor_table() -> pd.DataFrame:
    """Return the planted factors.

    Returns
    -------
    pandas.DataFrame
        One row per factor: ``name``, ``jaspar`` (matrix identifier), ``role``,
        ``lineages`` (comma-separated, empty = all), ``programme``.
    """
    table = pd.DataFrame(biology()["factors"])
    table["lineages"] = [
        ",".join(x) if isinstance(x, list) else "" for x in table["lineages"]
    ]
    return table


def biosample_table(world: World) -> pd.DataFrame:
    """Return the biosamples of a world with their nuisances.

    Parameters
    ----------
    world : World
        The world; its kind removes or adds differences between the contexts.

    Returns
    -------
    pandas.DataFrame
        One row per biosample: ``name``, ``lineage``, ``context``, ``replicate`` (0 is
        the study's own), ``training`` (the small model may learn from it), ``depth``
        (relative), ``gc_slope`` (log rate per unit GC), ``mixed_in`` and ``fraction``
        (a second lineage inside a tissue), ``handling`` (AP-1 activity added by
        dissociating the tissue).
    """
    content = biology()
    rows = []
    for group in ("study", "unseen", "training"):
        n_samples = world.n_replicates + 1 if group == "study" else 1
        for lineage in content[group]:
            for context in CONTEXTS:
                for replicate in range(n_samples):
                    suffix = f"_r{replicate}" if replicate else ""
                    rows.append(
                        {
                            "name": f"{lineage}_{context}{suffix}",
                            "lineage": lineage,
                            "context": context,
                            "replicate": replicate,
                            "training": group != "unseen" and replicate == 0,
                        }
                    )
    table = pd.DataFrame(rows)
    planted = world.kind == "planted"
    tissue = (table["context"] == "in_vivo").to_numpy()
    lineages = content["study"] + content["training"]
    nuisances = []
    for name, own in zip(table["name"], table["lineage"], strict=True):
        random = world.random("biosample", name)
        others = [lineage for lineage in lineages if lineage != own]
        depth = 2 ** random.uniform(-DEPTH_OCTAVES, DEPTH_OCTAVES) if planted else 1.0
        gc_slope = random.normal(0, GC_SLOPE_SD) if planted else 0.0
        mixed_in = str(random.choice(others))
        fraction = random.uniform(*MIXED_FRACTION) if planted else 0.0
        nuisances.append((depth, gc_slope, mixed_in, fraction))
    columns = ["depth", "gc_slope", "mixed_in", "fraction"]
    table[columns] = pd.DataFrame(nuisances, columns=columns)
    table["fraction"] = np.where(tissue, table["fraction"], 0.0)
    if world.kind == "composition-only":
        table["fraction"] = np.where(tissue, COMPOSITION_ONLY_FRACTION, 0.0)
    if world.kind == "depth-only":
        table["depth"] = np.where(tissue, DEPTH_ONLY_FACTOR, 1.0)
    handled = planted & tissue & (table["lineage"] == HANDLED_LINEAGE)
    table["handling"] = np.where(handled, HANDLING, 0.0)
    return table


def activity(world: World, biosample: pd.Series) -> np.ndarray:
    """Return the activity of every factor in a biosample.

    Parameters
    ----------
    world : World
        The world. Unless it is the planted one, biosamples of a lineage have exactly
        the same activities, but for the composition of tissues in the
        composition-only world.
    biosample : pandas.Series
        A row of `biosample_table`.

    Returns
    -------
    numpy.ndarray, shape (n_factors,)
        1 opens a site fully; in the order of `factor_table`.
    """

    def pure(lineage: str) -> np.ndarray:
        if world.kind == "planted":
            return _at_work(lineage, biosample["context"])
        # Contexts must not differ: the mean activity stands in both.
        return (_at_work(lineage, "in_vitro") + _at_work(lineage, "in_vivo")) / 2

    fraction = biosample["fraction"]
    level = (1 - fraction) * pure(biosample["lineage"])
    level = level + fraction * pure(biosample["mixed_in"])
    if world.kind != "planted":
        return level
    names = [factor["name"] for factor in biology()["factors"]]
    level[names.index("AP-1")] += biosample["handling"]
    random = world.random("activity", biosample["name"])
    jitter = random.normal(0, ACTIVITY_LOG_SD, len(level))
    return np.clip(level * np.exp(jitter), 0, MAX_ACTIVITY)


def _at_work(lineage: str, context: str) -> np.ndarray:
    """Return the activity of every factor in a pure lineage, shape (n_factors,)."""
    context_of = {"vitro": "in_vitro", "vivo": "in_vivo"}  # by the end of the role
    levels = []
    for factor in biology()["factors"]:
        here = lineage in factor.get("lineages", [lineage])
        wanted = context_of.get(factor["role"].split("-")[-1], context)
        levels.append(1.0 if here and wanted == context else biology()["inactive"])
    return np.array(levels)
