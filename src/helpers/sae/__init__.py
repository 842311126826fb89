"""BatchTopK sparse autoencoders: model, training, evaluation card and interchange.

Activations are rows ``(n_tokens, d_in)`` in raw residual-stream units everywhere in
the public API; centering and scaling are buffers of the model. In training a batch
keeps its ``n_tokens * k`` largest pre-activations (Bussmann et al. 2024, arXiv
2412.06410). Outside training one fixed threshold decides, token by token.
"""

from __future__ import annotations

from helpers.sae._card import Card, evaluate
from helpers.sae._config import SAEConfig
from helpers.sae._controls import (
    PrincipalComponents,
    pca_fvu,
    principal_components,
)
from helpers.sae._interchange import (
    export_saelens,
    import_dictionary_learning,
    import_saelens,
)
from helpers.sae._model import BatchTopKSAE
from helpers.sae._rows import MatrixRows, RowSource
from helpers.sae._stability import (
    Match,
    match_features,
    seed_stability,
    subspace_overlap,
)
from helpers.sae._threshold import calibrate_threshold
from helpers.sae._training import Trained, train, train_many
from helpers.sae._worlds import PlantedWorld, Recovery, planted_world, recovery

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
