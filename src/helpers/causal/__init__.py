"""Ask whether predictions depend on the features that tell contexts apart.

`ablation` edits the context features of each block and compares what happens with
matched random features; `steering` asks how much of the gap between the contexts a
move closes, beside simpler methods. Edits restart from stored streams, keep the SAE's
error, and share forward passes. Features come from ``select`` windows, doses from
``tune``; what will be reported is written down by `register` before ``test`` is read.
"""

from __future__ import annotations

from helpers.causal._ablation import (
    CLASS_OUTCOMES,
    N_RANDOM,
    N_WINDOWS,
    OUTCOMES,
    ablation,
    ablation_random,
)
from helpers.causal._dose import (
    dose_response,
    growth_trend,
    lineage_matrix,
    single_features,
)
from helpers.causal._greedy import forward_selection
from helpers.causal._locus import SteeredLocus, steered_locus
from helpers.causal._other_sets import OTHER_SETS, other_sets
from helpers.causal._registration import (
    REGISTRATION,
    register,
    registered,
    registered_rows,
)
from helpers.causal._seeds import headline_over_seeds, over_seeds, seed_spread
from helpers.causal._selection import ContextFeatures, context_features
from helpers.causal._specificity import factor_counts, factor_specificity
from helpers.causal._steering import METHODS, ORACLES, coherence, steering
from helpers.causal._sweep import best_dose, steering_sweep
from helpers.causal._windows import spread_windows

__all__ = [
    "CLASS_OUTCOMES",
    "METHODS",
    "N_RANDOM",
    "N_WINDOWS",
    "ORACLES",
    "OTHER_SETS",
    "OUTCOMES",
    "REGISTRATION",
    "ContextFeatures",
    "SteeredLocus",
    "ablation",
    "ablation_random",
    "best_dose",
    "coherence",
    "context_features",
    "dose_response",
    "factor_counts",
    "factor_specificity",
    "forward_selection",
    "growth_trend",
    "headline_over_seeds",
    "lineage_matrix",
    "other_sets",
    "over_seeds",
    "register",
    "registered",
    "registered_rows",
    "seed_spread",
    "single_features",
    "spread_windows",
    "steered_locus",
    "steering",
    "steering_sweep",
]
