"""The activation store, rows of it to train on, and what features do in each window.

One zarr (v3) group holds an array (n_biosamples, n_windows, n_tokens, d_model) per
layer in half precision with checksums, in a folder or in object storage. It is filled a
batch of windows at a time, read in random order, and may be larger than memory.
"""

from __future__ import annotations

from helpers.activations._layer import LayerArray
from helpers.activations._rows import StoredRows
from helpers.activations._store import ActivationStore, TokenRows
from helpers.activations._summary import WindowSummary, summarize
from helpers.activations._token_draw import TokenClass, peak_classes

__all__ = [
    "ActivationStore",
    "LayerArray",
    "StoredRows",
    "TokenClass",
    "TokenRows",
    "WindowSummary",
    "peak_classes",
    "summarize",
]
