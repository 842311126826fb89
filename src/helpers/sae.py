"""BatchTopK sparse autoencoders: model, training, evaluation card and interchange.

Activations are rows ``(n_tokens, d_in)`` in raw residual-stream units everywhere in
the public API; centering and scaling are buffers of the model. In training a batch
keeps its ``n_tokens * k`` largest pre-activations (Bussmann et al. 2024, arXiv
2412.06410). Outside training one fixed threshold decides, token by token.
"""

from __future__ import annotations

from helpers._sae_card import Card, evaluate
from helpers._sae_config import SAEConfig
from helpers._sae_controls import (
    PrincipalComponents,
    pca_fvu,
    principal_components,
)
from helpers._sae_interchange import (
    export_saelens,
    import_dictionary_learning,
    import_saelens,
)
from helpers._sae_model import BatchTopKSAE
from helpers._sae_rows import MatrixRows, RowSource
from helpers._sae_stability import (
    Match,
    match_features,
    seed_stability,
    subspace_overlap,
)
from helpers._sae_threshold import calibrate_threshold
from helpers._sae_training import Trained, train, train_many
from helpers._sae_worlds import PlantedWorld, Recovery, planted_world, recovery

__all__ = [
    "BatchTopKSAE",
    "Card",
    "Match",
    "MatrixRows",
    "PlantedWorld",
    "PrincipalComponents",
    "Recovery",
    "RowSource",
    "SAEConfig",
    "Trained",
    "calibrate_threshold",
    "evaluate",
    "export_saelens",
    "import_dictionary_learning",
    "import_saelens",
    "match_features",
    "pca_fvu",
    "planted_world",
    "principal_components",
    "recovery",
    "seed_stability",
    "subspace_overlap",
    "train",
    "train_many",
]
