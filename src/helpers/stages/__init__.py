"""The stages that notebooks share: each returns its artefact, or makes it first.

A notebook opened alone calls the stages before its own; what is in the run folder is
loaded, what is missing is made. Stages hand each other artefacts, nothing else.
"""

from __future__ import annotations

from helpers.stages._dictionaries import (
    held_out_rows,
    read_cards,
    sae_config,
    train_saes,
)
from helpers.stages._opening import open_study, precision_error
from helpers.stages._scores import (
    called_features,
    feature_acts,
    is_called,
    late_early_ratio,
    layer_counts,
    score_context,
    summaries,
)
from helpers.stages._study import Study, extract

__all__ = [
    "Study",
    "called_features",
    "extract",
    "feature_acts",
    "is_called",
    "late_early_ratio",
    "layer_counts",
    "open_study",
    "precision_error",
    "held_out_rows",
    "read_cards",
    "sae_config",
    "score_context",
    "summaries",
    "train_saes",
]
