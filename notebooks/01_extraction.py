# %% [markdown]
# # Residual streams of matched cell lines and tissues
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/chromatin-context/blob/main/notebooks/01_extraction.ipynb)
#
# Does a chromatin model predict accessibility well enough for its inner state to be worth reading?
# This page measures that on hidden stretches of the track, then keeps the residual stream, the state that the model hands from block to block, for every window of every biosample.
#
# Words that are new to you are in the [glossary](../book/glossary.md).
#
# **Objectives**
#
# - Read sequence, accessibility and motif activity of matched biosamples from their files.
# - Measure the model where its input was hidden, against a baseline that knows the locus and a ceiling set by count noise.
# - Take one input away at a time to see what the model uses.
# - Store what the model holds after each block, once, for all later pages.
#
# **Needs** tissue files (the embedded simulated world is written if it is absent).
# **Produces** `activations.zarr`, `masked.parquet`.

# %% tags=["hide-input"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("helpers") is None:  # a fresh runtime, such as Colab
    source = "git+https://github.com/OWNER/chromatin-context@main"
    if "/OWNER/" in source:
        raise ValueError("no address yet: write the project's GitHub owner for OWNER")
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", source])
    importlib.invalidate_caches()

# %% [markdown]
# Change these and run all; papermill sets them from outside.

# %% tags=["parameters"]
run: str = "_build/runs/simulated"  # folder of artifacts
data: str = "simulated"  # or "encode", a tissue file, or a folder of them
tissues: list = []  # which of them; all if empty
blocks: list = []  # transformer blocks; all if empty
seed: int = 0  # of everything random after the model
device: str = "cpu"  # torch device
model: str = ""  # folder or checkpoint; the one that goes with the data if empty
precision: str = "float32"  # or "bfloat16", where the hardware has it
streams: str = ""  # run that keeps the residual streams; itself if empty
saes: str = ""  # run whose dictionaries to use; new ones if empty

# %% tags=["remove-stderr"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from helpers import figures, masked, probe, stages
from helpers.figures import extraction as figures_extraction

figures.set_style()
study = stages.open_study(
    run,
    data=data,
    tissues=tissues,
    blocks=blocks,
    seed=seed,
    device=device,
    model=model,
    precision=precision,
    streams=streams,
    saes=saes,
)
print(f"run {run} | data {data} | seed {seed} | device {device}")
print(f"blocks {study.blocks} | model {study.model_hash}")
print(study.description)

# %% [markdown]
# ## What goes in
#
# The model reads three things: a window of sequence, the accessibility track of one biosample in bins of 4 bp, and one vector of *motif activity* for the whole biosample, which says how enriched each motif is in its peaks.
# The table lists the biosamples: each lineage is a pair, a cell line *in vitro* and a tissue *in vivo*.
# `replicate` 0 are the two biosamples of the pair; `seen_in_training` tells whether the model has learned from a biosample.

# %%
study.dataset.biosamples

# %% [markdown]
# Windows lie on chromosomes, and every chromosome has one task.
# `blocks` counts genomic blocks: neighboring windows, which later pages resample together.

# %%
windows = study.dataset.windows
windows.groupby("split", sort=False).agg(
    chromosomes=("chrom", "nunique"),
    windows=("start", "size"),
    blocks=("block", "nunique"),
)

# %% [markdown]
# Dictionaries are trained and features chosen on `select`, strengths are tuned on `tune`, and every effect is reported on `test`.
#
# ## Is the model worth reading?
#
# A track is hidden in runs of tokens (128 bp each) and the model predicts the hidden signal, as in its training {cite}`javed2025epibert`.
# With $y$ the measured and $\hat y$ the predicted signal of a token, the score is Pearson's $r$ between $\log(1 + y)$ and $\log(1 + \hat y)$.
# `low` and `high` bound its 95% interval, `n` counts tokens; the table holds means over lineages.
#
# Two rivals stand beside the model.
# The *average track* predicts at each locus the mean of the other biosamples that the model was trained on: it knows the locus, but not the biosample.
# The *noise ceiling* is the expected signal of the simulator, which nothing can beat because only count noise is left; it is absent for real data.
# Two variants of the model lose one input: *no motif activity* gives every biosample the same mean vector, *no neighbors* hides the whole track.
#
# *Differential* tokens are those whose measured signal, plus 1, differs at least threefold between the two contexts of a lineage.
# They are what this book is about, and the average track cannot know them.

# %% tags=["remove-stderr"]
scores = masked.masked_scores(study)
scores.groupby(["tokens", "method"], sort=False)[
    ["r", "low", "high", "n"]
].mean().round(3)

# %% [markdown]
# The same for every lineage: the farther right of the average track, the more the model knows of the biosample itself.

# %% mystnb={"figure": {"caption": "How much better the model predicts hidden tokens than the average track, on chromosomes it was not trained on: all tokens (a) and tokens that differ between cell line and tissue (b). Markers are lineages; bars are 95% intervals over resampled genomic blocks. The average track is the baseline, the noise ceiling the limit.", "name": "fig-masked"}, "image": {"alt": "In the simulated default the model lies between the average track and the noise ceiling, and is farthest from the former on differential tokens. Dot plots of Pearson correlation by method for all and for differential hidden tokens, with two variants that lack one input."}}
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True)
for ax, tokens in zip(axes, ("all", "differential"), strict=True):
    figures_extraction.masked_scores(scores, tokens, ax)
figures.panel_labels(axes)
plt.show()

# %% tags=["hide-input"]
mean = scores.groupby(["tokens", "method"])["r"].mean()
lines = []
for tokens in ("all", "differential"):
    full, average = mean[tokens, "model"], mean[tokens, "average track"]
    verdict = "better" if full > average else "**not better**"
    lines.append(
        f"- On {tokens} hidden tokens the model reaches r = {full:.2f}, {verdict} than "
        f"the average track ({average:.2f})."
    )
    for variant in ("no motif activity", "no neighbors"):
        loss = full - mean[tokens, variant]
        word = "costs" if loss > 0 else "**costs nothing but gains**"
        lines.append(f"  - Taking away {variant[3:]} {word} {abs(loss):.3f}.")
if study.truth is not None:
    ceiling = mean["all", "noise ceiling"]
    lines.append(f"- Count noise limits r to {ceiling:.2f} on all hidden tokens.")
display(Markdown("\n".join(lines)))

# %% [markdown]
# One window of the test chromosomes shows what is compared.
# Filled is measured; the line is predicted, each token while it and its neighbors within a run of 12 were hidden.

# %% mystnb={"figure": {"caption": "Measured (filled) and predicted (line) signal along a test window whose two contexts differ (the window at the 90th percentile of difference), cell line above, tissue below. Every token was hidden when it was predicted.", "name": "fig-locus"}, "image": {"alt": "Two tracks over one genomic window, measured signal filled and predicted signal as a line, for the in vitro and the in vivo biosample of the first lineage."}}
lineage = study.lineages[0]
test_windows = study.dataset.windows_of("test")
in_vitro, in_vivo = (study.dataset.target(test_windows, b) for b in study.pair(lineage))
differs = abs(np.log1p(in_vivo) - np.log1p(in_vitro)).sum(axis=1)
figure = plt.figure(figsize=(9, 3.6))
chosen = test_windows[np.argsort(differs)[int(0.9 * len(differs))]]
shown = masked.locus(study, int(chosen), lineage)
figures_extraction.locus(shown, figure)
plt.show()

# %% [markdown]
# ## Residual streams
#
# Each transformer block adds to a stream of vectors, one per token of 128 bp.
# Nothing bypasses it: the prediction is a function of the stream after the last block alone.
# The stream after every block is kept in half precision, checksummed, window by window, so an interrupted extraction goes on where it stopped.
# The sequence tower does not depend on the biosample and runs once per window.

# %% tags=["remove-stderr"]
store = stages.extract(study)
print(
    f"{len(store.biosamples)} biosamples x {len(store.windows)} windows x {store.n_tokens} tokens"
)
print(f"width {store.d_model}, layers {store.layers}")

# %% tags=["hide-input"]
if precision == "bfloat16":
    display(Markdown("The model multiplies in bfloat16; on one window this costs:"))
    display(stages.precision_error(study).style.format("{:.4g}"))

# %% [markdown]
# A mean far from zero makes dictionary features die in training, which is why dictionaries center their input (page 02).
# $\gamma = \lVert\mu\rVert / \lVert\sigma\rVert$ measures it, with $\mu$ the mean and $\sigma$ the standard deviation of every coordinate over tokens.
# `norm` is the mean length of the vectors of a context: a first look at whether the contexts differ in sheer size.

# %% tags=["remove-stderr"]
context = study.design["context"].to_numpy()
rows = []
for layer in store.layers:
    drawn = store.rows(layer, splits=["select"], max_tokens=12_000, random_state=seed)
    norm = drawn.rows.norm(dim=1).numpy()
    of = context[drawn.index["biosample_idx"]]
    gamma = drawn.rows.mean(dim=0).norm() / drawn.rows.std(dim=0).norm()
    norms = {f"norm {c}": norm[of == c].mean() for c in ("in_vitro", "in_vivo")}
    rows.append({"block": layer, "gamma": float(gamma), **norms})
streams = pd.DataFrame(rows).set_index("block")
streams.round(2)

# %% [markdown]
# ## Sanity checks
#
# The stream that was stored is the stream the model computes, and restarting from it gives the model's own output.

# %%
window = int(test_windows[0])
sequence = torch.from_numpy(study.dataset.sequence([window]))
atac = torch.from_numpy(study.dataset.atac([window], 0)).float()
motif = torch.from_numpy(study.dataset.motif_activity[[0]])
inputs = [x.to(device) for x in (sequence, atac, motif)]
last = store.layers[-1]
stream = probe.capture(study.model, inputs, [last])[last]
stored = torch.from_numpy(store.layer(last)[0, window][None]).to(stream)
assert torch.allclose(stream, stored, rtol=2e-3, atol=2e-3), "stored in half precision"
restarted = probe.restart(study.model, stream, last)
with torch.no_grad():
    assert torch.equal(restarted, study.model(*inputs))
assert store.complete.all()
split_of = windows.groupby("chrom")["split"].nunique()
assert (split_of == 1).all(), "a chromosome is in one split only"

# %% [markdown]
# ## Key takeaways

# %% tags=["hide-input"]
rivals = mean.drop("noise ceiling", level="method", errors="ignore")
best = rivals["differential"].idxmax()
ratio = streams["norm in_vivo"] / streams["norm in_vitro"] - 1
takeaways = f"""
- On tokens that differ between the contexts, the best predictor is **{best}** (r = {rivals["differential", best]:.2f}; *Is the model worth reading?*).
- The mean of the stream is up to {streams["gamma"].max():.2f} times its spread, so dictionaries must center (*Residual streams*).
- The mean norm of the stream differs between the contexts by at most {100 * ratio.abs().max():.0f}% (*Residual streams*).
"""
display(Markdown(takeaways))

# %% [markdown]
# ## Limits
#
# - The small model has the published architecture but not its size, and it learned from simulated tracks unless another model is named.
# - Correlation over tokens rewards knowing which sites are open; it does not say how well a single site is predicted.
# - Hidden tokens of one window share a mask, so the interval resamples genomic blocks, not tokens.
#
# ## Exercises
#
# 1. Rerun with `tissues = ["kidney"]` and another `run` folder: the model never saw this lineage. What happens to the differential tokens?
# 2. Why is the average track computed without the biosample that is predicted?
#
# <details><summary>Answers</summary>
#
# 1. The motif vector of an unseen lineage is a new combination of familiar motifs; what is lost is the part of the prediction that relied on combinations seen in training.
# 2. The hidden signal of the biosample itself would be part of its own prediction.
#
# </details>
