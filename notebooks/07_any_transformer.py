# %% [markdown]
# # Any transformer, any contrast
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/chromatin-context/blob/main/notebooks/07_any_transformer.ipynb)
#
# Does the method need chromatin, or EpiBERT?
# This page takes a small BERT from another library and a contrast that has nothing to do with cell lines, finds the features behind it with the functions of the pages before, and checks them against a planted truth.
#
# Words that are new to you are in the [glossary](../book/glossary.md).
#
# **Objectives**
#
# - Read and swap the residual stream of a model that knows nothing of this package.
# - Train dictionaries on it and score a contrast, in ten lines.
# - Check the features found against what was written into the sequences.
# - See what the score calls when nothing was written.
#
# **Needs** nothing.
# **Produces** nothing; the model is trained here, in half a minute.

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
# The first four are those of every page and are not used here.

# %% tags=["parameters"]
run: str = "_build/runs/simulated"  # folder of artifacts
data: str = "simulated"  # or a folder of tissue files
tissues: list = []  # which of them; all if empty
blocks: list = []  # transformer blocks; all if empty
seed: int = 0  # of sequences, weights, dictionaries
device: str = "cpu"  # torch device
n_steps: int = 800  # of training the model

# %% tags=["remove-stderr"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from helpers import figures, probe, sae
from helpers.cds import context_divergence
from helpers.dna_contrast import (
    LEVELS,
    MotifContrast,
    draw_contrast,
    logits_of,
    make_encoder,
    site_folds,
    train_masked,
)
from helpers.figures import any_transformer

figures.set_style()
print(f"run {run} | data {data} | seed {seed} | device {device}")

# %% [markdown]
# ## A contrast with known truth
#
# Random reading frames are drawn in three backgrounds of different GC content, which play the part of lineages.
# Each is read twice, *without* and *with* a motif of four codons written into its first half.
# A second motif, the decoy, is written into the second half of both.
# A twentieth of the codons is redrawn in each condition, so that the two are never quite the same elsewhere either.

# %%
contrast = MotifContrast()
drawn = draw_contrast(contrast, [seed, 1])
n_biosamples, n_windows, n_tokens = drawn.tokens.shape
genomic = np.repeat(np.arange(n_windows // 6), 6)  # sequences are independent
print(f"{n_windows} windows of {n_tokens} codons in {len(contrast.gc)} backgrounds")
drawn.design

# %% [markdown]
# ## A model from another library
#
# A BERT with three blocks of width 64 is built from its configuration and learns to guess hidden codons of other sequences of the same kind; nothing is downloaded.
# It is Hugging Face's where `transformers` is installed (in a checkout, `pip install -e '.[any]'`), and one of plain PyTorch where it is not: all that follows knows only the names of its blocks.

# %% tags=["remove-stderr"]
encoder = make_encoder(n_tokens, random_state=seed)
model = encoder.model.to(device)
corpus = torch.cat(
    [draw_contrast(contrast, [seed, 2, i]).tokens.flatten(0, 1) for i in range(4)]
)
losses = train_masked(model, corpus, n_steps=n_steps, random_state=seed)
print(f"{encoder.library}: {type(model).__name__}, blocks {encoder.layers}")
print(f"loss {np.mean(losses[:20]):.2f} -> {np.mean(losses[-20:]):.2f} nats per codon")

# %% [markdown]
# `probe.capture` takes any `nn.Module` and the names of layers.
# If the whole stream of one run is replaced by that of another, the model must go on exactly as the other run did: nothing bypasses the stream.

# %%
first, second = drawn.tokens[0, :16].to(device), drawn.tokens[1, :16].to(device)
with torch.no_grad():
    wanted = logits_of(model(input_ids=second))
    own = logits_of(model(input_ids=first))
swaps = {}
for layer in encoder.layers:
    stream = probe.capture(model, {"input_ids": second}, [layer])[layer]
    swapped = probe.restart(model, stream, layer, inputs={"input_ids": first})
    swaps[layer] = float((logits_of(swapped) - wanted).abs().max())
print("largest difference of the two runs:", f"{float((own - wanted).abs().max()):.2f}")
print("after swapping the stream:", swaps)

# %% [markdown]
# ## The score in ten lines
#
# Streams, dictionary, window means, score: the table counts features by class, block by block.

# %% tags=["remove-stderr"]
config = sae.SAEConfig(d_sae=128, k=8, n_epochs=4, batch_size=2048, random_state=seed)
tables, codes = {}, {}
for layer in encoder.layers:
    streams = [
        probe.capture(model, {"input_ids": x.to(device)}, [layer])[layer]
        for x in drawn.tokens
    ]
    tokens = torch.stack(streams).flatten(0, 2)
    dictionary, _ = sae.train(tokens, config, device=device)
    codes[layer] = (
        dictionary.encode(tokens).unflatten(0, drawn.tokens.shape).cpu().numpy()
    )
    means = codes[layer].mean(axis=2)
    tables[layer] = context_divergence(means, drawn.design, genomic, levels=LEVELS)
summary = pd.DataFrame({k: t["class"].value_counts() for k, t in tables.items()})
summary.fillna(0).astype(int)

# %% [markdown]
# Features that are higher *without* the motif are no mistake: the motif stands where other codons stood, and their features lose those places.

# %% [markdown]
# ## Against what was written
#
# On which codons does a feature fire?
# A feature speaks for the motif if it fires at least eight times as strongly at its sites as elsewhere, and for the decoy likewise; a feature that does both answers to the motif, too.
# Evidence is not effect: with enough sequences any difference is significant, so features are asked for a change of 1.4-fold over the whole sequence as well, which a feature that speaks for four codons of 32 exceeds.

# %%
points = {}
for layer, acts in codes.items():
    folds = site_folds(acts, drawn)
    at_motif, at_decoy = (folds >= 3).to_numpy().T
    word = np.select(
        [at_motif & at_decoy, at_motif, at_decoy], ["both", "motif", "decoy"], "neither"
    )
    change = tables[layer]["log2_fold"]
    called = (tables[layer]["class"] == "shared-with") & (change >= 0.5)
    points[layer] = folds.assign(speaks=word, change=change, called=called)
everything = pd.concat(points, names=["layer"])
result = everything.groupby(["layer", "speaks"])["called"].agg(["size", "sum"])
result.rename(columns={"size": "features", "sum": "called"})

# %% mystnb={"figure": {"caption": "The features that are called are those that fire at the motif: how much more strongly each fires at its sites than elsewhere, against its change when the motif is written in, block by block. Called features are filled.", "name": "fig-any-transformer"}, "image": {"alt": "Scatter plot by block: features that are called are those that fire at the sites of the motif."}}
figure, panels = plt.subplots(1, len(points), figsize=(10, 3.3), sharey=True)
any_transformer.motif_features(points, panels)
plt.show()

# %% [markdown]
# ## Nothing written, nothing called
#
# The control keeps everything but the contrast: in half of the windows, drawn at random, the two conditions change places.

# %%
rng = np.random.default_rng(seed)
flip = (rng.random(genomic.max() + 1) < 0.5)[genomic]
null_calls = {}
for layer, acts in codes.items():
    means = acts.mean(axis=2)
    scrambled = means.copy()
    scrambled[0::2, flip], scrambled[1::2, flip] = means[1::2, flip], means[0::2, flip]
    null = context_divergence(scrambled, drawn.design, genomic, levels=LEVELS)
    null_calls[layer] = int((null["p_bonferroni"] <= 0.05).sum())
print("features called with scrambled conditions:", null_calls)

# %% [markdown]
# ## Sanity checks

# %%
assert max(swaps.values()) < 1e-5
total = everything.groupby("speaks")["called"].agg(["size", "sum"])
assert total.loc["motif", "sum"] >= 0.8 * total.loc["motif", "size"]
assert total.loc["decoy", "sum"] <= 0.05 * total.loc["decoy", "size"]
assert sum(null_calls.values()) <= 3
print("all hold")

# %% [markdown]
# ## Key takeaways

# %% tags=["hide-input"]
takeaways = f"""
- Swapping the stream between two runs of {encoder.library} reproduces the other run to {max(swaps.values()):.1e} (*A model from another library*).
- {total.loc["motif", "sum"]} of {total.loc["motif", "size"]} features that speak for the motif alone are called, {total.loc["decoy", "sum"]} of {total.loc["decoy", "size"]} that speak for the decoy alone (*Against what was written*).
- With conditions scrambled, {sum(null_calls.values())} features are called over all blocks (*Nothing written, nothing called*).
"""
display(Markdown(takeaways))

# %% [markdown]
# ## Limits
#
# - The sequences are random, so that blocks of them are independent by design; text and genomes need blocks that are.
# - Each background is one draw: the score says that these sequences differ (E1), and all three agree (E2).
#
# ## Exercises
#
# 1. Write the motif into both conditions. Which features are called now?
# 2. Use a model of your own: which two lines change?
#
# <details><summary>Answers</summary>
#
# 1. None beyond the error rate: `MotifContrast(motif=..., decoy=...)` with the decoy alone is the contrast without an effect.
# 2. The one that makes `encoder`, and the names of its layers, as `model.named_modules()` lists them.
#
# </details>
