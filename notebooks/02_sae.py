# %% [markdown]
# # Sparse dictionaries of the residual stream
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/chromatin-context/blob/main/notebooks/02_sae.ipynb)
#
# The stream after a block is a sum of many things the model knows at once.
# A sparse autoencoder takes it apart into features that are mostly silent; this page trains one per block and asks how much of the stream, and of the prediction, survives.
#
# **Objectives**
#
# - Train a BatchTopK dictionary on every block, the same number of tokens from every biosample.
# - Read its card on held-out chromosomes: error, sparsity, dead features, per biosample.
# - Check that neither context gets more active features than the other merely by its norm.
# - Put the reconstruction back into the model and see what the prediction loses.
#
# **Needs** `activations.zarr` (made if absent).
# **Produces** `sae/block<i>/`, `loss_recovered.parquet`.

# %% tags=["hide-input"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("helpers") is None:  # a fresh runtime, such as Colab
    source = "git+https://github.com/OWNER/chromatin-context@main"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", source])
    importlib.invalidate_caches()

# %% [markdown]
# Change these and run all; papermill sets them from outside.

# %% tags=["parameters"]
run: str = "_build/runs/simulated"  # folder of artefacts
data: str = "simulated"  # or "encode", or a folder of tissue files
tissues: list = []  # which of them; all if empty
blocks: list = []  # transformer blocks; all if empty
seed: int = 0  # of everything random after the model
device: str = "cpu"  # torch device
model: str = ""  # folder or checkpoint; the one that goes with the data if empty
precision: str = "float32"  # or "bfloat16", where the hardware has it

# %% tags=["remove-stderr"]
import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown, display

from helpers import fidelity, figures, stages
from helpers.figures import dictionaries

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
)
print(f"run {run} | data {data} | seed {seed} | device {device}")
print(f"blocks {study.blocks} | model {study.model_hash}")
print(study.description)

# %% [markdown]
# ## BatchTopK
#
# Let $x$ be a token's stream, $\mu$ the mean over training tokens and $s$ one scale for all coordinates, and $u = (x - \mu) / s$.
# The encoder computes $h = \mathrm{ReLU}((u - b_\mathrm{dec}) W_\mathrm{enc} + b_\mathrm{enc})$.
# In training the $n k$ largest entries among the $n$ tokens of a batch are kept: tokens that hold more may use more {cite}`bussmann2024batchtopk`.
# Afterwards one fixed threshold $\theta$ takes over, $z = h \cdot 1[h > \theta]$, so that the code of a token never depends on its neighbors.
# The reconstruction is $\hat x = s\,(z W_\mathrm{dec} + b_\mathrm{dec}) + \mu$ with rows of $W_\mathrm{dec}$ of length 1.
#
# Dictionaries are trained on `select` chromosomes, $\theta$ is set on `tune`, and all numbers below are of `test`.

# %% tags=["remove-stderr"]
config = stages.sae_config(study.model.config.d_model)
saes = stages.train_saes(study)
print(f"{config.d_sae} features, k = {config.k}, {config.n_epochs} epochs")

# %% mystnb={"figure": {"caption": "Fraction of variance unexplained (left) and share of dead features (right) in training, one line per block, running mean over 20 steps. Flat ends mean that longer training would change little.", "name": "fig-training"}, "image": {"alt": "Two line plots over training epochs, one line per block: variance unexplained falls and levels off; the share of dead features."}}
history = stages.read_cards(study, "history")
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
dictionaries.training_curves(history, "fvu", axes[0]).set_ylabel("FVU of the batch")
axes[0].set_yscale("log")
dictionaries.training_curves(history, "dead", axes[1]).set_ylabel("share dead")
figures.panel_labels(axes)
plt.show()

# %% [markdown]
# ## The card
#
# FVU is the squared error over the whole test set divided by the variance around its mean; predicting the mean gives 1.
# L0 is the number of active features per token.
# Shrinkage is positive where reconstructions are too short.

# %%
cards = stages.read_cards(study)
everything = cards.xs("all", level="rows")
everything.round(3)

# %% [markdown]
# A threshold lets tokens of larger norm use more features, and a mere difference of norm between the contexts would then look like context features.
# L0 per biosample is the guard: a difference of more than 20 % is named.

# %% mystnb={"figure": {"caption": "Mean L0 (left) and FVU (right) of every biosample on test chromosomes. Circles are cell lines, triangles tissues; the contexts should overlap.", "name": "fig-card"}, "image": {"alt": "Scatter plots of mean L0 and FVU per block, one point per biosample, cell lines as circles and tissues as triangles."}}
contexts = dict(zip(study.design["biosample"], study.design["context"], strict=True))
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
dictionaries.card_by_biosample(cards, "l0_mean", contexts, axes[0]).set_ylabel(
    "mean L0"
)
dictionaries.card_by_biosample(cards, "fvu", contexts, axes[1]).set_ylabel("FVU")
axes[0].axhline(config.k, color="0.6", lw=1, ls="--")
figures.panel_labels(axes)
plt.show()

# %%
per_biosample = cards.drop("all", level="rows")["l0_mean"].groupby("layer")
spread = per_biosample.max() / per_biosample.min()
for layer, ratio in spread.items():
    verdict = "WARNING, more than 20 %" if ratio > 1.2 else "within 20 %"
    print(f"block {layer}: largest L0 is {ratio:.2f} x the smallest ({verdict})")

# %% mystnb={"figure": {"caption": "How often features fire, per block. Features at the right end fire on nearly every token and carry little that is specific; those that never fire on test chromosomes are counted in the legend.", "name": "fig-density"}, "image": {"alt": "Step histograms of the log share of tokens on which features fire, one per block."}}
dictionaries.densities(stages.read_cards(study, "features"))
plt.show()

# %% [markdown]
# ## What the prediction loses
#
# The reconstruction takes the place of the stream and the model goes on from there.
# Loss recovered is $1 - (L_\mathrm{sae} - L_\mathrm{id}) / (L_\mathrm{mean} - L_\mathrm{id})$ with Poisson losses against the measured track.
# It is 1 if nothing is lost, 0 if the mean stream would do as well, and may be negative.

# %% tags=["remove-stderr"]
recovered = fidelity.loss_recovered(study)
recovered.pivot(index="layer", columns="biosample", values="recovered").round(3)

# %% [markdown]
# ## Sanity checks

# %%
store = stages.extract(study)
last = store.layers[-1]
sae = saes[last]
tokens = store.rows(last, splits=["test"], max_tokens=600, random_state=seed).rows
tokens = tokens.to(device)
assert torch.allclose(
    sae.W_dec.norm(dim=1), torch.ones(sae.d_sae).to(device), atol=1e-4
)
one_by_one = torch.cat([sae.encode(x[None]) for x in tokens[:20]])
assert torch.allclose(one_by_one, sae.encode(tokens)[:20], atol=1e-4), "no neighbors"
assert (abs(everything["l0_mean"] / config.k - 1) < 0.25).all(), "L0 near k on test"

# %% [markdown]
# ## Key takeaways

# %% tags=["hide-input"]
worst = recovered.groupby("layer")["recovered"].mean()
takeaways = f"""
- The dictionaries leave {100 * everything["fvu"].min():.1f} to {100 * everything["fvu"].max():.1f} % of the variance of held-out streams unexplained.
- Spliced back into the model they recover {100 * worst.min():.1f} to {100 * worst.max():.1f} % of the prediction loss (mean over biosamples, by block).
- L0 differs between biosamples by a factor of at most {spread.max():.2f}; {everything["dead_percent"].max():.0f} % of features at most never fire on test chromosomes.
"""
display(Markdown(takeaways))

# %% [markdown]
# ## Limits
#
# - One seed and one width: which features exist depends on both.
# - A low FVU says that the stream is described, not that features are what the model computes with; page 04 tests that.
# - What the dictionary leaves unexplained is kept, not discarded, by every intervention in this book.
#
# ## Exercises
#
# 1. Why is the mean $\mu$ taken over all biosamples together and not within each context?
# 2. With a threshold in place of the batch's top entries, L0 is no longer exactly $k$. Which tokens gain?
#
# <details><summary>Answers</summary>
#
# 1. Centering each context on its own mean would delete the contrast that is to be studied.
# 2. Tokens with large norm: more of their pre-activations exceed a fixed threshold. That is why L0 is shown per biosample.
#
# </details>
