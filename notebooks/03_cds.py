# %% [markdown]
# # The Context Divergence Score
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/chromatin-context/blob/main/notebooks/03_cds.ipynb)
#
# Which features tell a cell line from a tissue?
# This page scores every feature of every block, first as a plain t-statistic, then with the pairing and the dependence of the data respected, and hands on the features that hold.
#
# **Objectives**
#
# - Compute the naive score and see how many features it would claim.
# - Score features by paired differences over genomic blocks, with moderated variance and sign flips.
# - Sort them into shared, lineage-only and discordant.
# - Count them per block with an interval on the late/early ratio, and repeat the effects on other chromosomes.
#
# **Needs** `sae/block<i>/` (made if absent).
# **Produces** `cds.parquet`, `cds_test.parquet`, `layer_ratio.parquet`, `recovery.parquet` (simulated data).

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
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from helpers import figures, stages, truth
from helpers.figures import divergence

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
# ## The score
#
# Let $a_{sw}$ be the mean activation of a feature over the tokens of window $w$ in biosample $s$.
# The **naive** score is Welch's $t$ between the windows of all tissues and those of all cell lines.
# It takes windows for independent replicates, which they are not, and ignores that the same windows were measured in both contexts.
#
# The **Context Divergence Score** (CDS) starts from the paired difference $d_{\ell w} = a_{\mathrm{vivo}(\ell) w} - a_{\mathrm{vitro}(\ell) w}$ in lineage $\ell$, in which everything that sequence alone decides cancels.
# Differences are averaged over genomic blocks $b$ to $D_{\ell b}$, and
#
# $$\mathrm{CDS}_\ell = \frac{\bar D_\ell}{\tilde s_\ell / \sqrt{B}}$$
#
# with $B$ blocks and a variance $\tilde s_\ell^2$ moderated across features {cite}`smyth2004linear`.
# The shared score uses the mean of the lineages in place of $D_{\ell b}$.
# Positive means higher *in vivo*.
#
# What it estimates is named in the table: whether *these tracks* differ over the genome.
# Three pairs cannot say how cell lines differ from tissues in general, and asking for that is refused.

# %% tags=["remove-stderr"]
scores = stages.score_context(study, "select")
counts = stages.layer_counts(scores)
n_blocks = study.dataset.windows.query("split == 'select'")["block"].nunique()
print(f"{n_blocks} genomic blocks on select chromosomes, {len(study.lineages)} pairs")
counts

# %% [markdown]
# `naive` and `shared` count features below 0.05 after Bonferroni within the block of the model; `max_t` replaces Bonferroni by sign flips of whole genomic blocks, which keep the correlation between features.
# The classes come from a two-stage rule: a screen over features, then a confirmation in every lineage.

# %% mystnb={"figure": {"caption": "Effect against evidence for every feature of the last block (left), and the naive score against the paired one (right). Colors are the classes; dashed lines mark Bonferroni at 0.05.", "name": "fig-volcano"}, "image": {"alt": "Left, volcano plot of standardized paired effect against minus log10 p; right, scatter plot of naive t against the Context Divergence Score; points colored by class."}}
last = scores[scores["layer"] == max(study.blocks)]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8))
divergence.volcano(last, axes[0])
divergence.naive_against_paired(last, axes[1])
figures.panel_labels(axes)
plt.show()

# %% [markdown]
# ## Along the depth of the model
#
# A count that rises with depth may reflect more context, or only more power: later blocks have larger activations and fewer dead features.
# The number of tests per block is equal up to features that never fire, and the ratio of the last block to the first carries an interval from resampled genomic blocks.

# %% tags=["remove-stderr"]
ratio = stages.late_early_ratio(study)
ratio.round(2)

# %% mystnb={"figure": {"caption": "Features called per block, by class (bars), and what the naive score would have claimed (line).", "name": "fig-layers"}, "image": {"alt": "Stacked bars of the number of context features per block by class, with a line for the count of the naive score."}}
divergence.layer_counts(counts)
plt.show()

# %% [markdown]
# ## Do the effects repeat?
#
# Features were chosen on `select` chromosomes, so their effects there are too large: the largest of many noisy numbers were picked.
# The same differences on `test` chromosomes have no such bias.

# %% tags=["remove-stderr"]
again = stages.score_context(study, "test")
both = stages.called_features(scores).merge(
    again[["layer", "feature", "cds", "delta", "p"]],
    on=["layer", "feature"],
    suffixes=("", "_test"),
)
same_sign = np.sign(both["delta"]) == np.sign(both["delta_test"])
shared = both["class"].str.startswith("shared")
print(f"{len(both)} features called on select chromosomes")
print(
    f"{same_sign.mean():.1%} have the same sign of the mean difference on test chromosomes"
)
if shared.any():
    print(f"{same_sign[shared].mean():.1%} of the {shared.sum()} shared ones do")

# %% mystnb={"figure": {"caption": "Effect of the called features on the chromosomes where they were chosen against chromosomes they were not chosen on. Points on the diagonal repeat exactly; the slope below 1 is the price of selection.", "name": "fig-replication"}, "image": {"alt": "Scatter plot of paired differences on select chromosomes against test chromosomes, colored by class, with the diagonal."}}
divergence.replication(both)
plt.show()

# %% [markdown]
# The strongest features, with what they do in each lineage.

# %%
columns = [
    "layer",
    "feature",
    "class",
    "lineages",
    "cds",
    "d_z",
    "log2_fold",
    "delta_rate",
]
columns += [f"cds_{lineage}" for lineage in study.lineages]
strongest = stages.called_features(scores)
strongest = strongest.reindex(strongest["cds"].abs().sort_values(ascending=False).index)
strongest[columns].head(10).round(2)

# %% [markdown]
# ## Against what was planted
#
# In the simulated world it is known which factors act in which context.
# A feature speaks for a factor if the tokens at which it differs most between the contexts are the factor's sites.
# A context factor counts as found if such a feature was called in a lineage where its effect was planted, with the planted sign there.
# Factors without context effect, the decoys, should not be called; where they are, composition, noise of single biosamples or features that mix factors are the reason, since the score answers whether these tracks differ and not why.

# %% tags=["remove-stderr"]
if study.truth is None:
    recovery = None
    print("the data are real: nothing was planted")
else:
    recovery = truth.score_recovery(study, scores)
    display(recovery)

# %% tags=["hide-input"]
if recovery is not None:
    planted = recovery[recovery["higher_in"] != ""]
    decoys = recovery[recovery["higher_in"] == ""]
    display(
        Markdown(
            f"**{planted['found'].sum()} of {len(planted)}** planted context factors were found "
            f"({planted['found'].mean():.0%}); **{decoys['found'].sum()} of {len(decoys)}** factors "
            "without context effect have a called feature."
        )
    )

# %% [markdown]
# ## Sanity checks
#
# Exchanging the labels of the contexts must change every sign and nothing else, and scrambling signs block by block must leave next to nothing.

# %%
from helpers.cds import context_divergence

layer = max(study.blocks)
windows = study.dataset.windows_of("select")
genomic = study.dataset.windows["block"].to_numpy()[windows]
acts = stages.summaries(study)[layer].mean_acts[:, windows]
swapped = study.design.replace(
    {"context": {"in_vitro": "in_vivo", "in_vivo": "in_vitro"}}
)
mirrored = context_divergence(acts, swapped, genomic)
assert np.allclose(-mirrored["cds"], last["cds"].to_numpy(), equal_nan=True)

rng = np.random.default_rng(seed)
flip = rng.random(n_blocks)[pd.factorize(genomic)[0]] < 0.5
shuffled = acts.copy()
for lineage in study.lineages:
    a, b = study.pair(lineage)
    shuffled[a, flip], shuffled[b, flip] = acts[b, flip], acts[a, flip]
null = context_divergence(shuffled, study.design, genomic)
n_null = int((null["p_bonferroni"] <= 0.05).sum())
n_real = int((last["p_bonferroni"] <= 0.05).sum())
print(f"called with scrambled contexts: {n_null}; with the real ones: {n_real}")
assert n_null <= max(2, 0.1 * n_real)

# %% [markdown]
# ## Key takeaways

# %% tags=["hide-input"]
one = ratio.iloc[0]
takeaways = f"""
- The naive score would have claimed {counts["naive"].sum()} features over all blocks; the paired shared score claims {counts["shared"].sum()}.
- From the first block to the last the count goes from {one["early"]:.0f} to {one["late"]:.0f}, a ratio of {one["ratio"]:.2f} ({one["low"]:.2f} to {one["high"]:.2f}).
- {same_sign.mean():.0%} of the called features keep their sign on chromosomes they were not chosen on.
"""
display(Markdown(takeaways))

# %% [markdown]
# ## Limits
#
# - Each lineage has one biosample per context: noise of a single biosample is part of its contrast, and only replicates could remove it.
# - A difference in activation says neither that the model uses the feature nor why it differs; pages 04 and 05 ask these questions.
# - The motif activity is one vector per biosample, so a feature that follows it differs in every window although $n$ is 1.
#
# ## Exercises
#
# 1. Score one lineage alone with `tissues = ["liver"]`. Why can no feature be called shared?
# 2. Which features does the naive score miss that the paired one finds, and why?
#
# <details><summary>Answers</summary>
#
# 1. Shared means consistent over lineages; one pair cannot show it.
# 2. Those whose activation varies more between windows than between contexts: pairing removes what sequence decides.
#
# </details>
