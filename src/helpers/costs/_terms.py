"""What the stages of a run do, as sums of products of its sizes.

Every number here is taken from the constants of the module that does the work, so that
a changed constant changes the plan; `tests/test_costs.py` counts the same passes in
real runs. A calculator in another language needs `DERIVED`, `UNITS` and the terms only.
"""

from __future__ import annotations

from typing import NamedTuple

from helpers import fidelity
from helpers.causal import (
    _ablation,
    _dose,
    _greedy,
    _moves,
    _other_sets,
    _seeds,
    _steering,
    _sweep,
)
from helpers.causal._registration import ABLATION
from helpers.causal._selection import SIZES
from helpers.dictionaries import N_SEEDS
from helpers.masked import _WITHOUT
from helpers.stages._dictionaries import _HELD_OUT_TOKENS
from helpers.window_sets import _SPLIT_SHARES

__all__ = ["COUNTS", "DERIVED", "STAGES", "TERMS", "UNITS", "Term", "all_sizes"]

_HALF, _FLOAT = 2, 4  # bytes of a number
_CONTROLS = 3  # page 02: Matryoshka, no restarts, random directions
_VARIANTS = 3  # page 06: as sequenced, equal depth, equal depth and FRiP
_SWAPPED = 2  # of four input swaps of a pair; the other two are its own passes

COUNTS = {
    "towers": "windows through the sequence tower",
    "inputs": "windows through the tower of tracks and the projection",
    "blocks": "windows through a block",
    "heads": "windows through the head",
    "gradients": "windows back through a block",
    "encoded": "tokens x features encoded",
    "trained": "tokens x features of training steps",
    "moved": "bytes read from or written to disk",
    "kept": "bytes on disk",
    "memory": "bytes of the largest array of a job",
}
STAGES = {
    "extraction": "residual streams of all blocks",
    "hidden tokens": "how well the model predicts (page 01)",
    "dictionaries": "training, cards, loss recovered (page 02)",
    "controls": "further dictionaries, an untrained model (pages 02 and 06)",
    "scores": "features of every token (page 03)",
    "evidence": "input swaps, motif activity held, replicates (page 03)",
    "calibration": "the last block at equal depth, untrained (page 06)",
    "causal": "ablation, steering, other trainings (page 04)",
    "annotation": "regions of features (page 05)",
}

# Sums of (factor, sizes) products; a size is the smallest of its sums.
_Sum = list[tuple[float, tuple[str, ...]]]


def _share(split: str) -> list[_Sum]:
    return [[(_SPLIT_SHARES[split], ("windows",))]]


def _at_most(n: int, size: str) -> list[_Sum]:
    return [[(n, ())], [(1, (size,))]]


DERIVED: dict[str, list[_Sum]] = {
    "pairs": [[(2, ("tissues",))]],  # biosamples without replicates
    "samples": [[(1, ("tissues", "biosamples"))]],
    "select": _share("select"),
    "tune": _share("tune"),
    "test": _share("test"),
    "dose_windows": _at_most(_sweep.N_TUNE, "tune"),
    "filter_windows": _at_most(_moves.N_OUTPUT, "tune"),
    "steered_windows": _at_most(_steering.N_TEST, "test"),
    "fit_windows": _at_most(_steering.N_FIT, "select"),
    "ablated_windows": _at_most(_ablation.N_WINDOWS, "test"),
    "grown_windows": _at_most(_dose.N_WINDOWS, "test"),
    "chosen_windows": _at_most(_greedy.SIZES["tune"], "tune"),
    "closed_windows": _at_most(_greedy.SIZES["test"], "test"),
    "spliced_windows": _at_most(fidelity._N_WINDOWS, "test"),
    # Of those studied, the last ones of the model, on average.
    "after": [[(0.5, ("blocks",)), (-0.5, ())]],
    "after_last": [[(0, ())]],
    "all_rows": [[(1, ("select", "pairs", "n_tokens"))]],
    "rows": [[(1, ("all_rows",))], [(1, ("training_tokens",))]],
    "held_out": [[(_HELD_OUT_TOKENS, ())], [(1, ("tune", "pairs", "n_tokens"))]],
    "passed": [[(1, ()), (-1, ("keep_streams",))]],
    # Runs of each dictionary: one of all blocks, or one for each block.
    "split": [[(1, ()), (1, ("fan_out", "blocks")), (-1, ("fan_out",))]],
    "runs": [[(1, ("dictionaries", "split"))]],
    "together": [[(1, ("blocks",)), (-1, ("fan_out", "blocks")), (1, ("fan_out",))]],
    "after_first": [
        [
            (1, ("together",)),
            (-1, ()),
            (1, ("after_last",)),
            (-1, ("fan_out", "after_last")),
            (1, ("fan_out", "after")),
        ]
    ],
    # Blocks up to the last one studied, in a run of all and on average over runs; and
    # those that remain.
    "reach": [[(1, ("n_blocks",)), (-1, ("after_last",))]],
    "depth": [
        [
            (1, ("reach",)),
            (1, ("fan_out", "after_last")),
            (-1, ("fan_out", "after")),
        ]
    ],
    "remaining": [[(1, ("n_blocks",)), (-1, ("depth",))]],
}

# Pieces of a stage that can run at the same time.
UNITS: dict[str, tuple[str, ...]] = {
    "extraction": ("shards",),
    "hidden tokens": (),
    "dictionaries": ("runs",),
    "controls": ("runs",),
    "scores": ("runs", "shards"),
    "evidence": ("runs", "shards"),
    "calibration": ("runs",),
    "causal": ("runs",),
    "annotation": ("runs",),
}


class Term(NamedTuple):
    """A product of sizes that a stage adds to one of `COUNTS`."""

    stage: str
    count: str
    factor: float
    sizes: tuple[str, ...]


def _passes(
    stage: str, factor: float, sizes: tuple[str, ...], *, head: bool
) -> list[Term]:
    """Return passes less the sequence tower, up to the head or the last block."""
    found = [
        Term(stage, "inputs", factor, sizes),
        Term(stage, "blocks", factor, (*sizes, "n_blocks" if head else "depth")),
    ]
    return [*found, Term(stage, "heads", factor, sizes)] if head else found


def _restarts(
    factor: float, *sizes: str, stage: str = "causal", blocks: str = "after"
) -> list[Term]:
    """Return passes that begin after a studied block."""
    return [
        Term(stage, "blocks", factor, (*sizes, blocks)),
        Term(stage, "heads", factor, sizes),
    ]


def _extraction() -> list[Term]:
    stage, streams = "extraction", ("windows", "pairs", "n_tokens", "d_model", "blocks")
    found = [
        Term(stage, "towers", 1, ("windows",)),
        Term(stage, "inputs", 1, ("windows", "pairs")),
        Term(stage, "blocks", 1, ("windows", "pairs", "reach")),
    ]
    for count in ("kept", "moved"):
        found.append(Term(stage, count, _HALF, (*streams, "keep_streams")))
    # Without a store: a first sweep that keeps the rows dictionaries are trained on.
    found += [
        Term(stage, "towers", 1, ("select", "passed")),
        Term(stage, "inputs", 1, ("select", "pairs", "passed")),
        Term(stage, "blocks", 1, ("select", "pairs", "reach", "passed")),
    ]
    drawn = ("rows", "d_model", "blocks", "passed")
    return found + [Term(stage, count, _HALF, drawn) for count in ("kept", "moved")]


def _hidden_tokens() -> list[Term]:
    stage, n = "hidden tokens", len(_WITHOUT)
    return [
        Term(stage, "towers", n, ("test",)),
        *_passes(stage, n, ("test", "pairs"), head=True),
    ]


def _dictionaries() -> list[Term]:
    stage, spliced = "dictionaries", ("spliced_windows", "pairs", "runs")
    edited = ("spliced_windows", "pairs", "dictionaries", "blocks")
    rest = ("pairs", "n_tokens", "features", "blocks")
    return [
        Term(stage, "trained", 1, ("rows", "n_epochs", "features", "blocks")),
        Term(
            stage,
            "moved",
            _HALF,
            ("rows", "d_model", "n_epochs", "dictionaries", "blocks"),
        ),
        Term(stage, "kept", 2 * _FLOAT, ("d_model", "features", "blocks")),
        Term(stage, "encoded", 2, ("held_out", "features", "blocks")),
        Term(stage, "encoded", 1, ("test", *rest)),
        # Predicted twice: with the whole track and with hidden tokens.
        Term(stage, "towers", 1, ("spliced_windows", "runs")),
        *_passes(stage, 2, spliced, head=True),
        # Each stream in three ways: reconstructed, the mean, zero.
        *_restarts(2 * 3, *edited, stage=stage),
        Term(stage, "encoded", 2, ("spliced_windows", *rest)),
    ]


def _controls() -> list[Term]:
    stage, n_own = "controls", N_SEEDS + _CONTROLS
    spliced = ("spliced_windows", "pairs", "runs")
    n_new = n_own - 1 + 1  # all but the study's own, and that of the untrained model
    untrained = ("windows", "pairs", "n_tokens", "d_model", "runs", "keep_streams")
    return [
        Term(stage, "trained", n_new, ("rows", "n_epochs", "features", "split")),
        Term(stage, "kept", n_new * 2 * _FLOAT, ("d_model", "features", "split")),
        Term(stage, "moved", n_new * _HALF, ("rows", "d_model", "n_epochs", "runs")),
        # Their rows are read at once; only a run's own dictionary is trained from disk.
        Term(stage, "memory", _FLOAT, ("rows", "d_model")),
        # An untrained model: streams, dictionary and features of one block.
        Term(stage, "towers", 1, ("windows", "runs")),
        *_passes(stage, 1, ("windows", "pairs", "runs"), head=False),
        *(Term(stage, count, _HALF, untrained) for count in ("kept", "moved")),
        Term(
            stage,
            "encoded",
            1,
            ("windows", "pairs", "n_tokens", "features", "split"),
        ),
        # Every dictionary, and two kinds of principal components, put in place.
        Term(stage, "towers", 1, ("spliced_windows", "runs")),
        *_passes(stage, 2, spliced, head=True),
        Term(stage, "blocks", 2 * (2 + n_own + 2), (*spliced, "remaining")),
        Term(stage, "heads", 2 * (2 + n_own + 2), spliced),
    ]


def _scores() -> list[Term]:
    stage, streams = "scores", ("windows", "pairs", "n_tokens", "d_model", "blocks")
    encoded = ("windows", "pairs", "n_tokens", "features", "blocks")
    return [
        Term(stage, "encoded", 1, encoded),
        Term(stage, "moved", _HALF, (*streams, "dictionaries", "keep_streams")),
        Term(stage, "kept", 2 * _FLOAT, ("windows", "pairs", "features", "blocks")),
        Term(stage, "memory", 2 * _FLOAT, ("windows", "pairs", "d_sae", "together")),
    ]


def _evidence() -> list[Term]:
    stage, found = "evidence", [Term("evidence", "towers", 1, ("select", "runs"))]
    # A track is read once; motif activities are added to what its tower makes of it.
    found.append(Term(stage, "inputs", 1, ("select", "samples", "runs")))
    found += [
        Term(stage, "inputs", 1, (*of, "runs"))
        for of in (("samples",), ("tissues",), ())
    ]
    for factor, of in ((2, "samples"), (_SWAPPED, "tissues")):
        passes = ("select", of)
        found += [
            Term(stage, "blocks", factor, (*passes, "runs", "depth")),
            Term(stage, "encoded", factor, (*passes, "n_tokens", "features", "blocks")),
            Term(stage, "kept", factor * _FLOAT, (*passes, "features", "blocks")),
        ]
    found.append(Term(stage, "memory", 2 * _FLOAT, ("select", "samples", "d_sae")))
    return found


def _calibration() -> list[Term]:
    # The motif activity held: as sequenced, tracks thinned, and the untrained model.
    stage, n = "calibration", _VARIANTS + 1
    return [
        Term(stage, "towers", n, ("select", "runs")),
        *_passes(stage, n, ("select", "pairs", "runs"), head=False),
        Term(stage, "inputs", n, ("tissues", "runs")),
        Term(stage, "inputs", n, ("runs",)),
        Term(stage, "encoded", n, ("select", "pairs", "n_tokens", "features", "split")),
        Term(stage, "kept", n * _FLOAT, ("select", "pairs", "features", "split")),
    ]


def _causal() -> list[Term]:
    ways = len(_moves.DIRECTIONS)
    each = ("causal_tissues", "dictionaries", "blocks")
    once = ("causal_tissues", "runs")
    doses = len(_sweep.DOSES)
    # Doses: every method at every block, random features at one; base and target.
    n_tuned = doses * len(_moves.LINEAR)
    n_random = doses * _sweep.N_TUNED
    found = _restarts(ways * (n_tuned + 2), "dose_windows", *each)
    found += _restarts(ways * (n_random + 2), "dose_windows", *once)
    n_everywhere = doses * len(_sweep.EVERY_BLOCK)
    of = ("dose_windows", *once)
    found += _restarts(ways * (n_everywhere + 2), *of, blocks="after_first")
    # Features filtered by output: base, target and a way back at every block, and
    # again at the block that is steered.
    for factor, of in ((ways, each), (ways, once), (_seeds.N_SEEDS, once)):
        found += _restarts(2 * factor, "filter_windows", *of)
        found.append(
            Term("causal", "gradients", factor, ("filter_windows", *of, "after"))
        )
    # Steering: four swaps of inputs, lines through predictions, moves of the stream.
    swapped = ("steered_windows", *once)
    found.append(Term("causal", "towers", 1, ("steered_windows", "runs")))
    found += _passes("causal", 4, swapped, head=True)
    for windows in ("steered_windows", "fit_windows"):
        found.append(Term("causal", "heads", 2 * ways, (windows, *once)))
        found.append(Term("causal", "blocks", 2 * ways, (windows, *once, "remaining")))
    found += _restarts(ways * (_n_moves() + 2), *swapped)
    n_everywhere = len(_sweep.EVERY_BLOCK) + 2
    found += _restarts(ways * n_everywhere, *swapped, blocks="after_first")
    # Every training of one block is steered; others get doses and an ablation of
    # their own.
    n_methods, n_new = len(_seeds.METHODS) - 1, _seeds.N_SEEDS - 1
    n_doses = doses * n_methods + n_random + 2
    found += _restarts(n_new * n_doses, "dose_windows", *once)
    n_edits = n_methods + _moves.N_OTHER + 2
    found += _restarts(_seeds.N_SEEDS * n_edits, *swapped)
    n_edits = 1 + 1 + ABLATION["n_random_sets"]
    found += _restarts(n_new * n_edits, "ablated_windows", *once)
    encoded = ("windows", "pairs", "n_tokens", "features", "split")
    found += [
        Term("causal", "trained", n_new, ("rows", "n_epochs", "features", "split")),
        Term("causal", "encoded", n_new, encoded),
        Term("causal", "memory", _FLOAT, ("rows", "d_model")),
        Term("causal", "kept", n_new * 2 * _FLOAT, ("d_model", "features", "split")),
    ]
    # Ablation: passes without the track; unedited, selected and random sets; then other
    # sets, sets that grow, and doses.
    of = ("ablated_windows", *once)
    found.append(Term("causal", "towers", 1, ("ablated_windows", "runs")))
    found += _passes("causal", 2, of, head=True)
    n_sets = sum(1 + 1 + sum(of.values()) for of in _ablation.N_RANDOM.values())
    found += _restarts(len(_ablation.INPUTS) * n_sets, "ablated_windows", *each)
    n_sets = 1 + len(_other_sets.OTHER_SETS) - 1 + _other_sets.N_SHUFFLED
    found += _restarts(n_sets, "grown_windows", *each)
    n_sets = 1 + len(_dose.SET_SIZES) + 1 + 2 * len(_dose.STRENGTHS)
    found += _restarts(n_sets, "grown_windows", *each)
    found += _restarts(1, "grown_windows", "selected", *each)
    # Features taken one by one: slopes, candidates of every step, and nested sets with
    # random ones like them.
    of = ("chosen_windows", *once)
    found += _restarts(2, *of) + [Term("causal", "gradients", 1, (*of, "after"))]
    n_sets = sum(_greedy.N_CANDIDATES - step + 2 for step in range(_greedy.N_STEPS))
    found += _restarts(n_sets, *of)
    n_sets = _greedy.N_STEPS * (2 + _greedy.N_RANDOM) + 1 + 2
    found += _restarts(n_sets, "closed_windows", *once)
    # Features of one lineage, in every lineage.
    found += _restarts(1, "grown_windows", *each)
    return found + _restarts(1, "grown_windows", "causal_tissues", *each)


def _n_moves() -> int:
    """Count the edits of the stream behind `helpers.causal.METHODS`."""
    draws = {
        "random features": _moves.N_SETS,
        _sweep.RANDOM_TUNED: _moves.N_OTHER,
        "random direction": _moves.N_OTHER,
        "DiffMean, labels shuffled": _moves.N_OTHER,
    }
    of_outputs = {"nothing", "output rescale", "class shift", "planted signal"}
    of_outputs |= {"motif swap", "track swap", *_sweep.EVERY_BLOCK}
    return sum(draws.get(m, 1) for m in _steering.METHODS if m not in of_outputs)


def _annotation() -> list[Term]:
    # Regions for motifs on test windows; those for processes on these and tune.
    tokens = ("pairs", "n_tokens", "features", "split")
    return [
        Term("annotation", "encoded", 2, ("test", *tokens)),
        Term("annotation", "encoded", 1, ("tune", *tokens)),
    ]


TERMS: list[Term] = [
    *_extraction(),
    *_hidden_tokens(),
    *_dictionaries(),
    *_controls(),
    *_scores(),
    *_evidence(),
    *_calibration(),
    *_causal(),
    *_annotation(),
]
SELECTED = SIZES[0]  # features edited at once, at most


def all_sizes(given: dict[str, float]) -> dict[str, float]:
    """Return the sizes given and those of `DERIVED` that were not given."""
    sizes = dict(given)
    for name, sums in DERIVED.items():
        if name not in sizes:
            sizes[name] = min(
                sum(product(factor, of, sizes) for factor, of in terms)
                for terms in sums
            )
    return sizes


def product(factor: float, names: tuple[str, ...], sizes: dict[str, float]) -> float:
    """Multiply a factor by sizes, in their order: every language rounds alike."""
    for name in names:
        factor = factor * sizes[name]
    return factor
