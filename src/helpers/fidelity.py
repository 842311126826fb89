"""What a dictionary's reconstruction does to the model's prediction.

The reconstruction replaces the stream and the model goes on from there. Loss recovered
is ``1 - (L_sae - L_id) / (L_mean - L_id)`` with Poisson losses against the measured
track: 1 for a perfect reconstruction, 0 for one no better than the mean stream. It is
signed and never clipped.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from helpers.probe import restart
from helpers.runs import code_digest
from helpers.stages import Study, extract, train_saes

__all__ = ["loss_recovered"]

_N_WINDOWS = 32


@torch.no_grad()
def loss_recovered(study: Study) -> pd.DataFrame:
    """Score every dictionary by the prediction loss its reconstruction recovers.

    Returns
    -------
    pandas.DataFrame
        One row per block and biosample on evenly spaced ``test`` windows: ``layer``,
        ``biosample``, ``loss`` (unedited), ``loss_sae``, ``loss_mean``, ``recovered``.
    """
    saes, store = train_saes(study), extract(study)

    def build() -> pd.DataFrame:
        test = study.dataset.windows_of("test")
        n = min(_N_WINDOWS, len(test))
        windows = test[np.linspace(0, len(test) - 1, n).astype(int)]
        crop = study.model.config.crop
        rows = []
        for layer in study.blocks:
            array = store.layer(layer)
            for b, name in enumerate(store.biosamples):
                x = torch.from_numpy(np.stack([array[b, w] for w in windows])).float()
                x = x.to(study.device)
                target = study.dataset.target(windows, b)[:, crop:-crop]
                target = torch.from_numpy(target).to(study.device)
                streams = {
                    "loss": x,
                    "loss_sae": saes[layer](x),
                    "loss_mean": saes[layer].mean.expand_as(x),
                }
                row = {"layer": layer, "biosample": name}
                for key, stream in streams.items():
                    predicted = restart(study.model, stream.contiguous(), layer)
                    loss = predicted - target * torch.log(predicted + 1e-7)
                    row[key] = loss.mean().item()
                rows.append(row)
        table = pd.DataFrame(rows)
        damage = table["loss_sae"] - table["loss"]
        table["recovered"] = 1 - damage / (table["loss_mean"] - table["loss"])
        return table

    recipe = {
        "saes": [study.run.key(f"sae/block{b}") for b in study.blocks],
        "n_windows": _N_WINDOWS,
        "code": code_digest("fidelity", "probe"),
    }
    return study.run.table("loss_recovered.parquet", recipe, build)
